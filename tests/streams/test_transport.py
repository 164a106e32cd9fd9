"""The transport inside a real Faust app: delivery, back-pressure, manual acknowledgements, handing partitions over.

No broker: the last step towards Kafka (commit, seek, assignment) is recorded instead. The Python and the Cython streams
of Faust are both covered: `test_everything_again_without_cython` runs this file in a process with NO_CYTHON=1.
"""

import asyncio
import inspect
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import aiokafka.consumer.fetcher as aio
import faust
import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.consumer.subscription_state import SubscriptionState
from faust.app.base import App
from faust.events import Event
from faust.streams import Stream
from faust.topics import Topic
from faust.transport import base, conductor
from faust.transport.consumer import Consumer, ThreadDelegateConsumer
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from faust.types.tuples import ConsumerMessage, Message
from mode.utils.queues import FlowControlEvent

from streams.fetch import RecordBatch
from streams.transport import BatchConsumer, TransportError, batch_topic, install, take

ROOT = Path(__file__).parents[2]
CLICKS, VIEWS = TP("clicks", 0), TP("views", 0)
GENERATION = 1


# -- contracts: what an upgrade of Faust, mode or aiokafka must not change silently

SIGNATURES: list[tuple[Callable[..., Any], str]] = [
    # overridden in BatchConsumer
    (driver.Consumer._new_consumer_thread, "self"),
    (driver.Consumer._to_message, "self tp record"),
    (ThreadDelegateConsumer._getmany, "self active_partitions timeout"),
    (Consumer.on_buffer_full, "self tp"),
    (Consumer._filter_tps_with_pending_acks, "self topics"),
    (Consumer._new_offset, "self tp"),
    (Consumer._add_gap, "self tp offset_from offset_to"),
    (Consumer.perform_seek, "self"),
    (Consumer.on_partitions_revoked, "self revoked"),
    (Consumer.wait_empty, "self"),
    # called by BatchConsumer
    (Consumer.stop_flow, "self"),
    (Consumer.maybe_wait_for_commit_to_finish, "self"),
    (Consumer.commit_and_end_transactions, "self"),
    (Consumer.__init__, "self transport callback on_partitions_revoked on_partitions_assigned commit_interval "
                        "commit_livelock_soft_timeout loop kwargs"),
    (ConsumerMessage.__init__, "self topic partition offset timestamp timestamp_type headers key value "
                               "checksum serialized_key_size serialized_value_size tp time_in time_out time_total "
                               "generation_id"),
    (conductor.Conductor.acks_enabled_for, "self topic"),
    (FlowControlEvent.suspend, "self"),
    (FlowControlEvent.clear, "self"),
    (App.crash, "self reason"),
    # overridden in BatchConsumerThread
    (driver.AIOKafkaConsumerThread._create_worker_consumer, "self transport"),
    (driver.AIOKafkaConsumerThread._fetch_records, "self consumer active_partitions timeout max_records"),
    (driver.AIOKafkaConsumerThread.on_thread_stop, "self"),
    # the transport and its topics
    (base.Transport.__init__, "self url app loop"),
    (base.Transport.create_consumer, "self callback kwargs"),
    (faust.Schema.compile, "self app on_key_decode_error on_value_decode_error default_propagate"),
    (App.create_event, "self key value headers message"),
    (Topic.__init__, "self app topics pattern schema key_type value_type is_iterator partitions retention compacting "
                     "deleting replicas acks internal config queue key_serializer value_serializer maxsize root "
                     "active_partitions allow_empty has_prefix loop"),
    (Message.ack, "self consumer n"),
    (Event.ack, "self"),
    (Stream.noack, "self"),
    (Stream.events, "self"),
    # aiokafka, used by streams.fetch
    (aio.FetchResult.getone, "self"),
    (aio.FetchResult.getall, "self max_records"),
    (aio.FetchResult.has_more, "self"),
    (aio.FetchResult.check_assignment, "self tp"),
    (aio.FetchError.check_raise, "self"),
    (aio.PartitionRecords.__init__, "self tp records aborted_transactions fetch_offset key_deserializer "
                                    "value_deserializer check_crcs isolation_level"),
    (aio.PartitionRecords._consume_aborted_up_to, "self batch_offset"),
    (aio.PartitionRecords._contains_abort_marker, "self next_batch"),
    (aio.Fetcher._create_fetch_waiter, "self"),
    (aio.Fetcher._notify, "self future"),
    (aio.Fetcher.fetched_records, "self partitions timeout max_records"),
    (SubscriptionState.is_assigned, "self tp"),
    (SubscriptionState.wait_for_assignment, "self"),
    (SubscriptionState.fetch_context, "self"),
]  # fmt: skip

