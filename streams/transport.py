"""Faust transport that delivers everything one fetch brought, a batch of each topic-partition, as one event.

Stock Faust spends about 85 us per record before any work is done; here that cost is paid per fetch. Three parts
of Faust 0.15 are replaced, each by overriding what its `Transport` class names: the fetch (columns instead of an object
per record), the bookkeeping of acknowledged offsets (`streams.offsets`: stock Faust can commit past records in flight),
and the hand-over of partitions, which lets the pipeline finish before offsets are committed.

An event of a fetch travels on one of its topic-partitions, whichever came first. So topics whose records must stay in
order are declared together and read by one agent. With an agent for each, a fetch could overtake the one before it, and
records that came earlier in a partition would look like redelivered ones.

    app = faust.App("recstream", broker="kafka://127.0.0.1:9092")
    transport = install(app)
    events = batch_topic(app, "clicks", "views")

    @app.agent(events)
    async def read(stream):
        async for event in stream.noack().events():
            await queue.put(event)  # later, when its effects are durable: event.ack()
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal, cast

from aiokafka.errors import ConsumerStoppedError, KafkaError
from aiokafka.structs import TopicPartition
from faust import Schema
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage

from state.errors import RecstreamError
from streams.fetch import RecordBatch, fetch_batches
from streams.offsets import OffsetTracker

__all__ = ["BatchConsumer", "BatchTransport", "RecordBatch", "TransportError", "batch_topic", "install", "take"]

IsolationLevel = Literal["read_uncommitted", "read_committed"]
BeforeRevoke = Callable[[set[TP]], Awaitable[None]]
Membership = Literal["held", "unsure", "lost"]
_LEASE_SHARE: Final = 0.8  # of the session timeout: what is left covers a write's way to the broker


class TransportError(RecstreamError):
    """The transport cannot be installed or used this way."""


class BatchSchema(Schema):  # type: ignore[misc]
    """Hands the batches through: decoding happens in the pipeline, a column at a time."""

    def compile(self, app: Any, **_handlers: Any) -> Callable[..., Awaitable[Any]]:
        """The decode function of a topic; it cannot fail, so no error handler is ever called."""
        create_event = app.create_event

        async def decode(message: Any, *, propagate: bool = False) -> Any:
            return create_event(None, message.value, None, message)

        return decode


class BatchConsumerThread(driver.AIOKafkaConsumerThread):  # type: ignore[misc]
    """The consumer's own thread: talks to Kafka, so heartbeats and fetches go on while the main loop computes."""

    accepted_at = float("-inf")  # when the last heartbeat that the group accepted was sent

    def _create_worker_consumer(self, transport: "BatchTransport") -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._isolation_level = transport.isolation_level  # both are read when the consumer starts
        consumer._fetch_max_wait_ms = transport.fetch_max_wait_ms
        return consumer

    async def on_start(self) -> None:
        """Connect, and note when heartbeats are accepted."""
        await super().on_start()
        coordinator = self._ensure_consumer()._coordinator
        send_heartbeat = coordinator._do_heartbeat

        async def heartbeat() -> bool:
            sent_at = time.monotonic()
            accepted = bool(await send_heartbeat())
            if accepted:
                self.accepted_at = sent_at
            return accepted

        coordinator._do_heartbeat = heartbeat

    async def on_thread_stop(self) -> None:
        """Leave the group and disconnect, as far as the connection allows: whatever was taken is committed by now.

        aiokafka waits 0.1 s after a fetch that failed; closed within that time, it lets the `CancelledError` of the
        wait out. It would end this thread without a word to the main loop, which then waited until its time was over.
        """
        try:
            await super().on_thread_stop()
        except (KafkaError, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # it is this thread that is cancelled, not a fetch
                raise
            self.log.warning("The connection to Kafka was gone when the consumer closed: %r", error)
            await self._ensure_consumer()._client.close()

    async def _fetch_records(
        self,
        consumer: Any,
        active_partitions: set[TP] | None,
        timeout: float | None = None,
        max_records: int | None = None,
    ) -> dict[TP, list[Any]]:
        delegate = self.consumer
        if not delegate.flow_active:
            return {}
        fetcher = consumer._fetcher
        if consumer._closed or fetcher._closed:
            raise ConsumerStoppedError
        with fetcher._subscriptions.fetch_context():
            records = await fetch_batches(
                fetcher,
                active_partitions,
                may_take=lambda: bool(delegate.flow_active),
                in_batches=self.transport.batch_topics.__contains__,
                timeout_seconds=timeout or 0.0,
                max_events=self.transport.max_batch_events,
            )
        return _together(records, self.transport.batch_topics, self.transport.lone_topics)


def _together(records: dict[TP, list[Any]], batch_topics: set[str], lone_topics: set[str]) -> dict[TP, list[Any]]:
    """All record batches of a fetch as one tuple under the first partition that has records; others as they are.

    Batches of lone topics are a tuple each.
    """
    together = batch_topics - lone_topics
    batches = [batch for tp, found in records.items() if tp.topic in together for batch in found]
    rest = {
        tp: [(batch,) for batch in found] if tp.topic in lone_topics else found
        for tp, found in records.items()
        if tp.topic not in together
    }
    if not batches:
        return rest
    batches.sort(key=_is_empty)  # stable
    return {TP(batches[0].topic, batches[0].partition): [tuple(batches)], **rest}


def _is_empty(batch: RecordBatch) -> bool:
    return not batch.offsets


class BatchConsumer(driver.Consumer):  # type: ignore[misc]
    """Delivers batches, commits the acknowledged prefix, and lets the pipeline finish before partitions leave.

    Guarantee: at least once. Nothing is committed for an event that was not acknowledged, in whatever order events are
    acknowledged, with the Cython stream and with `NO_CYTHON=1` (both set `message.acked`, the only thing read here).
    """

    callback: Callable[[ConsumerMessage], Awaitable[None]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.tracker = OffsetTracker()
        self._handing_over = False
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
        # The drain loop drops messages below the last offset it delivered, so a batch counts as its first record.
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

    async def perform_seek(self) -> None:
        """Go back to the committed offsets; whatever was in flight is delivered again."""
        self._forget()
        await super().perform_seek()
        self._forget()

    def _forget(self) -> None:
        self.tracker.clear()
        self._acked.clear()
        self._acked_index.clear()

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
        await super().on_partitions_assigned(assigned, generation_id)

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Stop the flow, let the pipeline finish what it took, commit, and only then give the partitions up.

        When the group has dropped this worker already, others own the partitions: nothing is finished or committed.
        """
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


async def _nothing() -> None:
    pass


def _was_taken(message: Any) -> bool:
    """Whether a stream handed the message to its agent (set by both the Cython and the Python iterator)."""
    return bool(message.tracked)


class BatchTransport(driver.Transport):  # type: ignore[misc]
    """aiokafka transport for record batches; see the module's text.

    Attributes:
        batch_topics: Topics read as `RecordBatch`es; every other topic works as in stock Faust.
        lone_topics: Those of them whose batches come as events of their own, to be acknowledged apart from the others.
        max_batch_events: Most records of one fetch.
        fetch_max_wait_ms: How long the broker may hold a fetch that finds nothing; Faust always asks for 1500 ms. Kafka
            answers as soon as there is something, the embedded broker only when the time is over: with 1500 ms an event
            waits 0.4 s there, with 50 ms 30 ms.
        isolation_level: `read_committed` hides records of open and aborted transactions.
        before_revoke: Awaited, with the flow stopped, before offsets are committed for partitions about to leave
            (rebalance) and at shutdown. It returns when every event an agent took is acknowledged or given up; what is
            not acknowledged is delivered again, to the next owner. Given `broker_rebalance_timeout` at most.
        on_lost: Awaited instead, with the flow stopped, when the group dropped this worker without asking: forget
            everything about its partitions.
        finished: Whether a shutdown let the pipeline finish: everything taken is durable, and committed if Kafka took
            the commit. What is left is closing the clients.
    """

    Consumer = BatchConsumer

    def __init__(
        self,
        url: Any,
        app: Any,
        *,
        max_batch_events: int = 4096,
        fetch_max_wait_ms: int = 500,
        isolation_level: IsolationLevel = "read_uncommitted",
        before_revoke: BeforeRevoke | None = None,
        on_lost: Callable[[], Awaitable[None]] = _nothing,
        **kwargs: Any,
    ) -> None:
        super().__init__(url, app, **kwargs)
        self.batch_topics: set[str] = set()
        self.lone_topics: set[str] = set()
        self.max_batch_events = max_batch_events
        self.fetch_max_wait_ms = fetch_max_wait_ms
        self.isolation_level: IsolationLevel = isolation_level
        self.before_revoke = before_revoke
        self.on_lost = on_lost
        self.finished = False


def install(
    app: Any,
    *,
    max_batch_events: int = 4096,
    fetch_max_wait_ms: int = 500,
    isolation_level: IsolationLevel = "read_uncommitted",
    before_revoke: BeforeRevoke | None = None,
    on_lost: Callable[[], Awaitable[None]] = _nothing,
) -> BatchTransport:
    """Make `app` (a `faust.App`) use a `BatchTransport`. Call it before the first topic or agent is declared.

    Turns the app's `stream_wait_empty` on: the pipeline gets to finish at shutdown as well.

    Raises:
        TransportError: The app already built its consumer, producer or topics on another transport.
    """
    if app._transport is not None or app._consumer is not None or app._producer is not None:
        what, why = "the record-batch transport cannot be installed", "the app already uses its first transport"
        raise TransportError(what, why, "call install(app) right after the app is created")
    transport = BatchTransport(
        app.conf.broker_consumer,
        app,
        max_batch_events=max_batch_events,
        fetch_max_wait_ms=fetch_max_wait_ms,
        isolation_level=isolation_level,
        before_revoke=before_revoke,
        on_lost=on_lost,
    )
    app.transport = transport
    # The way to `before_revoke` at shutdown, while agents and pipeline still run: BatchConsumer.wait_empty, which is
    # bounded. Without it Faust goes straight to the last commit.
    app.conf.stream_wait_empty = True
    return transport


def batch_topic(app: Any, *names: str, partitions: int | None = None, max_batches: int = 2, alone: bool = False) -> Any:
    """Declare existing Kafka topics whose records arrive, in order, as events of tuples of `RecordBatch`.

    Such an event may hold batches of the other batch topics too.

    Args:
        app: The app `install` was called on.
        names: Topic names.
        partitions: Their partition count, where known.
        max_batches: Fetches buffered between the fetch loop and the topics' agent.
        alone: Each batch of theirs is an event of its own.

    Raises:
        TransportError: `install` was not called.
    """
    transport = app.transport
    if not isinstance(transport, BatchTransport):
        what, why = f"{', '.join(names)} cannot be read in batches", "the app has another transport"
        raise TransportError(what, why, "call streams.transport.install(app) first")
    transport.batch_topics.update(names)
    if alone:
        transport.lone_topics.update(names)
    # Not app.topic(): Faust 0.15.3 drops its `maxsize` argument.
    return app.conf.Topic(
        app, topics=names, schema=BatchSchema(), partitions=partitions, maxsize=max_batches, acks=True, internal=False
    )


def take(event: Any) -> tuple[RecordBatch, ...]:
    """The batches of an event, detached from it: their memory is free as soon as the caller drops them.

    Events wait for their acknowledgement until the next flush, far longer than their records are needed. Call it once
    per event.
    """
    batches = cast("tuple[RecordBatch, ...]", event.value)
    event.value = event.message.value = None
    return batches
