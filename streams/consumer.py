"""A worker's consumer: delivers batches, commits what is acknowledged, hands partitions over when that is finished."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Literal

from aiokafka.structs import TopicPartition
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage

from state.errors import StateError
from state.events import TOPICS
from streams.consumer_thread import BatchConsumerThread
from streams.fetch import RecordBatch, passed_by
from streams.offsets import OffsetTracker

Membership = Literal["held", "unsure", "lost"]
_LEASE_SHARE: Final = 0.8  # of the session timeout: what is left covers a write's way to the broker


class BatchConsumer(driver.Consumer):  # type: ignore[misc]
    """Delivers batches, commits the acknowledged prefix, and lets the pipeline finish before partitions leave.

    Guarantee: at least once. Nothing is committed for an event that was not acknowledged, in whatever order events are
    acknowledged, with the Cython stream and with `NO_CYTHON=1` (both set `message.acked`, the only thing read here).
    """

    callback: Callable[[ConsumerMessage], Awaitable[None]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.tracker = OffsetTracker()
        self._handing_over = False
        self._reached: dict[TP, int] = {}  # where what was delivered ends
        self._assignments = 0  # counts how often partitions came or left
        super().__init__(*args, **kwargs)
        self._conduct = self.callback
        self.callback = self._deliver

    def _new_consumer_thread(self) -> BatchConsumerThread:
        return BatchConsumerThread(self, loop=self.loop, beacon=self.beacon)

    # -- delivery

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> dict[TP, list[Any]] | None:
        """None (take no action) when the flow stopped meanwhile.

        Faust would seek at once, in the middle of a hand-over. Whatever stops the flow, a rebalance or the shutdown,
        has positions start from the committed offsets afterwards, so what was fetched is fetched again.
        """
        records: dict[TP, list[Any]] = await super()._getmany(active_partitions, timeout)
        return records if self.flow_active else None

    def _to_message(self, tp: TP, record: Any) -> ConsumerMessage:
        if type(record) is not tuple:
            return super()._to_message(tp, record)
        first: RecordBatch = record[0]
        # The drain loop drops messages below the last offset it delivered: the batches of all partitions with the first
        # one, when its topic was made anew and begins again.
        self._read_offset[tp] = None
        offset = first.offsets[0] if first.offsets else first.next_offset - 1
        return ConsumerMessage(
            topic=first.topic,
            partition=first.partition,
            offset=offset,
            timestamp=first.timestamps[0] / 1000.0 if first.timestamps else 0.0,
            timestamp_type=0,
            headers=None,
            key=None,
            value=record,
            checksum=None,
            tp=tp,
            generation_id=self.app.consumer_generation_id,
        )

    async def _deliver(self, message: ConsumerMessage) -> None:
        """Track, then hand to the conductor, which puts the event on the channel of its topic.

        A full channel blocks here, and with it the fetch loop: that is the back-pressure.
        """
        if not self.flow_active or message.generation_id != self.app.consumer_generation_id:
            return  # a rebalance began: these records are fetched again from the committed offset
        if type(message.value) is tuple:
            empty = True
            for batch in message.value:
                tp = TP(batch.topic, batch.partition)
                if error := self._out_of_place(tp, batch):
                    await self.app.crash(error)
                    return
                if batch.offsets:
                    self.tracker.track(tp, message, batch.next_offset)
                    empty = False
                else:
                    self.tracker.skip(tp, batch.next_offset)
            if empty:
                return
        elif self.app.topics.acks_enabled_for(message.topic):
            self.tracker.track(message.tp, message, message.offset + 1)
        await self._conduct(message)

    def _out_of_place(self, tp: TP, batch: RecordBatch) -> StateError | None:
        """Say that a batch does not go on where the one before ended; an error where users' states forbid to go on."""
        expected = self._reached.get(tp, self._committed_offset.get(tp))
        self._reached[tp] = batch.next_offset
        if expected is None or batch.start in {expected, -1}:
            return None
        if batch.start > expected:
            self.log.warning("%s", passed_by(batch, expected))
        elif tp.topic in TOPICS:
            what = f"{tp.topic}/{tp.partition} goes on at {batch.start}, not at {expected}"
            fix = "start the worker again: it looks up what of the topic was applied"
            return StateError(what, "the topic was made anew or lost its end", fix)
        return None

    def on_buffer_full(self, tp: TP) -> None:
        """Never stop fetching a batch topic: its full channel blocks the fetch loop without losing time.

        Stock Faust takes the partition out of the fetch instead; once all are out it sleeps a whole second, and while
        some are out it waits up to a second for data of the others.
        """
        if tp.topic not in self.transport.batch_topics:
            super().on_buffer_full(tp)

    # -- offsets

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> list[TP]:
        return [
            TP(*partition)
            for partition in self.tracker.partitions()
            if topics is None or partition in topics or partition[0] in topics
        ]

    def _new_offset(self, tp: TP) -> int | None:
        # Faust keeps its own lists of acknowledged offsets; unread they would only grow.
        self._acked.pop(tp, None)
        self._acked_index.pop(tp, None)
        return self.tracker.committable(tp)

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Gaps are part of each batch's `next_offset`."""

    async def begin(self) -> None:
        """Commit where partitions without a commit begin, if not at their beginning; await it before state is restored.

        From then on they are like all others: a worker that ends before their first event, or that is killed at it, is
        followed by one that goes on from here.
        """
        if self.transport.first_offsets is None or not self.assignment():
            return
        assignments = self._assignments
        committed = await self.seek_to_committed()
        unread = [TP(*partition) for partition, offset in committed.items() if offset is None]
        first = await self.transport.first_offsets(unread) if unread else {}
        if first and assignments == self._assignments:  # else another worker may have come and gone on from there
            await self.begin_at(first)

    async def begin_at(self, first: Mapping[TP, int]) -> None:
        """Read on from these offsets and commit them, also where more was committed: their log was another one."""
        assignments = self._assignments
        await self.seek_wait(first)  # whatever becomes of the commit, this worker reads on from here
        if assignments == self._assignments:
            for tp, offset in first.items():
                self._committed_offset.pop(tp, None)
                self.tracker.skip(tp, offset)
            await self._commit_now()

    async def perform_seek(self) -> None:
        """Go back to the committed offsets; whatever was in flight is delivered again."""
        self._forget()
        await super().perform_seek()
        self._forget()

    def _forget(self) -> None:
        self.tracker.clear()
        self._acked.clear()
        self._acked_index.clear()
        self._reached.clear()

    # -- handing partitions over

    @property
    def membership(self) -> Membership:
        """Whether the group still knows this worker, so that nobody else can hold its partitions.

        `unsure`: no heartbeat was accepted for most of a session time-out, as after the process was suspended or cut
        off; another worker may have the partitions by now. The next heartbeat tells.
        """
        consumer = self._thread._consumer
        if consumer is None:
            return "unsure"
        if consumer._coordinator.generation == driver.DEFAULT_GENERATION_ID:
            return "lost"
        lease = self.app.conf.broker_session_timeout * _LEASE_SHARE
        return "held" if time.monotonic() - self._thread.accepted_at < lease else "unsure"

    def consumed(self, tp: TP) -> int:
        """Offset below which nothing of a partition will be delivered any more, to whomever it belongs next.

        What the group has committed; where it has committed nothing and nothing was delivered, where reading began.
        """
        committed = self._committed_offset.get(tp)
        if committed is not None:
            return int(committed)
        consumer = self._thread._consumer
        subscription = None if consumer is None else consumer._subscription.subscription
        assignment = None if subscription is None else subscription.assignment
        if assignment is None or self.tracker.in_flight(tp) or self.tracker.committable(tp) is not None:
            return 0
        partition = TopicPartition(*tp)
        state = assignment.state_value(partition) if partition in assignment.tps else None
        return int(state.position) if state is not None and state.has_valid_position else 0

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """Joining counts as a heartbeat."""
        self._thread.accepted_at = time.monotonic()
        self._assignments += 1
        await super().on_partitions_assigned(assigned, generation_id)

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Stop the flow, let the pipeline finish what it took, commit, and only then give the partitions up.

        When the group has dropped this worker already, others own the partitions: nothing is finished or committed.
        """
        self._assignments += 1
        lost = self.membership == "lost"
        if revoked and not self.app.should_stop:
            self.stop_flow()
            self.app.flow_control.suspend()
            self.tracker.seal(_never if lost else _was_taken)
            self.app.flow_control.clear()  # batches no agent took yet
            if lost:
                self.log.warning("The group dropped this worker: it gives up what it holds and joins again")
                await self.transport.on_lost()
            else:
                await self._finish(revoked)
        self._handing_over = True
        try:
            await super().on_partitions_revoked(revoked)
        finally:
            self._handing_over = False
            self._forget()

    async def wait_empty(self) -> None:
        """At shutdown (Faust has stopped the flow): let the pipeline finish, then commit."""
        if self._handing_over or self.should_stop:  # already finished, or the pipeline is gone
            await self._commit_now()
        else:
            self.tracker.seal(_was_taken)
            await self._finish(self.assignment())
        self.transport.finished = not self.app.crashed

    async def _finish(self, partitions: set[TP]) -> None:
        """Wait, within the time the group grants for a rebalance, until everything taken is acknowledged; commit.

        When the time is over the worker crashes after committing the acknowledged prefix: going on would write state
        for partitions that another worker owns by then.
        """
        before_revoke = self.transport.before_revoke
        try:
            finished = super().wait_empty() if before_revoke is None else before_revoke(set(partitions))
            await asyncio.wait_for(finished, timeout=self.app.conf.broker_rebalance_timeout)
        except Exception as error:
            self.log.exception("The pipeline could not finish before its partitions leave: %r", error)
            await self.app.crash(error)
        finally:
            await self._commit_now()

    async def _commit_now(self) -> None:
        """Commit what is acknowledged by now; a commit already under way may have missed the last of it."""
        try:
            async with asyncio.timeout(self.app.conf.broker_rebalance_timeout):
                while await self.maybe_wait_for_commit_to_finish():
                    pass
                await self.commit_and_end_transactions()
        except TimeoutError:
            self.log.error("Kafka did not take the last offsets in time: what follows the last commit is read again")


def _never(_message: Any) -> bool:
    return False


def _was_taken(message: Any) -> bool:
    """Whether a stream handed the message to its agent (set by both the Cython and the Python iterator)."""
    return bool(message.tracked)
