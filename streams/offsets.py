"""Which offset is safe to commit: the end of the acknowledged prefix of each partition.

Batches of one partition are delivered in order and may be acknowledged in any order. Committing the highest
acknowledged offset would lose whatever is still in flight below it when the process dies, so only the unbroken run of
acknowledged batches at the front of the queue counts.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar


class Ackable(Protocol):
    """Anything that says whether it was acknowledged; `faust.types.Message` does."""

    acked: bool


_Message = TypeVar("_Message", bound=Ackable)
_Partition = tuple[str, int]  # (topic, partition); equal and hash-equal to Faust's and aiokafka's named tuples


class OffsetTracker:
    """In-flight messages of every assigned partition, in delivery order.

    A message is recognised by identity: acknowledging an older delivery of the same offsets (from before a rebalance or
    a seek) changes nothing. All methods belong to one thread, the event loop's; `acked` may be set from any.

    Example:
        >>> from types import SimpleNamespace
        >>> first, second = SimpleNamespace(acked=False), SimpleNamespace(acked=True)
        >>> tracker = OffsetTracker()
        >>> tracker.track(("clicks", 0), first, next_offset=500)
        >>> tracker.track(("clicks", 0), second, next_offset=800)
        >>> tracker.committable(("clicks", 0)) is None  # the first batch is still in flight
        True
        >>> first.acked = True
        >>> tracker.committable(("clicks", 0))
        800
    """

    def __init__(self) -> None:
        self._in_flight: dict[_Partition, deque[tuple[Ackable, int]]] = {}
        self._end: dict[_Partition, int] = {}
        self._sealed = False

    def track(self, partition: _Partition, message: Ackable, next_offset: int) -> None:
        """Remember a message before it is delivered; `next_offset` is the position after it."""
        if not self._sealed:
            self._in_flight.setdefault(partition, deque()).append((message, next_offset))

    def skip(self, partition: _Partition, next_offset: int) -> None:
        """The log holds nothing to deliver up to `next_offset` (transaction markers, aborted or compacted records).

        Consumed together with the message before it, or at once when nothing is in flight.
        """
        if self._sealed:
            return
        queue = self._in_flight.get(partition)
        if queue:
            message, _ = queue[-1]
            queue[-1] = (message, next_offset)
        else:
            self._end[partition] = next_offset

    def committable(self, partition: _Partition) -> int | None:
        """End of the acknowledged prefix: the next offset to read after a restart, None while there is none."""
        queue = self._in_flight.get(partition)
        while queue and queue[0][0].acked:
            self._end[partition] = queue.popleft()[1]
        return self._end.get(partition)

    def seal(self, was_taken: Callable[[Ackable], bool]) -> None:
        """Stop tracking before partitions are handed over: only messages somebody already took can still be committed.

        Everything from the first message not taken on is forgotten, whatever acknowledges it later: stream iterators
        acknowledge messages they discard while the flow is suspended.
        """
        self._sealed = True
        for queue in self._in_flight.values():
            kept = next((index for index, (message, _) in enumerate(queue) if not was_taken(message)), len(queue))
            while len(queue) > kept:
                queue.pop()

    def clear(self) -> None:
        """Forget everything: positions are about to be set anew from the committed offsets."""
        self._in_flight.clear()
        self._end.clear()
        self._sealed = False

    def in_flight(self, partition: _Partition) -> int:
        """Messages delivered and not yet part of the acknowledged prefix."""
        return len(self._in_flight.get(partition, ()))

    def partitions(self) -> Iterator[_Partition]:
        """Partitions with anything to say."""
        return iter(set(self._in_flight) | set(self._end))
