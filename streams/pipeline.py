"""The pipeline: rounds of compute, outputs sent at once, and the flush that makes everything durable, in that order.

    round    take what is waiting -> compute (in its thread) -> per partition: send recommendations, dead letters
    flush    outputs so far acknowledged -> changelog of every changed user acknowledged -> source events acknowledged
             -> Faust commits their offsets

The order of a flush is the delivery guarantee: a state record says which offsets it includes, and the events behind
them are skipped when they come again, so their recommendations must be safe before the record is. A crash in between
repeats recommendations (at least once), never state (effectively once).
"""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final, TypeVar

from mode import Service

from models.recommend import Recommender
from models.serving import ServingModel
from state.pseudonyms import Pseudonyms
from streams.compute import Compute
from streams.consumer import Membership
from streams.deadletters import dead_letter, encode_dead_letters
from streams.erasures import Erasures
from streams.fetch import RecordBatch
from streams.flushes import Flushes
from streams.held import Held
from streams.metrics import Metrics
from streams.output import Output
from streams.partition import Partition, flush_partition
from streams.record_batch import EncodedBatch
from streams.restore import Restored, restore
from streams.settings import Settings
from streams.topics import FORGET_USERS, FORGOTTEN_USERS, INVALID_EVENTS, RECOMMENDATIONS
from streams.transport import take

_T = TypeVar("_T")
READY: Final = "ready"
_MAX_WAITING: Final = 4  # fetches between the agents and the pipeline
_HOP_EVENTS: Final = 1024  # computed at once, 15 ms: the loop sends their recommendations before it goes on
_COPY_PAUSE_SECONDS: Final = 0.001  # between two pieces of a snapshot when no event comes
_STOP_SECONDS: Final = 20.0  # most for snapshots: half of what a worker has to stop, see `streams.worker`
_LAST_TURN_SECONDS: Final = 2.0  # most for what computes when everything is durable already
_INLINE_EVENTS: Final = 32  # computed on the event loop, under 1 ms: two thread switches can take longer

log = logging.getLogger(__name__)


