"""Event kinds and the input topics they arrive on (an event's kind is its topic)."""

from dataclasses import dataclass
from itertools import compress
from typing import Final

import numpy as np
from numpy.typing import NDArray

KINDS: Final = ("click", "view", "purchase")
TOPICS: Final = ("clicks", "views", "purchases")
CLICK, VIEW, PURCHASE = range(3)
KIND_OF_TOPIC: Final = {topic: kind for kind, topic in enumerate(TOPICS)}


@dataclass(frozen=True, slots=True)
class EventBatch:
    """E valid events, field by field, those of one partition number together and in the order they are to be applied.

    Events of one topic-partition stand in offset order.

    Attributes:
        users: (E) user ids.
        items: (E) item ids.
        kinds: (E,) index into `KINDS`, which also names the topic.
        times_ms: (E,) event times.
        offsets: (E,) offsets on the kind's topic.
        touched_ms: (E,) Kafka timestamps.
    """

    users: list[str]
    items: list[str]
    kinds: NDArray[np.uint8]
    times_ms: NDArray[np.int64]
    offsets: NDArray[np.int64]
    touched_ms: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.users)

    def take(self, mask: NDArray[np.bool_]) -> "EventBatch":
        """The events of a mask (E,)."""
        columns = (self.kinds[mask], self.times_ms[mask], self.offsets[mask], self.touched_ms[mask])
        return EventBatch(list(compress(self.users, mask)), list(compress(self.items, mask)), *columns)
