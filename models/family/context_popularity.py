"""Popularity by context: what is popular at this hour and on this day of the week, for users nobody knows yet.

Letters: B users, T steps, V item rows, C contexts (no known hour, and 168 hours of the week), N events.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.family.course import held_out_sample
from models.family.interface import WEEK_HOURS, EventBatch, Lesson, SequenceModel, clock_of
from models.network import UNKNOWN_ROW

_DAY: Final = 24
_PRIORS: Final = (0.0, 300.0, 3000.0)  # events of plain popularity that every hour starts from; 0 leaves hours out
_CELLS: Final = 2**24  # scores that a prior is chosen by


class ContextPopularity(SequenceModel):
    """The most frequent items, more so those of this hour of the day and of this day of the week.

        P(item | hour, day) ~ P(item) P(item | hour) / P(item) P(item | day) / P(item)

    each conditional one drawn to the plain one by a prior that is chosen by held-out events; without times, or where
    hours foretell nothing, it is plain popularity.

    Args:
        items: V.
        prior: Events of plain popularity that every hour starts from, found by `fit`; 0 leaves hours out.

    References:
        Adomavicius and Tuzhilin, "Context-aware recommender systems", Recommender Systems Handbook 2011 (contextual
        pre-filtering); Jelinek and Mercer, "Interpolated estimation of Markov source parameters", 1980 (smoothing).
    """

    name: ClassVar[str] = "context-popularity"
    context = 1

    def __init__(self, items: int, prior: float = 0.0) -> None:
        self.items, self.prior = items, prior
        self.hours = torch.zeros(_DAY, items)  # how often each item occurred in each hour of the day
        self.days = torch.zeros(WEEK_HOURS // _DAY, items)
        self._fill()

    @property
    def state_size(self) -> int:
        return 1

    def fit(self, lesson: Lesson) -> None:
        items, clock = lesson.past.items.astype(np.int64), clock_of(lesson.past.times_ms)
        for counts, group in ((self.hours, clock % _DAY), (self.days, clock // _DAY)):
            flat = np.bincount(group * self.items + items, minlength=counts.numel())
            counts.copy_(torch.from_numpy(flat.reshape(counts.shape)))
            counts[:, UNKNOWN_ROW] = 0
        sample = held_out_sample(lesson) if lesson.timed else None
        gains = [0.0]
        for prior in _PRIORS if sample is not None else ():
            self.prior = prior
            self._fill()
            gains.append(self._likelihood(lesson, sample))
        self.prior = _PRIORS[int(np.argmax(gains[1:]))] if len(gains) > 1 else 0.0
        self._fill()
        lesson.report(1.0, f"prior {self.prior:.0f}")

    def _likelihood(self, lesson: Lesson, sample: NDArray[np.int64] | None) -> float:
        """Mean log-probability of held-out items at the hours they came."""
        assert sample is not None
        sample = sample[: max(1, _CELLS // self.items)]
        clock = torch.from_numpy(clock_of(lesson.source.times_ms[sample]))
        odds = torch.log_softmax(self.item_scores(self.greeting(clock)), dim=1)
        return float(
            odds[torch.arange(len(sample)), torch.from_numpy(lesson.source.items[sample].astype(np.int64))].mean()
        )

    def _fill(self) -> None:
        """Log-probabilities of items by hour and by day."""
        total = self.hours.sum(0)
        plain = (total + 0.5) / (total.sum() + 0.5 * self.items)  # (V,)
        self._plain = plain.log()
        self._lifts = []
        for counts in (self.hours, self.days):
            mass = counts.sum(1, keepdim=True) + self.prior
            by = (counts + self.prior * plain) / mass.clamp(min=1e-9)
            self._lifts.append((by / plain).log() if self.prior else torch.zeros_like(counts))

    def step(self, state: Tensor, events: EventBatch) -> Tensor:
        return (events.clock + 1).to(state.dtype)[:, None]

    def sequence(self, events: EventBatch) -> Tensor:
        return (events.clock + 1).float()[..., None]

    def greeting(self, clock: Tensor) -> Tensor:
        return (clock + 1).float()[:, None]

    def item_scores(self, queries: Tensor) -> Tensor:
        known, clock = queries[:, :1] > 0, (queries[:, 0].long() - 1).clamp(min=0)
        lifts = self._lifts[0][clock % _DAY] + self._lifts[1][clock // _DAY]
        scores = self._plain + lifts * known
        scores[:, UNKNOWN_ROW] = -torch.inf
        return scores

    def settings(self) -> dict[str, Any]:
        return {"items": self.items, "prior": self.prior}

    def tensors(self) -> dict[str, Tensor]:
        return {"hours": self.hours, "days": self.days}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.hours, self.days = tensors["hours"], tensors["days"]
        self._fill()