class Pipeline(Service):  # type: ignore[misc]
    """Advances users and answers events of the partitions this worker holds.

    Guarantee: every event is applied exactly once to its user's state and answered at least once, or stands in
    `invalid-events`. Any failure to write crashes the worker before the events concerned are acknowledged.

    Attributes:
        membership: whether the group still knows this worker; `held` until told otherwise.
        pseudonyms: the names users' state is kept under.

    Args:
        settings: all settings.
        recommender: models and item numbers.
        metrics: where to count.
        changelog_id: which changelog local snapshots belong to.
        index: number of this worker on its host: each has a cold store of its own.
    """

    def __init__(
        self,
        settings: Settings,
        recommender: Recommender,
        metrics: Metrics,
        changelog_id: str = "",
        index: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.settings, self.recommender, self.metrics = settings, recommender, metrics
        self.pseudonyms = Pseudonyms(settings.pseudonym_key.get_secret_value())
        key = self.pseudonyms.fingerprint
        self._changelog_id = f"{changelog_id}#{key:08x}" if key else changelog_id  # no snapshot of another key fits
        self._held = Held(settings, recommender, metrics, self.pseudonyms, index)
        self.ready = False
        self.progressed_at = time.monotonic()
        self._compute = Compute(recommender, metrics, settings.max_event_bytes, self.pseudonyms)
        self._output = Output(settings)
        self._flushes = Flushes(settings, metrics, self._changelog_id, lambda: self.membership())  # noqa: PLW0108 - set later
        self._snapshots = self._flushes.snapshots
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self._waiting: asyncio.Queue[Any] = asyncio.Queue(_MAX_WAITING)
        self._arrived = asyncio.Event()
        self._turn = asyncio.Lock()
        self._applied = 0  # events since the last flush began: no fewer than users changed
        self._failure: Exception | None = None  # what ended a round: its events may be in the state and not answered
        self.membership: Callable[[], Membership] = lambda: "held"
        metrics.ready.set_function(lambda: self.status == READY)

    @property
    def partitions(self) -> dict[int, Partition]:
        """Those this worker holds, by number."""
        return self._held.partitions

    @property
    def status(self) -> str:
        """How it is, for people; `READY` while events that come now are answered."""
        if not self.ready:
            return "restoring or rebalancing"
        return READY if self.membership() == "held" else "no answer from Kafka"

    # -- life

    async def on_start(self) -> None:
        """Connect the producer."""
        await self._output.start((RECOMMENDATIONS, INVALID_EVENTS, FORGOTTEN_USERS))
        await self._flushes.start()

    async def on_stop(self) -> None:
        """Disconnect; everything worth keeping was flushed when the partitions were handed over."""
        self.ready = False
        with suppress(TimeoutError):  # a round or a flush may have begun; one that waits for a broker is not waited for
            await asyncio.wait_for(self._turn.acquire(), _LAST_TURN_SECONDS)  # for good: no other may begin
        await self._output.stop()
        await self._flushes.stop()
        self._thread.shutdown()
        if await self._snapshots.stop():
            self._held.close()

    @property
    def waiting(self) -> bool:
        """Whether records wait to be processed."""
        return not self._waiting.empty()

    async def in_thread(self, work: Callable[..., _T], *args: Any) -> _T:
        """Run `work` in the compute thread, between two rounds."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)

    async def put(self, event: Any) -> None:
        """Take a Faust event that holds a fetch's batches; acknowledged once its effects are durable."""
        await self._waiting.put(event)
        self._arrived.set()

    async def between_rounds(self, work: Callable[..., _T], *args: Any) -> _T:
        """Run `work`, which may change what is computed with, while no round is under way."""
        async with self._turn:
            return await self.in_thread(work, *args)

    async def swap(self, model: ServingModel) -> None:
        """Serve another model version from the next round on."""
        await self.between_rounds(self.recommender.swap, model)

    async def send(self, topic: str, partition: int, batch: EncodedBatch) -> "asyncio.Future[Any]":
        """Write a batch of another service, waiting while too much is unacknowledged.

        Returns:
            Done when the broker has acknowledged it.
        """
        await self._output.know(topic)
        acknowledged = self._output.send(topic, partition, batch)
        await self._output.room()
        return acknowledged

    # -- rounds

    @Service.task  # type: ignore[untyped-decorator]
    async def _run(self) -> None:
        while not self.should_stop:
            with suppress(TimeoutError):
                idle_seconds = _COPY_PAUSE_SECONDS if self._snapshots.copying else self._flushes.due_in_seconds
                await asyncio.wait_for(self._arrived.wait(), idle_seconds)
            if self.should_stop:
                break  # stopping may have to wait for a disk
            async with self._turn:
                await self._round()
                self._output.check()
                if not self._flushes.due_in_seconds or self._many_changed:
                    await self._flush()
                if self._snapshots.copying:
                    await self._snapshots.copy_some(self.in_thread)

    async def _round(self) -> None:
        """Process everything that waits: a hop to the compute thread for about a thousand events, none for a few."""
        self._arrived.clear()
        events = []
        while not self._waiting.empty():
            events.append(self._waiting.get_nowait())
        groups: dict[int, list[RecordBatch]] = {}
        for event in events.copy():
            taken = take(event)
            if taken[0].topic == FORGET_USERS:  # always alone; erased before anything else of the round is applied
                events.remove(event)
                await self._erase(event, taken[0])
                continue
            for batch in taken:
                groups.setdefault(batch.partition, []).append(batch)
        work: list[tuple[Partition, list[RecordBatch]]] = []
        size = 0
        for number, batches in groups.items():
            partition = self.partitions.get(number)
            if partition is None:  # it left while the event waited: its next owner gets the same records
                log.debug("Dropped records of partition %d, which this worker no longer holds", number)
                continue
            work.append((partition, batches))
            size += sum(map(len, batches))
            if size >= _HOP_EVENTS:
                await self._produce(work, size)
                work, size = [], 0
        if work:
            await self._produce(work, size)
        self._flushes.processed += events
        self.progressed_at = time.monotonic()

    async def _produce(self, work: list[tuple[Partition, list[RecordBatch]]], size: int) -> None:
        try:
            produced = (
                self._compute.round(work) if size <= _INLINE_EVENTS else await self.in_thread(self._compute.round, work)
            )
            for (partition, _), made in zip(work, produced, strict=True):
                await self._output.taken(RECOMMENDATIONS, partition.number)
                for encoded in made.recommendations:
                    self._output.send(RECOMMENDATIONS, partition.number, encoded)
                for letters in encode_dead_letters(made.dead_letters):
                    self._output.send(INVALID_EVENTS, partition.number, letters)
            await self._output.room()
        except Exception as error:
            self._failure = error
            raise
        self._applied += size

    async def _erase(self, event: Any, batch: RecordBatch) -> None:
        """Forget users; the event is acknowledged when all its requests are answered (`streams.eraser`)."""
        partition = self.partitions.get(batch.partition)
        if partition is None:
            return
        erase = partition.store.forget
        rejected = await self.in_thread(partition.erasures.take, batch, event, erase, self.pseudonyms)
        for bad in rejected:
            self.metrics.dead_letters.labels(bad.reason).inc()
        for letters in encode_dead_letters([dead_letter(batch, bad) for bad in rejected]):
            self._output.send(INVALID_EVENTS, partition.number, letters)
        if len(rejected) == len(batch):  # nothing to answer
            self._flushes.processed.append(event)

    # -- flushes, and handing partitions over

    async def _flush(self, snapshot: bool = False) -> None:
        """Capture what is to be made durable, then do it beside the next rounds; one flush at a time.

        Raises:
            Exception: what ended a round or made an answer fail, here or before: nothing is made durable after it.
        """
        if self._failure is not None:
            raise self._failure
        await self._flushes.settled()
        self._applied = 0
        started, expire_before = self._flushes.plan()
        events = self._flushes.take_events()
        captured = self._snapshots.due(self.partitions.values(), snapshot)
        flushed = []
        await self.in_thread(self._compute.publish)
        for number, partition in list(self.partitions.items()):
            now_ms = int(time.time() * 1000)
            flushed.append(await self.in_thread(flush_partition, partition, now_ms, expire_before, number in captured))
            # Let events through between two captures. They are acknowledged by the next flush; a later capture may hold
            # their state already, so their outputs are among those awaited below.
            await self._round()
        self._flushes.begin(self._output.outstanding(), flushed, events, started)
        self._held.count()

    async def drain(self, snapshot: bool = False) -> None:
        """Process everything taken, make it durable and acknowledge it; partitions may leave afterwards.

        Args:
            snapshot: write snapshots of all of them too, where the disk takes that in half of the time there is.
        """
        self.ready = False
        async with self._turn:
            if not snapshot:
                await self._snapshots.hold_back()
            while not self._waiting.empty():
                await self._round()
                await asyncio.sleep(0)  # an agent may have waited for a place in the queue
            while True:
                await self._flush()
                await self._flushes.settled()
                if not any(partition.rewrite for partition in self.partitions.values()):
                    break
            if self.membership() == "lost":
                await self._forget_all()
            elif snapshot and not self._snapshots.held_back:
                await self._snapshot_all()

    async def _snapshot_all(self) -> None:
        begun, seconds = time.monotonic(), min(_STOP_SECONDS, self.settings.rebalance_timeout_seconds / 2)
        while True:
            while self._snapshots.copying:
                await self._snapshots.copy_some(self.in_thread)
            if not await self._snapshots.finished(begun + seconds - time.monotonic()):
                log.warning("The disk did not take all snapshots within %.0f s: the next start takes longer", seconds)
                return
            left = [one for one in self.partitions.values() if one.captured_at < begun]
            if not self._snapshots.due(left, True):
                return
            await self._flush(snapshot=True)
            await self._flushes.settled()

    async def abandon(self) -> None:
        """Drop everything taken and every user: the group dropped this worker and others hold its partitions.

        Nothing is acknowledged and no state is written. What was answered is answered again by the next owner.
        """
        self.ready = False
        async with self._turn:
            while not self._waiting.empty():
                self._waiting.get_nowait()
                await asyncio.sleep(0)  # an agent may have waited for a place in the queue
            await self._forget_all()

    async def _forget_all(self) -> None:
        self._flushes.forget()
        await self._forget(set(self.partitions))

    # -- partitions

    async def assign(self, numbers: set[int]) -> Restored:
        """Hold exactly these partitions: forget the others, restore the new ones, read on in those that stay."""
        async with self._turn:
            await self._forget(set(self.partitions) - numbers)
            self._snapshots.go_on()
            for partition in self.partitions.values():
                partition.erasures = Erasures()  # requests that are not answered are delivered again
            self._held.add(numbers - set(self.partitions))
            restored = await restore(
                self.partitions.values(), self.settings, self._changelog_id, self.metrics, self.in_thread
            )
        self._held.count()
        self._flushes.rest()
        self.ready = True
        return restored

    async def _forget(self, numbers: set[int]) -> None:
        self._snapshots.forget(numbers)
        await self._snapshots.left(numbers)
        self._held.drop(numbers)

    @property
    def _many_changed(self) -> bool:
        most = self.settings.flush_max_dirty_users
        return self._applied > most and self._held.changed > most
