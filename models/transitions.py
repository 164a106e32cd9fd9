"""Which item follows which: a bounded, decayed, sparse memory that learns from every event at once, without a gradient.

Every item has one row of W successors. An event of item j after a user's items h1, h2, ... (newest first) adds 1/d to
"h_d is followed by j" for d up to 6 (a skip-Markov chain), and for d up to 5 it also adds 1/d to the reverse
direction in j's own row: people go back and forth between alternatives. Item number 0 stands for "no item yet", so its
row holds the first items of users. A second, hashed table counts what followed a pair of items (h2, h1).

What the rows are made of and how they stay bounded is told in `models.transition_rows`.

Letters: C items the arrays have room for, W row width, N (from, to) pairs, P places of the pair table.
References: Shani, Heckerman, Brafman, "An MDP-based recommender system", JMLR 2005 (skipping transitions).
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.kernels import grown
from models.transition_log import add_up
from models.transition_rows import PAIR_WIDTH, SKIP, TransitionArrays, learn_many, merge_pairs


class Deltas(NamedTuple):
    """What one process learnt since its last export, for others to merge; each (from, to) pair once."""

    before: NDArray[np.int32]  # (N,) item numbers, 0 = start
    after: NDArray[np.int32]  # (N,)
    weights: NDArray[np.float32]  # (N, 3) skip, adjacent, back


class Transitions:
    """Bounded memory of item transitions, by item number.

    Args:
        capacity: items to make room for at first; grows by doubling.
        slots: bound on the successors remembered in all. Rows are as wide as it allows, 16 to 128, and get narrower as
            the catalogue grows (20 bytes a slot: the default takes at most 84 MB up to 262,144 items).
        pair_places: places of the pair table, a power of two (72 bytes each).
        log_size: transitions kept for the next export; 0 turns sharing off.

    Example:
        >>> memory = Transitions(capacity=16)
        >>> memory.learn(np.array([[7, 5]], np.int32), np.array([2], np.int32), np.array([9], np.int32))
        >>> memory.successors(7), memory.successors(5)
        ({9: 1.0}, {9: 0.5})
    """

    def __init__(
        self, capacity: int = 1024, slots: int = 1 << 22, pair_places: int = 1 << 17, log_size: int = 1 << 18
    ) -> None:
        self.slots = slots
        width = self._width(capacity)
        self.arrays = TransitionArrays(
            items=np.zeros((capacity, width), np.int32),
            strength=np.zeros((capacity, width), np.float32),
            counts=np.zeros((capacity, width, 3), np.float32),
            totals=np.zeros((capacity, 3), np.float32),
            used=np.zeros(capacity, np.int32),
            hand=np.zeros(capacity, np.int32),
            pair_tag=np.zeros(pair_places, np.uint32),
            pair_items=np.zeros((pair_places, PAIR_WIDTH), np.int32),
            pair_counts=np.zeros((pair_places, PAIR_WIDTH), np.float32),
            pair_total=np.zeros(pair_places, np.float32),
            draws=np.zeros(1, np.uint32),
            log=np.zeros((log_size, 3), np.int32),
            logged=np.zeros(2, np.int64),
        )

    def _width(self, capacity: int) -> int:
        return int(min(max(1 << (max(self.slots // capacity, 1).bit_length() - 1), 16), 128))

    @property
    def capacity(self) -> int:
        """C: item numbers below it have a row."""
        return len(self.arrays.used)

    def reserve(self, capacity: int) -> None:
        """Make room for item numbers below ``capacity``; rows that get narrower keep their strongest slots."""
        if capacity <= self.capacity:
            return
        arrays, width = self.arrays, self._width(capacity)
        items, strength, counts = arrays.items, arrays.strength, arrays.counts
        if width < items.shape[1]:
            order = np.argsort(-strength, axis=1, kind="stable")[:, :width]
            items = np.take_along_axis(items, order, axis=1)
            strength = np.take_along_axis(strength, order, axis=1)
            counts = np.take_along_axis(counts, order[:, :, None], axis=1)
        self.arrays = arrays._replace(
            items=grown(items, capacity),
            strength=grown(strength, capacity),
            counts=grown(counts, capacity),
            totals=grown(arrays.totals, capacity),
            used=grown(np.minimum(arrays.used, width).astype(np.int32), capacity),
            hand=grown(arrays.hand, capacity),
        )

    def learn(self, histories: NDArray[np.int32], lengths: NDArray[np.int32], items: NDArray[np.int32]) -> None:
        """Learn events in order.

        Args:
            histories: (E, X) the users' item numbers before each event, newest first.
            lengths: (E,) how many of them there are.
            items: (E,) the items that came; 0 is skipped.
        """
        if not len(items):
            return
        self._make_room(max(int(items.max()), int(histories.max(initial=0))))
        learn_many(self.arrays, histories, lengths, items)

    def _make_room(self, largest: int) -> None:
        if largest >= self.capacity:
            self.reserve(1 << int(largest).bit_length())

    def successors(self, item: int) -> dict[int, float]:
        """What followed an item, and with which skip weight."""
        row = slice(0, int(self.arrays.used[item]))
        weights = self.arrays.counts[item, row, SKIP]
        return {int(i): float(w) for i, w in zip(self.arrays.items[item, row], weights, strict=True) if w > 0}

    def export(self) -> Deltas:
        """What was learnt since the last export (merged deltas of others are not part of it)."""
        arrays = self.arrays
        logged = int(arrays.logged[0])
        before, after = np.empty(logged, np.int32), np.empty(logged, np.int32)
        weights = np.zeros((logged, 3), np.float32)
        places = np.full(1 << (2 * logged).bit_length(), -1, np.int32)
        pairs = add_up(arrays.log, logged, places, before, after, weights)
        arrays.logged[:] = 0
        return Deltas(before[:pairs], after[:pairs], weights[:pairs])

    def merge(self, deltas: Deltas) -> None:
        """Add what another process learnt, its item numbers translated to this one's; 0 as ``after`` is skipped."""
        if len(deltas.before):
            self._make_room(max(int(deltas.before.max()), int(deltas.after.max())))
            merge_pairs(self.arrays, deltas.before, deltas.after, deltas.weights)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Everything learnt, as arrays to store."""
        return {name: value.copy() for name, value in self.arrays._asdict().items()}

    def load_arrays(self, stored: dict[str, NDArray[Any]]) -> None:
        """Continue from what `to_arrays` gave."""
        self.arrays = TransitionArrays(**{name: stored[name].copy() for name in TransitionArrays._fields})