#: Texts our overrides rely on: where a value is kept, or a decision our replacement repeats.
SOURCES: list[tuple[Any, str]] = [
    (aio.Fetcher.__init__, "self._records = collections.OrderedDict()"),
    (aio.Fetcher.__init__, "self._wait_consume_future = None"),
    (aio.Fetcher.__init__, "self._closed = False"),
    (aio.FetchResult.__init__, "self._partition_records = partition_records"),
    (aio.PartitionRecords.__init__, "self._records_iterator = self._unpack_records()"),
    (aio.Fetcher.close, "x.cancel()\n            await x"),  # lets a CancelledError out; see on_thread_stop
    (aio.PartitionRecords.__next__, "return next(self._records_iterator)"),
    (aio.PartitionRecords._unpack_records, "if next_batch.is_control_batch:"),
    (AIOKafkaConsumer.start, "isolation_level=self._isolation_level"),
    (Consumer._wait_next_records, "active_partitions = self._get_active_partitions()"),
    (Consumer.getmany, "if records is None or self.should_stop:\n            return"),
    (Consumer._drain_messages, "callback = self.callback"),
    (Consumer._drain_messages, "if r_offset is None or offset >= r_offset:"),
    (Consumer.force_commit, "self._filter_tps_with_pending_acks(topics)"),
    (Consumer._filter_committable_offsets, "offset = self._new_offset(tp)"),
    (Consumer.on_stop, "await self.wait_empty()"),
    (App._stop_consumer, "await self._consumer_wait_empty(consumer, self.log)"),
    (App._on_partitions_revoked, "T(self.flow_control.clear)()"),
    (Stream._py_aiter, "message.tracked = True"),
]


@pytest.mark.parametrize(("function", "parameters"), SIGNATURES, ids=lambda value: getattr(value, "__qualname__", ""))
def test_signature(function: Callable[..., Any], parameters: str) -> None:
    assert list(inspect.signature(inspect.unwrap(function)).parameters) == parameters.split()


@pytest.mark.parametrize(("function", "text"), SOURCES, ids=lambda value: getattr(value, "__qualname__", ""))
def test_source(function: Callable[..., Any], text: str) -> None:
    assert text in inspect.getsource(inspect.unwrap(function))


def test_reassignment_is_visible() -> None:
    assert isinstance(SubscriptionState.reassignment_in_progress, property)


# -- the app under test


