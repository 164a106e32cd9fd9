import asyncio
import inspect
from itertools import chain
from typing import Any

import numpy as np
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.producer.message_accumulator import BatchBuilder, MessageAccumulator, MessageBatch
from aiokafka.producer.sender import Sender

from streams.deadletters import DeadLetter, encode_dead_letters
from streams.errors import BrokerError
from streams.output import MAX_OUTSTANDING_BYTES, Output
from streams.record_batch import EncodedBatch, blobs, encode_batches
from streams.settings import load_settings

NOW = 1_700_000_000_000


def encoded(records):
    null = np.array([value is None for _, value in records])
    keys, values = blobs([key for key, _ in records]), blobs([value or b"" for _, value in records])
    (batch,) = encode_batches(keys, values, NOW, null)
    return batch


def parameters(function):
    return list(inspect.signature(function).parameters)


def test_the_private_names_of_aiokafka_this_relies_on():
    """Contract of aiokafka 0.14: a batch is queued by `_append_batch`, its future is `MessageBatch.future`."""
    assert parameters(MessageAccumulator._append_batch) == ["self", "builder", "tp"]
    assert parameters(MessageAccumulator.fail_all) == ["self", "exception"]
    assert parameters(MessageBatch.__init__) == ["self", "tp", "builder", "ttl", "linger_time"]
    assert parameters(BatchBuilder._set_producer_state) == parameters(EncodedBatch._set_producer_state)
    assert "self.future = create_future()" in inspect.getsource(MessageBatch.__init__)
    assert "fail_all(task_exception)" in inspect.getsource(Sender._fail_all)
    assert "self._exception = exception" in inspect.getsource(MessageAccumulator.fail_all)
    assert "self._message_accumulator = MessageAccumulator(" in inspect.getsource(AIOKafkaProducer.__init__)


async def test_a_batch_may_be_queued_behind_others_of_its_partition():
    """`send_batch` would wait until the batch before has left; here all three stand in the accumulator at once."""
    accumulator = MessageAccumulator(None, 1 << 14, 0, 30.0)
    tp = TopicPartition("t", 0)
    pending = [accumulator._append_batch(encoded([(b"k", b"%d" % n)]), tp) for n in range(3)]
    assert list(accumulator._batches[tp]) == pending
    assert [batch.record_count for batch in pending] == [1, 1, 1]
    assert not any(batch.future.done() for batch in pending)
    accumulator.fail_all(RuntimeError("gone"))
    assert all(isinstance(batch.future.exception(), RuntimeError) for batch in pending)


async def read(bootstrap: str, topic: str, partition: int, count: int) -> list[Any]:
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest", group_id=None)
    await consumer.start()
    try:
        consumer.assign([TopicPartition(topic, partition)])
        await consumer.seek_to_beginning()
        found: list[Any] = []
        async with asyncio.timeout(20):
            while len(found) < count:
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    found += records
        return found
    finally:
        await consumer.stop()


@pytest.fixture
async def output(broker, unique, make_topics):
    topic = unique("output")
    make_topics(broker, [topic], 2)
    output = Output(load_settings(brokers=broker, _env_file=None))
    await output.start([topic])
    yield output, broker, topic
    await output.stop()


@pytest.mark.broker
async def test_batches_queued_at_once_arrive_whole_and_in_order(output):
    output, broker, topic = output
    batches = [[(b"k%d" % n, b"%d-%d" % (b, n)) for n in range(b % 7 + 1)] for b in range(60)]
    futures = [output.send(topic, 1, encoded(records)) for records in batches]
    assert len(output.outstanding()) == 60
    metadata = await asyncio.gather(*futures)
    assert output.outstanding() == []
    starts = np.cumsum([0, *map(len, batches)]).tolist()
    assert [one.offset for one in metadata] == starts[:-1]
    found = await read(broker, topic, 1, starts[-1])
    assert [(record.key, record.value) for record in found] == list(chain.from_iterable(batches))
    assert {record.timestamp for record in found} == {NOW}


@pytest.mark.broker
async def test_tombstones_and_dead_letters_arrive_as_such(output):
    output, broker, topic = output
    letter = DeadLetter(None, b"\xffraw", [("error", b"bad-json: x"), ("source-offset", b"7")])
    futures = [output.send(topic, 0, encoded([(b"gone", None), (b"kept", b"")]))]
    futures += [output.send(topic, 0, batch) for batch in encode_dead_letters([letter])]
    await asyncio.gather(*futures)
    first, second, third = await read(broker, topic, 0, 3)
    assert ((first.key, first.value), (second.key, second.value)) == ((b"gone", None), (b"kept", b""))
    assert (third.key, third.value, list(third.headers)) == (None, b"\xffraw", letter.headers)


@pytest.mark.broker
async def test_room_is_gone_while_too_much_is_unacknowledged_and_back_afterwards(output):
    output, _, topic = output
    await asyncio.wait_for(output.room(), 1)
    batch = [(b"k", b"x" * 800_000)]
    futures = [output.send(topic, n % 2, encoded(batch)) for n in range(MAX_OUTSTANDING_BYTES // 800_000 + 2)]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(output.room(), 0)
    await asyncio.wait_for(output.room(), 30)
    assert not all(future.done() for future in futures) or not output.outstanding()
    await asyncio.gather(*futures)
    assert output._bytes == 0


@pytest.mark.broker
async def test_after_the_senders_death_nothing_more_is_accepted(output):
    output, _, topic = output
    await output.send(topic, 0, encoded([(b"k", b"v")]))
    output._producer._message_accumulator.fail_all(RuntimeError("the sender is gone"))
    with pytest.raises(RuntimeError, match="the sender is gone"):
        output.send(topic, 0, encoded([(b"k", b"v")]))


@pytest.mark.broker
async def test_a_batch_the_broker_refuses_is_raised_where_the_worker_waits_for_room(kafka_broker, unique, make_topics):
    topic = unique("refused")
    make_topics(kafka_broker, [topic], 1)
    output = Output(load_settings(brokers=kafka_broker, _env_file=None))
    await output.start([topic])
    try:
        future = output.send(topic, 0, encoded([(b"k", b"x" * 2_000_000)]))
        with pytest.raises(
            BrokerError, match=f"{topic}.*TooLarge.*--entity-name {topic} --add-config max.message.bytes"
        ):
            await asyncio.wait_for(future, 20)
        for _ in range(2):
            with pytest.raises(type(future.exception())):
                await output.room()
            with pytest.raises(type(future.exception())):  # a flush would take its events for answered
                output.outstanding()
    finally:
        await output.stop()
