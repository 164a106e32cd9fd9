"""Decayed popularity: what a worker recommends before it has a model, and what every model must beat.

Forward decay (Cormode, Shkapenyuk, Srivastava, Xu: "Forward decay: a practical time decay model for streaming systems",
ICDE 2009): an event at time t adds 2^((t - landmark) / half-life), so older counts need no touching and events may come
in any order.
"""

from typing import Final

import numba as nb
import numpy as np
from numpy.typing import NDArray

_MAX_EXPONENT: Final = 60.0  # 2^60 is where the landmark moves, far from the limits of a float64
_REFRESH_SHARE: Final = 64  # the list is sorted anew after (items / 64) events: constant work per event


class DecayedPopularity:
    """Decayed event counts by item number, and the current best list.

    Attributes:
        place_of: place of an item number in the list `top` last returned, 0 = best, a huge number when it is not in it;
            numbers beyond the array are not in the list, as the last entry says.

    >>> popularity = DecayedPopularity(half_life_ms=1000.0)
    >>> popularity.learn(np.array([1, 1, 2], np.int32), np.array([0, 0, 5000]))
    >>> popularity.top(2)[0].tolist()
    [2, 1]
    """

    def __init__(self, half_life_ms: float) -> None:
        self._half_life_ms = half_life_ms
        self._landmark_ms: int | None = None
        self._weights = np.zeros(1024)
        self._total = 0.0
        self._seen = 1  # numbers below this one may have a weight
        self._since_sort = 0
        self._sorted: NDArray[np.int32] = np.zeros(0, np.int32)
        self._shares: NDArray[np.float32] = np.zeros(0, np.float32)
        self.place_of = np.full(1024, np.iinfo(np.int32).max, np.int32)
        self._sorted_for = -1  # items the list was asked for; -1 when it has to be sorted anew
        self._blocked = np.zeros(1024, np.bool_)  # by item number, as long as the weights at least
        self._blocked_items = 0

    def learn(self, items: NDArray[np.int32], times_ms: NDArray[np.int64]) -> None:
        """Count events (E,) at their times."""
        if not len(items):
            return
        if self._landmark_ms is None:
            self._landmark_ms = int(times_ms[0])
        newest = int(times_ms.max())
        if newest - self._landmark_ms > _MAX_EXPONENT * self._half_life_ms:
            fade = float(np.exp2(-(newest - self._landmark_ms) / self._half_life_ms))
            self._weights *= fade
            self._total *= fade
            self._landmark_ms = newest
        highest = int(items.max())
        if highest + 1 >= len(self._weights):  # the last entry stays empty, for items that `place_of` does not reach
            self._weights = np.concatenate([self._weights, np.zeros(max(len(self._weights), highest + 2))])
            places = np.full(len(self._weights), np.iinfo(np.int32).max, np.int32)
            places[: len(self.place_of)] = self.place_of
            self.place_of = places
            self._reserve_blocked(len(self._weights))
        self._total += _add(items, times_ms, self._landmark_ms, 1.0 / self._half_life_ms, self._weights)
        self._seen = max(self._seen, highest + 1)
        self._since_sort += len(items)

    def block(self, item: int, blocked: bool) -> None:
        """Leave an item out of the lists to come, or let it in again; it is counted meanwhile."""
        self._reserve_blocked(item + 1)
        if self._blocked[item] != blocked:
            self._blocked[item] = blocked
            self._blocked_items += 1 if blocked else -1
            self._sorted_for = -1

    @property
    def blocked(self) -> NDArray[np.int32]:
        """Numbers of the items left out, ascending."""
        return np.flatnonzero(self._blocked).astype(np.int32)

    def top(self, count: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """The best `count` item numbers (fewer while fewer are known) and their shares of all events, best first.

        Both are as of the last sorting; they are sorted anew after (items / 64) events and when an item is blocked.
        """
        if self._since_sort * _REFRESH_SHARE >= self._seen or count != self._sorted_for:
            weights = self._weights[: self._seen]
            if self._blocked_items:  # out before the list is cut: no event pays for how many they are
                weights = np.where(self._blocked[: self._seen], 0.0, weights)
            order = np.argsort(-weights, kind="stable") if self._seen <= 4 * count else _partial_sort(weights, count)
            self.place_of[self._sorted] = np.iinfo(np.int32).max
            self._sorted = order[weights[order] > 0][:count].astype(np.int32)
            self.place_of[self._sorted] = np.arange(len(self._sorted), dtype=np.int32)
            self._shares = (self._weights[self._sorted] / max(self._total, 1e-300)).astype(np.float32)
            self._since_sort, self._sorted_for = 0, count
        return self._sorted, self._shares

    def places(self, items: NDArray[np.int32]) -> NDArray[np.int32]:
        """Place of each item, any shape, in the list `top` last returned: 0 = best, a huge number when not in it."""
        return self.place_of.take(items, mode="clip") if items.size else np.zeros(items.shape, np.int32)

    def _reserve_blocked(self, items: int) -> None:
        if items > len(self._blocked):
            more = max(len(self._blocked), items - len(self._blocked))
            self._blocked = np.concatenate([self._blocked, np.zeros(more, np.bool_)])


@nb.njit(cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _add(
    items: NDArray[np.int32],
    times_ms: NDArray[np.int64],
    landmark_ms: int,
    rate: float,  # halvings per ms
    weights: NDArray[np.float64],
) -> float:
    """Add every event's weight to its item's; returns their sum."""
    total = 0.0
    for e in range(items.shape[0]):
        added = 2.0 ** ((times_ms[e] - landmark_ms) * rate)
        weights[items[e]] += added
        total += added
    return total


def _partial_sort(weights: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    best = np.argpartition(-weights, count)[: count + 1]
    return best[np.lexsort((best, -weights[best]))]