class RecordingConsumer(BatchConsumer):
    """Stops one step before Kafka: commits and seeks are recorded."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.log_of_calls: list[Any] = []
        self.assigned = {CLICKS, VIEWS}
        self.committed: dict[TP, int] = {}

    def assignment(self) -> set[TP]:
        return self.assigned

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        self.log_of_calls.append(dict(offsets))
        self.committed.update(offsets)
        return True

    async def seek_to_committed(self) -> Mapping[TP, int | None]:
        self.log_of_calls.append("seek")
        return {tp: self.committed.get(tp) for tp in self.assigned}


class Harness:
    """An app reading two topics in batches, as after its first rebalance."""

    def __init__(self, directory: Path, *, together: bool = False) -> None:
        self.app = faust.App(
            "transport-test",
            broker="kafka://127.0.0.1:1",
            datadir=str(directory),
            topic_disable_leader=True,
            broker_rebalance_timeout=1.0,
            stream_wait_empty=False,  # turned on by install()
        )
        self.transport = install(self.app)
        self.transport.Consumer = RecordingConsumer
        self.topics = (
            {CLICKS: batch_topic(self.app, CLICKS.topic, VIEWS.topic, max_batches=8)}
            if together
            else {tp: batch_topic(self.app, tp.topic, max_batches=2) for tp in (CLICKS, VIEWS)}
        )
        self.app.finalize()
        self.consumer: RecordingConsumer = self.app.consumer
        self.events: dict[TP, AsyncIterator[faust.Event]] = {}
        self._next = dict.fromkeys((CLICKS, VIEWS), 0)

    async def start(self) -> None:
        for tp, topic in self.topics.items():
            self.events[tp] = aiter(topic.stream().noack().events())
            # The channel registers once somebody reads it.
            reading = asyncio.ensure_future(anext(self.events[tp]))
            await asyncio.sleep(0.01)
            self._first_reads = {**getattr(self, "_first_reads", {}), tp: reading}
        await self.app.topics._update_indices()
        await self.app.topics.on_partitions_assigned({CLICKS, VIEWS})
        self.resume()

    def resume(self) -> None:
        self.app.consumer_generation_id = GENERATION
        self.consumer._set_active_tps({CLICKS, VIEWS})
        self.app.flow_control.resume()
        self.consumer.resume_flow()

    async def event(self, tp: TP = CLICKS) -> faust.Event:
        """The next event an agent of the topic gets."""
        first = self._first_reads.pop(tp, None)
        return await asyncio.wait_for(first if first is not None else anext(self.events[tp]), 5)

    def batch(self, tp: TP = CLICKS, count: int = 10, gap: int = 0) -> RecordBatch:
        start = self._next[tp]
        self._next[tp] = end = start + count
        self._next[tp] += gap
        offsets = list(range(start, end))
        return RecordBatch(
            tp.topic, tp.partition, offsets, [1_700_000_000_000] * count, [b"u"] * count, [b"{}"] * count, end + gap
        )

    async def deliver(self, tp: TP = CLICKS, count: int = 10, gap: int = 0) -> Any:
        """As the drain loop does with a fetched batch."""
        message = self.consumer._to_message(tp, (self.batch(tp, count, gap),))
        await self.consumer.callback(message)
        return message

    async def take(self, count: int, tp: TP = CLICKS) -> list[faust.Event]:
        """Deliver batches of 10 and let the agent take each."""
        events = []
        for _ in range(count):
            await self.deliver(tp)
            events.append(await self.event(tp))
        return events

    def committable(self, tp: TP = CLICKS) -> int | None:
        return self.consumer._new_offset(tp)

    async def stop(self) -> None:
        for reading in getattr(self, "_first_reads", {}).values():
            reading.cancel()
        for events in self.events.values():
            closing = asyncio.ensure_future(events.aclose())  # type: ignore[attr-defined]
            await asyncio.wait([closing], timeout=1)
        self.consumer._thread.thread_loop.close()  # made with the thread, which never starts here


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[Harness]:
    harness = Harness(tmp_path)
    await harness.start()
    yield harness
    await harness.stop()


# -- delivery


async def test_a_batch_is_one_event(harness: Harness) -> None:
    message = await harness.deliver(count=3, gap=2)
    event = await harness.event()
    assert event.message is message
    assert (message.offset, message.timestamp, message.tp) == (0, 1_700_000_000.0, CLICKS)
    (batch,) = take(event)
    assert (batch.offsets, batch.next_offset) == ([0, 1, 2], 5)
    assert event.value is None and message.value is None  # nothing holds the records any more
    event.ack()
    assert harness.committable() == 5


async def test_topics_declared_together_keep_the_order_of_fetches(tmp_path: Path) -> None:
    harness = Harness(tmp_path, together=True)
    await harness.start()
    sent = [await harness.deliver(tp) for tp in (CLICKS, VIEWS, VIEWS, CLICKS, VIEWS)]
    assert [(await harness.event()).message for _ in sent] == sent
    await harness.stop()


async def test_acknowledged_out_of_order_only_the_prefix_is_committed(harness: Harness) -> None:
    first, second, third = await harness.take(3)
    assert third.ack()
    assert harness.committable() is None
    assert first.ack()
    assert harness.committable() == 10
    assert second.ack()
    assert harness.committable() == 30
    assert not second.ack()  # twice is once


async def test_commit_sends_the_prefix_of_each_topic_once(harness: Harness) -> None:
    (click,) = await harness.take(1)
    views = await harness.take(2, VIEWS)
    views[1].ack()
    click.ack()
    await harness.consumer.commit()
    assert harness.consumer.log_of_calls == [{CLICKS: 10}]
    await harness.consumer.commit()
    assert harness.consumer.log_of_calls == [{CLICKS: 10}]
    views[0].ack()
    await harness.consumer.commit({"views"})
    assert harness.consumer.log_of_calls[1:] == [{VIEWS: 20}]
    assert harness.committable(CLICKS) == 10
    assert not harness.consumer._acked[CLICKS] and not harness.consumer._acked_index[CLICKS]


async def test_stock_bug_500_in_flight_501_acknowledged(harness: Harness) -> None:
    harness.consumer._committed_offset[CLICKS] = 500
    harness._next[CLICKS] = 500
    await harness.deliver(count=1)
    in_flight = await harness.event()
    await harness.deliver(count=1)
    acknowledged = await harness.event()
    acknowledged.ack()
    await harness.consumer._add_gap(CLICKS, 500, 500)  # the drain loop reports the one in flight as a gap
    await harness.consumer.commit()
    assert harness.consumer.log_of_calls == []
    in_flight.ack()
    await harness.consumer.commit()
    assert harness.consumer.log_of_calls == [{CLICKS: 502}]


async def test_stock_bug_fresh_group_with_the_first_in_flight(harness: Harness) -> None:
    events = []
    for _ in range(6):
        await harness.deliver(count=1)
        events.append(await harness.event())
    events[5].ack()
    await harness.consumer._add_gap(CLICKS, 0, 4)
    await harness.consumer.commit()
    assert harness.consumer.log_of_calls == []


async def test_transaction_markers_alone_advance_the_offset_without_an_event(harness: Harness) -> None:
    empty = RecordBatch("clicks", 0, [], [], [], [], 41)
    message = harness.consumer._to_message(CLICKS, (empty,))
    assert message.offset == 40
    await harness.consumer.callback(message)
    assert harness.committable() == 41
    assert harness.consumer.tracker.in_flight(CLICKS) == 0


async def test_a_batch_of_an_older_generation_is_not_delivered(harness: Harness) -> None:
    message = harness.consumer._to_message(CLICKS, (harness.batch(),))
    harness.app.consumer_generation_id = GENERATION + 1
    await harness.consumer.callback(message)
    assert (message.refcount, harness.consumer.tracker.in_flight(CLICKS)) == (0, 0)


async def test_nothing_is_delivered_while_the_flow_is_stopped(harness: Harness) -> None:
    harness.consumer.stop_flow()
    message = await harness.deliver()
    assert (message.refcount, harness.consumer.tracker.in_flight(CLICKS)) == (0, 0)


async def test_records_fetched_while_the_flow_stopped_are_dropped_without_a_seek(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = {CLICKS: [harness.batch()]}

    async def getmany(_active: Any, _timeout: float) -> Any:
        harness.consumer.stop_flow()
        return fetched

    monkeypatch.setattr(harness.consumer._thread, "getmany", getmany)
    assert [item async for item in harness.consumer.getmany(0.1)] == []
    assert harness.consumer.log_of_calls == []


# -- back-pressure


async def test_a_full_channel_blocks_delivery_until_the_agent_takes_a_batch(harness: Harness) -> None:
    await harness.take(1)
    await harness.deliver()
    await harness.deliver()
    third = asyncio.ensure_future(harness.deliver())
    await asyncio.sleep(0.05)
    assert not third.done()
    await harness.event()
    await asyncio.wait_for(third, 5)


async def test_a_delivery_waiting_for_a_full_channel_ends_with_the_rebalance(harness: Harness) -> None:
    await harness.take(1)
    await harness.deliver()
    await harness.deliver()
    waiting = asyncio.ensure_future(harness.deliver())
    await asyncio.sleep(0.01)
    harness.transport.before_revoke = _nothing
    await harness.consumer.on_partitions_revoked({CLICKS, VIEWS})
    await asyncio.wait_for(waiting, 5)
    harness.resume()
    (event,) = await harness.take(1)
    assert event.message.offset == 40, "none of the batches from before"


async def test_a_full_channel_never_takes_its_partition_out_of_the_fetch(harness: Harness) -> None:
    """Stock Faust sleeps a second once every partition is out."""
    await harness.take(1)
    await harness.deliver()
    await harness.deliver()
    harness.consumer.on_buffer_full(CLICKS)
    assert harness.consumer._get_active_partitions() == {CLICKS, VIEWS}


async def test_other_topics_keep_stock_buffering(harness: Harness) -> None:
    other = TP("other", 0)
    harness.consumer._set_active_tps({CLICKS, other})
    harness.consumer.on_buffer_full(other)
    assert harness.consumer._get_active_partitions() == {CLICKS}


# -- handing partitions over


async def test_revoked_the_pipeline_finishes_before_the_last_commit(harness: Harness) -> None:
    events = await harness.take(3)
    await harness.deliver()  # in the channel, taken by nobody
    steps = harness.consumer.log_of_calls

    async def finish(revoked: set[TP]) -> None:
        assert not harness.consumer.flow_active and not harness.app.flow_control.is_active()
        steps.append(("finish", revoked))
        for event in reversed(events):
            await asyncio.sleep(0.01)
            event.ack()

    harness.transport.before_revoke = finish
    await harness.consumer.on_partitions_revoked({CLICKS, VIEWS})
    assert steps[:2] == [("finish", {CLICKS, VIEWS}), {CLICKS: 30}]
    assert [step for step in steps if isinstance(step, tuple)] == [("finish", {CLICKS, VIEWS})]
    assert all(step == {CLICKS: 30} for step in steps[1:])
    assert list(harness.consumer.tracker.partitions()) == []
    assert harness.app.topics is not None and harness.consumer._acked == {}


async def test_revoked_with_batches_still_in_flight_only_the_prefix_is_committed(harness: Harness) -> None:
    first, _second, third = await harness.take(3)

    async def give_up(_revoked: set[TP]) -> None:
        first.ack()
        third.ack()

    harness.transport.before_revoke = give_up
    await harness.consumer.on_partitions_revoked({CLICKS, VIEWS})
    assert harness.consumer.committed == {CLICKS: 10}


async def test_a_batch_nobody_took_is_never_committed_whoever_acknowledges_it(harness: Harness) -> None:
    """The Python stream acknowledges what it throws away while the flow is stopped."""
    (taken,) = await harness.take(1)
    left = await harness.deliver()

    async def finish(_revoked: set[TP]) -> None:
        taken.ack()
        left.ack(harness.consumer)

    harness.transport.before_revoke = finish
    await harness.consumer.on_partitions_revoked({CLICKS, VIEWS})
    assert harness.consumer.committed == {CLICKS: 10}


async def test_a_late_acknowledgement_after_the_partitions_left_commits_nothing(harness: Harness) -> None:
    (event,) = await harness.take(1)
    harness.transport.before_revoke = _nothing
    await harness.consumer.on_partitions_revoked({CLICKS, VIEWS})
    event.ack()
    harness.consumer.assigned = {CLICKS, VIEWS}
    await harness.consumer.commit()
    assert harness.consumer.committed == {}


async def test_after_a_rebalance_offsets_advance_again(harness: Harness) -> None:
    (event,) = await harness.take(1)

    async def finish(_revoked: set[TP]) -> None:
        event.ack()

    harness.transport.before_revoke = finish
    await harness.consumer.on_partitions_revoked({CLICKS, VIEWS})
    await harness.consumer.perform_seek()
    harness.resume()
    for event in await harness.take(2):
        event.ack()
    await harness.consumer.commit()
    assert harness.consumer.committed == {CLICKS: 30}


async def test_a_seek_forgets_what_is_in_flight(harness: Harness) -> None:
    (event,) = await harness.take(1)
    await harness.consumer.perform_seek()
    event.ack()
    assert harness.committable() is None


async def test_a_pipeline_that_cannot_finish_crashes_the_worker_after_committing_the_prefix(harness: Harness) -> None:
    first, _second = await harness.take(2)

    async def stuck(_revoked: set[TP]) -> None:
        first.ack()
        await asyncio.sleep(60)

    harness.transport.before_revoke = stuck
    await harness.consumer.on_partitions_revoked({CLICKS, VIEWS})
    assert harness.app.crashed
    assert harness.consumer.committed == {CLICKS: 10}


async def test_without_a_pipeline_the_streams_are_waited_for(harness: Harness) -> None:
    (event,) = await harness.take(1)
    asyncio.get_running_loop().call_later(0.05, event.ack)
    await harness.consumer.on_partitions_revoked({CLICKS, VIEWS})
    assert harness.consumer.committed == {CLICKS: 10}


async def test_the_first_join_has_nothing_to_hand_over(harness: Harness) -> None:
    called = []

    async def finish(revoked: set[TP]) -> None:
        called.append(revoked)

    harness.transport.before_revoke = finish
    harness.consumer.assigned = set()
    await harness.consumer.on_partitions_revoked(set())
    assert called == []


async def test_shutdown_lets_the_pipeline_finish_then_commits(harness: Harness) -> None:
    (event,) = await harness.take(1)

    async def finish(partitions: set[TP]) -> None:
        assert partitions == {CLICKS, VIEWS}
        await asyncio.sleep(0.01)
        event.ack()

    harness.transport.before_revoke = finish
    await harness.app._stop_consumer()
    assert harness.consumer.committed == {CLICKS: 10}


async def test_the_last_commit_is_not_lost_to_one_already_under_way(harness: Harness) -> None:
    (event,) = await harness.take(1)
    under_way = harness.consumer._commit_fut = asyncio.get_running_loop().create_future()

    def end() -> None:
        harness.consumer._commit_fut = None
        under_way.set_result(None)

    async def finish(_partitions: set[TP]) -> None:
        event.ack()
        asyncio.get_running_loop().call_later(0.02, end)

    harness.transport.before_revoke = finish
    await harness.app._stop_consumer()
    assert harness.consumer.committed == {CLICKS: 10}


async def test_a_broker_that_takes_no_commit_does_not_hold_up_the_shutdown(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (event,) = await harness.take(1)
    event.ack()

    async def never(_offsets: Mapping[TP, int]) -> bool:
        await asyncio.sleep(60)
        return True

    monkeypatch.setattr(harness.consumer, "_commit", never)
    harness.transport.before_revoke = _nothing
    await asyncio.wait_for(harness.app._stop_consumer(), 5)
    assert "did not take the last offsets" in caplog.text


async def _nothing(_revoked: set[TP]) -> None:
    pass


# -- installing


def test_install_comes_before_anything_else(tmp_path: Path) -> None:
    app = faust.App("late", broker="kafka://127.0.0.1:1", datadir=str(tmp_path))
    app.topic("x")
    _ = app.transport
    with pytest.raises(TransportError, match="right after the app is created"):
        install(app)


def test_batch_topic_needs_the_transport(tmp_path: Path) -> None:
    app = faust.App("stock", broker="kafka://127.0.0.1:1", datadir=str(tmp_path))
    with pytest.raises(TransportError, match="install"):
        batch_topic(app, "clicks")


async def test_the_channel_is_as_small_as_asked(harness: Harness) -> None:
    """`faust.App.topic(maxsize=...)` of 0.15.3 ignores its argument."""
    assert harness.topics[CLICKS].clone(is_iterator=True).queue.maxsize == 2


async def test_isolation_level_reaches_the_consumer(harness: Harness) -> None:
    harness.transport.isolation_level = "read_committed"
    consumer = harness.consumer._thread._create_worker_consumer(harness.transport)
    await consumer.stop()
    assert consumer._isolation_level == "read_committed"


@pytest.mark.skipif(bool(os.environ.get("NO_CYTHON")), reason="this is that process")
def test_everything_again_without_cython() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__,
         str(Path(__file__).with_name("test_offsets.py"))],
        cwd=ROOT, env={**os.environ, "NO_CYTHON": "1"}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-5000:]
    from faust import streams

    assert streams._CStreamIterator is not None, "this process tests the Cython streams"
