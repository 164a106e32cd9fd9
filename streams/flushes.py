"""Flushes: what the rounds have done becomes durable, then is acknowledged.

    outputs acknowledged -> changelog of every changed user acknowledged -> source events acknowledged

Why in this order: see `streams.pipeline`. Snapshots follow, and no flush waits for them (`streams.snapshots`).
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from typing import Any, Final

from state.errors import StateError
from streams.consumer import Membership
from streams.metrics import Metrics
from streams.output import Output
from streams.partition import Flushed, Partition
from streams.settings import Settings
from streams.snapshots import Snapshots
from streams.steady_clock import SteadyClock
from streams.topics import CHANGELOG

_EXPIRE_EVERY_SECONDS: Final = 60.0
_CLOCK_JUMP_SECONDS: Final = 3600.0  # what the clock may be set ahead by, a tenth of the time to live at most
_MEMBERSHIP_POLL_SECONDS: Final = 0.05
_MOST_WRITTEN_AGAIN: Final = 3  # in a worker's life: each needs a worker suspended within milliseconds

log = logging.getLogger(__name__)


class Flushes:
    """When the next flush is due, what it has to acknowledge, and the one under way.

    Any failure to write comes out of `settled`, before the events concerned are acknowledged.

    Attributes:
        processed: events whose effects wait for a flush.
        snapshots: local snapshots of what was flushed.

    Args:
        settings: all settings.
        metrics: where to count.
        changelog_id: which changelog local snapshots belong to.
        membership: whether the group still knows this worker.
    """

    def __init__(
        self, settings: Settings, metrics: Metrics, changelog_id: str, membership: Callable[[], Membership]
    ) -> None:
        self._settings, self._metrics, self._membership = settings, metrics, membership
        self.snapshots = Snapshots(settings, metrics, changelog_id, membership)
        self._output = Output(settings)  # a connection of its own: recommendations do not wait behind a flush
        self._under_way: asyncio.Task[None] | None = None
        self._tenure = 0  # counts how often everything was forgotten
        self._written_again = 0
        self._flushed_at = self._expired_at = time.monotonic()
        self._clock = SteadyClock(min(_CLOCK_JUMP_SECONDS, settings.user_ttl_days * 86_400 / 10))
        self.processed: list[Any] = []

    async def start(self) -> None:
        """Connect the changelog's producer."""
        await self._output.start((CHANGELOG,))

    async def stop(self) -> None:
        """Disconnect it."""
        await self._output.stop()

    @property
    def due_in_seconds(self) -> float:
        """Until the next flush; 0 when it is due."""
        return max(0.0, self._flushed_at + self._settings.commit_interval_seconds - time.monotonic())

    def plan(self) -> tuple[float, int | None]:
        """Begin a flush.

        Returns:
            When it began (monotonic), and since when users must have been touched (epoch ms) not to expire now; None
            expires nobody.
        """
        self._flushed_at = now = time.monotonic()
        ttl_days, expire_before = self._settings.user_ttl_days, None
        if ttl_days and now >= self._expired_at + min(_EXPIRE_EVERY_SECONDS, ttl_days * 86_400 / 4):
            self._expired_at = now
            expire_before = int(self._clock.seconds() * 1000 - ttl_days * 86_400_000)
        return now, expire_before

    def take_events(self) -> list[Any]:
        """The events whose effects the captures that follow hold."""
        events, self.processed = self.processed, []
        return events

    def begin(
        self, outputs: list["asyncio.Future[Any]"], flushed: list[Flushed], events: list[Any], started: float
    ) -> None:
        """Make captures durable in the background, once outputs are, and acknowledge events."""
        self.snapshots.begin(flushed)
        if events or any(part.batches or part.snapshot or part.erased for part in flushed):
            self._under_way = asyncio.create_task(self._finish(outputs, flushed, events, started, self._tenure))

    async def settled(self) -> None:
        """Wait for the flush under way.

        Raises:
            Exception: what made it fail.
        """
        if self._under_way is not None:
            await self._under_way
            self._under_way = None

    def forget(self) -> None:
        """Acknowledge nothing of what was processed, nor write state for it: others hold the partitions."""
        self._tenure += 1
        self.processed = []
        self.snapshots.forget()

    def rest(self) -> None:
        """The next flush is a whole interval away."""
        self._flushed_at = time.monotonic()

    async def _finish(
        self,
        outputs: list["asyncio.Future[Any]"],
        flushed: list[Flushed],
        events: list[Any],
        started: float,
        tenure: int,
    ) -> None:
        await asyncio.gather(*outputs)
        if not await self._still_ours(tenure):
            self.snapshots.give_up(flushed)
            return  # the next owner has these events; a record written now would hide its newer one
        sent = [
            (part.partition, self._output.send(CHANGELOG, part.partition.number, encoded), encoded.record_count())
            for part in flushed
            for encoded in part.batches
        ]
        await asyncio.gather(*(future for _, future, _ in sent))
        if not await self._still_ours(tenure):
            self.snapshots.give_up(flushed)
            return  # they may have landed behind the next owner's, which a snapshot as new as them would lack
        overwritten = [part for part, future, count in sent if _advance(part, future.result().offset, count)]
        if overwritten:
            self._write_again(overwritten)
            self.processed = events + self.processed  # a crash before that flush repeats them
        else:
            for event in events:
                event.ack()
        self._metrics.flushes.inc()
        self._metrics.changelog_records.inc(sum(part.records for part in flushed))
        self._metrics.expired.inc(sum(part.expired for part in flushed))
        self._metrics.flush_seconds.set(time.monotonic() - started)
        foreign = {partition.number for partition in overwritten}
        self.snapshots.give_up(part for part in flushed if part.partition.number in foreign)
        for part in flushed:
            if part.partition.number not in foreign:
                self.snapshots.acknowledged(part)

    def _write_again(self, partitions: list[Partition]) -> None:
        """Let the next flush write every user of partitions whose changelog another worker wrote to.

        A worker that was suspended between its check of membership and its write wakes up and writes what it had held,
        of users that are this worker's by now. What is here is right: it holds the partition and began at the committed
        offsets, which nothing of the other's had moved.

        Raises:
            StateError: it happens again and again (two groups share a changelog), or users in the cold store may be
                concerned.
        """
        self._written_again += 1
        for partition in {part.number: part for part in partitions}.values():
            if self._written_again > _MOST_WRITTEN_AGAIN or partition.store.cold:
                what = f"another worker wrote to the changelog of partition {partition.number}"
                fix = "start the worker again; if it goes on, look for workers with another RECSTREAM_APP_ID"
                raise StateError(what, "two workers believe to hold it", fix)
            log.warning("Another worker wrote to the changelog of partition %d: writing it again", partition.number)
            partition.rewrite = True
        self._flushed_at = -math.inf

    async def _still_ours(self, tenure: int) -> bool:
        """Whether the partitions are this worker's; waits until the group has said so after a suspension."""
        while tenure == self._tenure:
            membership = self._membership()
            if membership != "unsure":
                return membership == "held"
            await asyncio.sleep(_MEMBERSHIP_POLL_SECONDS)
        return False


def _advance(partition: Partition, offset: int, count: int) -> bool:
    """Note that `count` changelog records were written at `offset`; returns whether others stand before them.

    Raises:
        StateError: the changelog is shorter than it was.
    """
    expected = partition.changelog_next
    if 0 <= offset < expected:  # -1: a retried batch whose place the broker forgot
        what = f"the changelog of partition {partition.number} goes on at {offset}, not at {expected}"
        fix = "start the worker again: it restores what is in the changelog"
        raise StateError(what, "the topic was emptied or replaced", fix)
    partition.changelog_next = max(offset, expected) + count
    return offset > expected
