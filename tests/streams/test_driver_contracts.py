"""What an upgrade of Faust, mode or aiokafka must not change silently: what our overrides replace, call and rely on."""

import inspect
from collections.abc import Callable
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
from faust.types.tuples import ConsumerMessage, Message
from mode.utils.queues import FlowControlEvent

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
    (Consumer.on_partitions_assigned, "self assigned generation_id"),
    # called by BatchConsumer
    (Consumer.stop_flow, "self"),
    (Consumer.maybe_wait_for_commit_to_finish, "self"),
    (Consumer.commit_and_end_transactions, "self"),
    (ThreadDelegateConsumer.seek_to_committed, "self"),
    (ThreadDelegateConsumer.seek_wait, "self partitions"),
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
    (Consumer._should_commit, "committed is None or"),  # so that a first offset of 0 is committed
    (AIOKafkaConsumer.committed, "if committed == -1:\n                committed = None"),
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
