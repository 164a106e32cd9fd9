"""An event log as the quality benchmarks use it: plain arrays and dense numbers in order of first appearance.

Letters: N events of the log, V items, U users.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from models.tables import Events
from state.events import EventBatch


@dataclass(frozen=True, slots=True)
class Log:
    """A log in time order.

    Attributes:
        user_ids: (N)
        item_ids: (N)
        users: (N,) dense numbers, 0, 1, ... in order of first appearance.
        items: (N,) the same: an event is the first one of its item exactly when its number equals `seen`.
        kinds: (N,) event kinds.
        times_ms: (N,) event times.
        seen: (N,) how many items had appeared before each event: the candidates.
    """

    user_ids: list[str]
    item_ids: list[str]
    users: NDArray[np.int32]
    items: NDArray[np.int32]
    kinds: NDArray[np.uint8]
    times_ms: NDArray[np.int64]
    seen: NDArray[np.int64]

    @classmethod
    def of(cls, events: Events) -> "Log":
        """The log of a table that is in time order, its times as `recstream replay` sends them."""
        events = events.apart()
        users, items = _dense(events.users), _dense(events.items)
        seen = np.concatenate([np.zeros(1, np.int64), np.maximum.accumulate(items[:-1]) + 1])[: len(items)]
        kinds, times_ms = events.kinds, events.times_ms
        return cls(events.users.to_list(), events.items.to_list(), users, items, kinds, times_ms, seen)

    def __len__(self) -> int:
        return len(self.kinds)

    @property
    def half(self) -> int:
        """Position of the first event that counts: figures are means over the last 50% of the events."""
        return len(self) // 2

    def batch(self, start: int, stop: int) -> EventBatch:
        """Events `start` to `stop` as the stream hands them to a recommender; positions in the log are the offsets."""
        positions = np.arange(start, min(stop, len(self)), dtype=np.int64)
        at = slice(start, stop)
        return EventBatch(
            self.user_ids[at], self.item_ids[at], self.kinds[at], self.times_ms[at], positions, self.times_ms[at]
        )


def _dense(ids: pl.Series) -> NDArray[np.int32]:
    """Numbers of ids (N,) in order of first appearance."""
    first = ids.unique(maintain_order=True)
    numbers = ids.replace_strict(first, np.arange(len(first), dtype=np.int32), return_dtype=pl.Int32)
    return np.ascontiguousarray(numbers.to_numpy(), np.int32)
