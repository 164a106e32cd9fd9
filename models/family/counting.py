"""Models that count: popularity, the Markov chain and the skip-Markov chain. They learn from every event at once.

Letters: B users, T steps, V item rows, L latest items kept, N events, E events learnt.

They are tuned on nothing: distances, weights and the back-off are the plain ones, which makes them fair rivals. A query
is the user's L latest item rows, newest first, 0 where there is none.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.family.interface import EventBatch, Lesson, SequenceModel
from models.family.pairs import PairCounts
from models.family.recent import ends, shifted, unfolded
from models.network import UNKNOWN_ROW
from models.sequences import Histories

_BACK_OFF: Final = 1e-3  # weight of the most popular item where no transition speaks; below any single transition
_LATEST: Final = 5
_FARTHEST: Final = 10
_HALF_LIVES: Final = (0.5, 0.125, 0.03)  # of the events learnt from; tried beside no decay at all
_CHOSEN_BY: Final = 2000  # most events that a half-life is chosen by
_FEWEST_CHOSEN_BY: Final = 20
_RESCALE_AT: Final = 1e12
_SLICE: Final = 2**20  # events turned into pairs at a time


class RecentItems(SequenceModel):
    """What the counting models share: the state is the L latest items, and popularity is always counted.

    Args:
        items: V.
        latest: L.
        half_life: Events after which an event weighs half in popularity; 0 does not decay.
    """

    online = True

    def __init__(self, items: int, latest: int, half_life: float = 0.0) -> None:
        self.items, self.context, self.half_life = items, latest, half_life
        self.popularity = np.zeros(items, np.float64)
        self._scale = 1.0  # weight of the next event: weights grow instead of all old ones shrinking

    def count(self, lesson: Lesson) -> None:
        """Count the popularity of the past, old events weighing less where that foretells newer ones better."""
        past, source, judged = lesson.past, lesson.source, lesson.judged
        order = np.argsort(past.times_ms, kind="stable")
        rows = past.items[order].astype(np.int64)
        known, wanted = rows, source.items[judged][:_CHOSEN_BY].astype(np.int64)
        if not judged.any():  # nothing is held out: the newest of the past stands for it
            known, wanted = np.split(rows, [len(rows) - min(len(rows) // 10, _CHOSEN_BY)])
        elif len(past) and source.times_ms[judged].min() < past.times_ms.max():
            wanted = wanted[:0]  # what is held out does not come after the past: "newest" means nothing
        choices = [0.0]
        if lesson.timed and len(wanted) >= _FEWEST_CHOSEN_BY:
            choices += [share * len(rows) for share in _HALF_LIVES]
        gains = []
        for half_life in choices if len(choices) > 1 else []:
            self._recount(known, half_life)
            ordered = np.sort(self.popularity[UNKNOWN_ROW + 1 :])
            rank = len(ordered) - np.searchsorted(ordered, self.popularity[wanted], side="right") + 1
            gains.append((1 / np.log2(rank + 1))[rank <= 10].sum())
        self._recount(rows, choices[int(np.argmax(gains))] if gains else 0.0)

    def _recount(self, rows: NDArray[np.int64], half_life: float) -> None:
        self.half_life, self._scale = half_life, 1.0
        self.popularity[:] = 0
        self.note(rows)

    def note(self, rows: NDArray[np.int64]) -> None:
        """Count one more event of each of the items (E,), in order of time."""
        weights = np.ones(len(rows))
        if self.half_life:
            # Ages count back from the newest, so that a long log cannot overflow.
            weights = 0.5 ** (np.arange(len(rows))[::-1] / self.half_life)
            self._scale *= 2.0 ** (len(rows) / self.half_life) if len(rows) < 500 * self.half_life else np.inf
            if self._scale > _RESCALE_AT:
                self.popularity /= self._scale
                self._scale = 1.0
            weights *= self._scale
        self.popularity += np.bincount(rows, weights, self.items)
        self.popularity[UNKNOWN_ROW] = 0

    @property
    def state_size(self) -> int:
        return self.context

    def step(self, state: Tensor, events: EventBatch) -> Tensor:
        return shifted(state[:, :, None], events.items[:, None].to(state.dtype))[:, :, 0]

    def sequence(self, events: EventBatch) -> Tensor:
        return unfolded(events.items[:, :, None].float(), self.context)[..., 0]

    def last(self, events: EventBatch, steps: Tensor) -> Tensor:
        return ends(events.items[:, :, None].float(), steps, self.context)[..., 0]

    def settings(self) -> dict[str, Any]:
        return {"items": self.items}

    def tensors(self) -> dict[str, Tensor]:
        scale = torch.tensor([self._scale, self.half_life], dtype=torch.float64)
        return {"popularity": torch.from_numpy(self.popularity.copy()), "decay": scale}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.popularity = tensors["popularity"].numpy().copy()
        self._scale, self.half_life = tensors["decay"].tolist()

    def backed_off(self, scores: NDArray[np.float32]) -> Tensor:
        """Scores (B, V) with popularity far below them and without the unknown item."""
        scores += (_BACK_OFF * self.popularity / max(self.popularity.max(), 1.0)).astype(np.float32)
        scores[:, UNKNOWN_ROW] = -np.inf
        return torch.from_numpy(scores)


class Popularity(RecentItems):
    """The most frequent items for everybody, old events weighing less where that helps.

    Args:
        items: V.
        half_life: Events after which an event weighs half; 0 does not decay.

    Example:
        >>> model = Popularity(4)
        >>> model.learn(torch.zeros(3, 1), np.zeros(3, np.int64), np.array([2, 3, 3]))
        >>> model.scores(model.initial_state(1)).argmax(1).tolist()
        [3]
    """

    name: ClassVar[str] = "popularity"

    def __init__(self, items: int, half_life: float = 0.0) -> None:
        super().__init__(items, 1, half_life)

    def fit(self, lesson: Lesson) -> None:
        self.count(lesson)

    def learn(
        self,
        queries: Tensor,
        users: NDArray[np.int64],
        rows: NDArray[np.int64],
        gaps_seconds: NDArray[np.int64] | None = None,
    ) -> None:
        del queries, users, gaps_seconds
        self.note(rows)

    def item_scores(self, queries: Tensor) -> Tensor:
        scores = np.repeat(self.popularity[None].astype(np.float32) / np.float32(self._scale), len(queries), axis=0)
        scores[:, UNKNOWN_ROW] = -np.inf
        return torch.from_numpy(scores)


class SkipMarkov(RecentItems):
    """What followed the user's latest items, within some distance, nearer ones weighing more.

    A pair of items at distance d adds 1 / d to its count. The i-th latest item votes with weight 1 / i.

    Args:
        items: V.
        latest: L, items that vote.
        farthest: Largest distance counted.
    """

    name: ClassVar[str] = "skip-markov"

    def __init__(self, items: int, latest: int = _LATEST, farthest: int = _FARTHEST) -> None:
        super().__init__(items, max(latest, farthest))  # the state must reach as far as learning does
        self.latest, self.farthest = latest, farthest
        self.counts = PairCounts(items)
        self._factors = (1 / np.arange(1, latest + 1)).astype(np.float32)

    def fit(self, lesson: Lesson) -> None:
        self.counts = PairCounts(self.items)
        self.count(lesson)
        for distance in range(1, self.farthest + 1):
            for sources, targets in _pairs(lesson.past, distance):
                self.counts.add(sources, targets, np.full(len(sources), 1 / distance, np.float32))
            lesson.report(distance / self.farthest, f"{self.counts.size:,} pairs")

    def learn(
        self,
        queries: Tensor,
        users: NDArray[np.int64],
        rows: NDArray[np.int64],
        gaps_seconds: NDArray[np.int64] | None = None,
    ) -> None:
        del users, gaps_seconds
        latest = queries.numpy().astype(np.int64)[:, : self.farthest]  # (E, farthest)
        weights = (1 / np.arange(1, latest.shape[1] + 1)).astype(np.float32)
        self.counts.add(latest.ravel(), np.repeat(rows, latest.shape[1]), np.tile(weights, len(rows)))
        self.note(rows)

    def item_scores(self, queries: Tensor) -> Tensor:
        rows = queries.numpy().astype(np.int64)[:, : self.latest]
        return self.backed_off(self.counts.sums(rows, self._factors))

    def settings(self) -> dict[str, Any]:
        return {"items": self.items, "latest": self.latest, "farthest": self.farthest}

    def tensors(self) -> dict[str, Tensor]:
        pairs, weights = self.counts.pairs()
        return {**super().tensors(), "pairs": torch.from_numpy(pairs), "weights": torch.from_numpy(weights)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        super().restore(tensors)
        pairs = tensors["pairs"].numpy().astype(np.int64)
        self.counts = PairCounts(self.items)
        self.counts.add(pairs[:, 0], pairs[:, 1], tensors["weights"].numpy())


class Markov(SkipMarkov):
    """What most often came right after the user's last item (first-order Markov chain), then popularity.

    Args:
        items: V.

    Example:
        >>> model = Markov(4)
        >>> model.learn(torch.tensor([[0.0], [1.0], [1.0]]), np.zeros(3, np.int64), np.array([1, 3, 3]))
        >>> model.scores(torch.tensor([[1.0]])).argmax(1).tolist()
        [3]
    """

    name: ClassVar[str] = "markov"

    def __init__(self, items: int) -> None:
        super().__init__(items, latest=1, farthest=1)

    def settings(self) -> dict[str, Any]:
        return {"items": self.items}


def _pairs(past: Histories, distance: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Item rows at a distance within one user's history: sources and targets, in slices."""
    position = np.arange(len(past)) - np.repeat(past.starts[:-1], np.diff(past.starts))
    after = np.flatnonzero(position >= distance)
    parts = np.split(after, range(_SLICE, len(after), _SLICE))
    return [(past.items[part - distance].astype(np.int64), past.items[part].astype(np.int64)) for part in parts]
