"""The course of a fit: how many epochs the data is worth, early stopping, the best weights kept."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.family.asking import had_before, queries_before, ranks_of, target_ranks
from models.family.interface import Lesson, SequenceModel

_BUDGET: Final = 2.4e12  # multiplications of one fit at effort 1: about 150 s on one core of 2024
_STEP_OVERHEAD: Final = 60_000  # multiplications that an event costs besides the counted ones
_FEWEST_EPOCHS: Final = 3
_LEAST: Final = 0.1  # share of the budget that is spent on so many, however little effort is asked for
_JUDGED: Final = 5000  # most held-out events a choice is made by: NDCG@10 to about .003
_SCORES: Final = 2**22  # of one slice of events, 16 MB
_FEWEST_JUDGED: Final = 20  # with fewer the best epoch would be chosen by chance

BatchReport = Callable[[float, float], bool]
Quality = Callable[[SequenceModel, Lesson, NDArray[np.int64]], float]


@dataclass(frozen=True, slots=True)
class Plan:
    """How long to train.

    Attributes:
        epochs: Most epochs; the learning rate falls to 0 over this many. A fraction ends within an epoch: of a very
            long log only a part, drawn at random, is learnt.
        patience: Epochs without a better held-out NDCG@10 after which it stops.
    """

    epochs: float
    patience: int


def epochs_for(lesson: Lesson, weights: float, most: int) -> float:
    """Epochs that fit into the budget, the same on every machine and under any load; less than 3 may be a fraction.

    Args:
        lesson: The data and the effort.
        weights: Multiplications of a forward pass per event.
        most: Epochs after which training of this kind improves no more.
    """
    cost = 3 * (weights + _STEP_OVERHEAD) * max(len(lesson.past), 1)  # a backward pass costs two forward ones
    fewest = min(_FEWEST_EPOCHS, most, _LEAST * _BUDGET / cost)
    epochs = float(np.clip(lesson.effort * _BUDGET / cost, fewest, most))
    return round(epochs) if epochs >= _FEWEST_EPOCHS else epochs


@contextmanager
def placed(module: nn.Module, device: str) -> Iterator[None]:
    """Within it the module is on a device, and so are tensors that are made there; behind it the module is back.

    Models are judged and used on the CPU, as in the stream; moving one costs milliseconds.
    """
    if device == "cpu":
        yield
        return
    module.to(device)
    try:
        with torch.device(device):
            yield
    finally:
        module.to("cpu")


def run_course(
    model: SequenceModel,
    module: nn.Module,
    lesson: Lesson,
    plan: Plan,
    epoch: Callable[[BatchReport], float],
    quality: Quality | None = None,
) -> None:
    """Train epoch by epoch; the module ends, in evaluation mode, as the epoch that ranked held-out events best.

    Without held-out events it ends as the last epoch.

    Args:
        model: What is judged; it computes with ``module``.
        module: What is trained.
        lesson: Held-out events and where progress is reported.
        plan: Epochs and patience.
        epoch: Trains one epoch, calling what it is given with the share done and the mean loss; a True answer ends it.
        quality: What the best epoch is chosen by; `held_out_ndcg` when None.
    """
    sample = held_out_sample(lesson)
    best, kept, since = -1.0, None, 0
    stopped = False
    for number in range(math.ceil(plan.epochs)):

        def report(share: float, loss: float, number: int = number, best: float = best) -> bool:
            nonlocal stopped
            held_out = f", held-out NDCG@10 {best:.4f}" if best >= 0 else ""
            note = f"epoch {number + 1} of at most {plan.epochs:.3g}, loss {loss:.3f}{held_out}"
            stopped = bool(lesson.report(min((number + share) / plan.epochs, 1.0), note)) or stopped
            return stopped or number + share >= plan.epochs

        epoch(report)
        module.eval()
        if sample is not None:
            found = (quality or held_out_ndcg)(model, lesson, sample)
            since += 1
            if found > best:
                best, kept, since = found, copy.deepcopy(module.state_dict()), 0
        if stopped or since >= plan.patience:
            break
    if kept is not None:
        module.load_state_dict(kept)
    module.eval()


def held_out_sample(lesson: Lesson) -> NDArray[np.int64] | None:
    """Places of the held-out events that choices are made by; None where there are too few."""
    judged = np.flatnonzero(lesson.judged & (lesson.source.items > 0))
    judged = judged[~np.isin(judged, lesson.source.starts[:-1])]
    if len(judged) < _FEWEST_JUDGED:
        return None
    rng = np.random.default_rng(lesson.seed)
    return judged if len(judged) <= _JUDGED else np.sort(rng.choice(judged, _JUDGED, replace=False))


@torch.inference_mode()
def held_out_ndcg(model: SequenceModel, lesson: Lesson, sample: NDArray[np.int64]) -> float:
    """NDCG@10 of a model on held-out events (unmasked, full ranking)."""
    ranks = target_ranks(model, queries_before(model, lesson.source, sample), lesson.source.items[sample])
    return float(np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0.0).mean())


@torch.inference_mode()
def held_out_ndcg_of_both(model: SequenceModel, lesson: Lesson, sample: NDArray[np.int64]) -> float:
    """The mean of a model's NDCG@10 on held-out events with and without the items that users had before.

    Two columns jump about less than one: with a thousand events the best of twenty epochs is else often a lucky one.
    """
    source = lesson.source
    asked = queries_before(model, source, sample)
    wanted = torch.from_numpy(source.items[sample].astype(np.int64))
    rows, total = max(1, _SCORES // model.items), 0.0
    for begin in range(0, len(sample), rows):
        part = slice(begin, begin + rows)
        scores = model.item_scores(asked[part])
        total += float(_gains(ranks_of(scores, wanted[part])[0]).sum())
        row, had = (torch.from_numpy(side) for side in had_before(source, sample[part], model.items))
        scores[row, had] = -torch.inf
        total += float(_gains(ranks_of(scores, wanted[part])[0]).sum())
    return total / (2 * len(sample))


def _gains(ranks: Tensor) -> Tensor:
    return torch.where(ranks <= 10, 1 / torch.log2(ranks + 1), 0.0)
