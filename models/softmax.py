"""Softmax losses over the item table: full, in cache-sized slices, and sampled with the logQ correction.

Letters: N targets, D embedding width, V item rows, M sampled negatives.
"""

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from models.network import UNKNOWN_ROW

_SLICE_ELEMENTS: Final = 2**18  # scores of one slice, 1 MB: stays in a core's cache; twice as fast as all at once
_FEWEST_ROWS: Final = 16  # a matrix product of fewer rows wastes the processor


class _FullSoftmax(torch.autograd.Function):
    """Mean cross entropy of N targets; gradients are made slice by slice in the forward pass, N x V is never stored."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, table: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
        total = query.new_zeros(())
        query_grad, table_grad, bias_grad = torch.empty_like(query), torch.zeros_like(table), torch.zeros_like(bias)
        rows = max(_FEWEST_ROWS, _SLICE_ELEMENTS // len(table))
        for start in range(0, len(query), rows):
            part = slice(start, start + rows)
            scores = torch.addmm(bias, query[part], table.T)  # (rows, V)
            scores[:, UNKNOWN_ROW] = -torch.inf
            wanted = targets[part, None]
            peak = scores.amax(1, keepdim=True)
            score = scores.gather(1, wanted)
            scores.sub_(peak).exp_()
            mass = scores.sum(1, keepdim=True)
            total += (mass.log() + peak - score).sum()
            scores.div_(mass).scatter_add_(1, wanted, torch.full_like(mass, -1.0))  # softmax - one hot
            torch.mm(scores, table, out=query_grad[part])
            table_grad.addmm_(scores.T, query[part])
            bias_grad += scores.sum(0)
        ctx.save_for_backward(query_grad, table_grad, bias_grad)
        ctx.count = len(query)
        return total / len(query)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        scale = gradients[0] / ctx.count
        query_grad, table_grad, bias_grad = ctx.saved_tensors
        return query_grad * scale, table_grad * scale, bias_grad * scale, None


def full_softmax(query: Tensor, table: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy over every item but the unknown one.

    Args:
        query: (N, D).
        table: Item embeddings (V, D).
        bias: Item biases (V,).
        targets: Item rows (N,), none of them 0.
    """
    loss: Tensor = _FullSoftmax.apply(query, table, bias, targets)  # type: ignore[no-untyped-call]
    return loss


@dataclass(frozen=True, slots=True)
class Sampler:
    """Draws negatives by a smoothed popularity.

    Attributes:
        cumulative: (V,) float64, cumulative probabilities; row 0 has none.
        log_expected: (V,) float32, log of how often each row is expected in ``negatives`` draws: the logQ of the loss.
        negatives: M.
    """

    cumulative: Tensor
    log_expected: Tensor
    negatives: int

    @classmethod
    def of(cls, counts: Tensor, negatives: int, power: float = 0.75) -> "Sampler":
        """A sampler for item counts (V,): probability proportional to ``(count + 1) ** power``, none for row 0."""
        weight = (counts.double() + 1) ** power
        weight[UNKNOWN_ROW] = 0
        share = weight / weight.sum()
        cumulative = share.cumsum(0)
        return cls(cumulative / cumulative[-1].clone(), (share * negatives).log().float(), negatives)

    def draw(self, generator: torch.Generator | None = None) -> Tensor:
        """M item rows, with replacement, (M,) int64."""
        where = torch.rand(self.negatives, dtype=torch.float64, generator=generator, device=self.cumulative.device)
        return torch.searchsorted(self.cumulative, where, right=True).clamp_(max=len(self.cumulative) - 1)


def sampled_softmax(
    query: Tensor,
    table: Tensor,
    bias: Tensor,
    targets: Tensor,
    sampler: Sampler,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Mean cross entropy of each target against M shared negatives, corrected for how likely they were drawn.

    Shapes as in `full_softmax`. In expectation over the draws its gradient is close to that of the full softmax.

    References:
        Bengio and Senecal, "Adaptive importance sampling", 2008; Yi et al., "Sampling-bias-corrected neural modeling
        for large corpus item recommendations", RecSys 2019 (logQ).
    """
    negatives = sampler.draw(generator)
    score = (query * table[targets]).sum(1) + bias[targets]  # (N,)
    scores = torch.addmm(bias[negatives] - sampler.log_expected[negatives], query, table[negatives].T)  # (N, M)
    scores = scores.masked_fill(negatives[None, :] == targets[:, None], -torch.inf)  # a target is no negative
    return (torch.logaddexp(score, scores.logsumexp(1)) - score).mean()
