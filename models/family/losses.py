"""Losses over the item table for models whose item vectors are computed: full, sampled, and gBCE.

Letters: N targets, D width, V item rows, M negatives.
"""

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from models.softmax import Biases, Repeats, Sampler, Vectors, full_softmax, sampled_softmax

CALIBRATION: Final = 0.75  # t of gBCE, the value its authors recommend


def cross_entropy(
    query: Tensor,
    vectors: Vectors,
    biases: Biases,
    targets: Tensor,
    sampler: Sampler | None,
    repeats: Repeats | None = None,
) -> Tensor:
    """Mean cross entropy of targets (N,), over all items or over sampled ones with the logQ correction.

    Args:
        query: (N, D).
        vectors: Item vectors by row.
        biases: Item biases by row.
        targets: Item rows (N,), none of them 0.
        sampler: None takes the full softmax.
        repeats: What is added to the scores of the items users had last.
    """
    if sampler is None:
        return full_softmax(query, vectors(None), biases(None), targets, repeats)
    return sampled_softmax(query, vectors, biases, targets, sampler, repeats)


def generalised_bce(
    query: Tensor,
    vectors: Vectors,
    biases: Biases,
    targets: Tensor,
    items: int,
    negatives: int,
    repeats: Repeats | None = None,
) -> Tensor:
    """gBCE: binary cross entropy with M uniform negatives and the positive's probability raised to a power.

    The power undoes the overconfidence that sampling negatives brings.

    References:
        Petrov and Macdonald, "gSASRec: reducing overconfidence in sequential recommendation trained with negative
        sampling", RecSys 2023.
    """
    drawn = 1 + torch.randperm(items - 1, device=query.device)[:negatives].sort().values
    rate = min(negatives / max(items - 2, 1), 1.0)
    power = rate * (CALIBRATION * (1 - 1 / rate) + 1 / rate)
    score = (query * vectors(targets)).sum(1) + biases(targets)
    scores = torch.addmm(biases(drawn), query, vectors(drawn).T)  # (N, M)
    scores = scores.masked_fill(drawn[None, :] == targets[:, None], -torch.inf)

    def loss(score: Tensor, scores: Tensor) -> Tensor:
        return (functional.softplus(-score) * power + functional.softplus(scores).sum(1)).mean()

    return loss(score, scores) if repeats is None else repeats.beside(loss, score, scores, targets, drawn)
