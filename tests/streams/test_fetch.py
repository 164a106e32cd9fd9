"""Column batches hold exactly what aiokafka's own reader yields, and keep its checks."""

import asyncio
import struct
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.consumer.fetcher import Fetcher, FetchError, FetchResult, PartitionRecords
from aiokafka.consumer.subscription_state import SubscriptionState
from aiokafka.errors import CorruptRecordException, TopicAuthorizationFailedError
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import TopicPartition
from faust.types import TP
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.fetch import BatchReader, RecordBatch, fetch_batches

CLICKS = TopicPartition("clicks", 0)
VIEWS = TopicPartition("views", 0)
START_MS = 1_700_000_000_000
NONE, GZIP, SNAPPY, LZ4, ZSTD = range(5)
_CRC, _ATTRIBUTES, _LAST_OFFSET_DELTA = 17, 21, 23
_CONTROL = 0x20


def log_batch(
    base: int,
    offsets: list[int],
    *,
    codec: int = NONE,
    producer: int = -1,
    control: bytes | None = None,
    length: int | None = None,
) -> bytes:
    """One record batch as a broker sends it; `length` > the records it holds: compaction removed the last ones."""
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=codec,
        is_transactional=producer >= 0,
        producer_id=producer,
        producer_epoch=0,
        base_sequence=0,
        batch_size=1 << 20,
    )
    for number, offset in enumerate(offsets):
        key = control if control is not None else (None if offset % 7 == 3 else b"u%d" % (offset % 50))
        value = None if offset % 11 == 5 else b'{"item_id": "i%d"}' % offset
        builder.append(offset - base, timestamp=START_MS + offset * 10 + number, key=key, value=value, headers=[])
    data = bytearray(builder.build())
    struct.pack_into(">q", data, 0, base)
    attributes = struct.unpack_from(">h", data, _ATTRIBUTES)[0] | (_CONTROL if control is not None else 0)
    struct.pack_into(">h", data, _ATTRIBUTES, attributes)
    if length is not None:
        struct.pack_into(">i", data, _LAST_OFFSET_DELTA, length - 1)
    struct.pack_into(">I", data, _CRC, calc_crc32c(bytes(data[_ATTRIBUTES:])))
    return bytes(data)


def marker(offset: int, producer: int, *, commit: bool) -> bytes:
    """The end of a transaction."""
    return log_batch(offset, [offset], producer=producer, control=struct.pack(">hh", 0, 1 if commit else 0))


def partition_records(
    data: bytes, fetch_offset: int = 0, *, aborted: list[tuple[int, int]] | None = None, isolation: int = 0
) -> PartitionRecords:
    return PartitionRecords(CLICKS, MemoryRecords(data), aborted, fetch_offset, None, None, True, isolation)


def read_all(source: PartitionRecords, room: int) -> list[RecordBatch]:
    return list(BatchReader(source, room))


def rows(batches: list[RecordBatch]) -> list[tuple[int, int, bytes | None, bytes | None]]:
    assert all(len(b.offsets) == len(b.timestamps) == len(b.keys) == len(b.values) for b in batches)
    return [row for b in batches for row in zip(b.offsets, b.timestamps, b.keys, b.values, strict=True)]


@st.composite
def logs(draw: st.DrawFn) -> tuple[bytes, int, list[tuple[int, int]]]:
    """Bytes of a log with gaps, codecs, transactions and markers; where the fetch began; aborted transactions."""
    data, position, aborted = b"", draw(st.integers(0, 1000)), []
    first = position
    for _ in range(draw(st.integers(1, 6))):
        length = draw(st.integers(1, 30))
        offsets = sorted(draw(st.sets(st.integers(position, position + length - 1), min_size=1)))
        producer = draw(st.sampled_from([-1, -1, 5, 6]))
        if draw(st.booleans()):
            data += log_batch(
                position, offsets, codec=draw(st.sampled_from([NONE, GZIP, SNAPPY, LZ4, ZSTD])), producer=producer,
                length=length,
            )  # fmt: skip
        else:
            data += log_batch(position, offsets, producer=producer, length=length)
        start = position
        position += length
        if producer >= 0:
            commit = draw(st.booleans())
            data += marker(position, producer, commit=commit)
            position += 1
            if not commit:
                aborted.append((producer, start))
        position += draw(st.integers(0, 3))  # whole batches removed by compaction
    return data, draw(st.integers(first, first + 15)), aborted


@settings(max_examples=150, deadline=None)
@given(logs(), st.integers(1, 40), st.sampled_from([0, 1]))
def test_columns_are_what_aiokafka_reads(
    log: tuple[bytes, int, list[tuple[int, int]]], room: int, isolation: int
) -> None:
    data, fetch_offset, aborted = log
    oracle = partition_records(data, fetch_offset, aborted=list(aborted), isolation=isolation)
    expected = [(record.offset, record.timestamp, record.key, record.value) for record in oracle]
    source = partition_records(data, fetch_offset, aborted=list(aborted), isolation=isolation)

    batches = read_all(source, room)

    assert rows(batches) == expected
    assert all(len(batch) <= room for batch in batches)
    assert source.next_fetch_offset == oracle.next_fetch_offset
    if batches:
        assert batches[-1].next_offset == oracle.next_fetch_offset
    for batch, following in pairwise(batches):
        assert (batch.offsets or [0])[-1] < batch.next_offset
        assert batch.next_offset <= (following.offsets or [following.next_offset])[0]


def test_a_batch_carries_its_topic_and_partition() -> None:
    (batch,) = read_all(partition_records(log_batch(5, [5, 6, 8], length=10)), 100)
    assert (batch.topic, batch.partition, batch.offsets, batch.next_offset) == ("clicks", 0, [5, 6, 8], 15)
    assert batch.timestamps == [START_MS + 50, START_MS + 61, START_MS + 82]


def test_only_transaction_markers_move_the_position_without_records() -> None:
    (batch,) = read_all(partition_records(marker(9, 5, commit=True), 9), 100)
    assert (len(batch), batch.next_offset) == (0, 10)


def test_the_oldest_message_format_has_no_timestamps() -> None:
    builder = LegacyRecordBatchBuilder(magic=0, compression_type=0, batch_size=1 << 20)
    for offset in range(3):
        builder.append(offset, timestamp=None, key=b"u", value=b"v")
    batches = read_all(partition_records(bytes(builder.build())), 100)
    assert rows(batches) == [(offset, -1, b"u", b"v") for offset in range(3)]


def test_good_records_before_a_corrupt_batch_are_delivered_then_it_is_refetched() -> None:
    corrupt = bytearray(log_batch(3, [3, 4]))
    corrupt[-1] ^= 1
    source = partition_records(log_batch(0, [0, 1, 2]) + bytes(corrupt) + log_batch(5, [5]))
    reader = BatchReader(source, 100)
    assert next(reader).offsets == [0, 1, 2]
    assert not reader.exhausted
    with pytest.raises(CorruptRecordException, match="clicks"):
        next(reader)
    assert list(reader) == []  # never the records after it
    assert source.next_fetch_offset == 3


class Received:
    """A real aiokafka `Fetcher` that never had a connection: what it "received" is put there by the test."""

    def __init__(self) -> None:
        self.client = AIOKafkaClient(bootstrap_servers="127.0.0.1:1")
        self.subscriptions = SubscriptionState()
        self.subscriptions.assign_from_user([CLICKS, VIEWS])
        self.fetcher = Fetcher(self.client, self.subscriptions, isolation_level="read_uncommitted")
        self.fetcher._fetch_task.cancel()
        self.in_batches = {"clicks", "views"}
        self.may_take = True

    @property
    def assignment(self) -> Any:
        return self.subscriptions.subscription.assignment

    def receive(self, tp: TopicPartition, data: bytes, position: int = 0) -> None:
        self.subscriptions.seek(tp, position)
        records = PartitionRecords(tp, MemoryRecords(data), None, position, None, None, True, 0)
        self.fetcher._records[tp] = FetchResult(tp, assignment=self.assignment, partition_records=records, backoff=0.0)

    async def fetch(
        self, active: set[TP] | None = None, *, max_events: int = 100, timeout_seconds: float = 0.0
    ) -> dict[TP, list[Any]]:
        return await fetch_batches(
            self.fetcher,
            active,
            may_take=lambda: self.may_take,
            in_batches=self.in_batches.__contains__,
            timeout_seconds=timeout_seconds,
            max_events=max_events,
        )

    def position(self, tp: TopicPartition) -> int:
        return int(self.assignment.state_value(tp).position)


@pytest.fixture
async def received() -> AsyncIterator[Received]:
    received = Received()
    yield received
    await received.fetcher.close()
    await received.client.close()


async def test_one_batch_per_partition_and_the_position_moves(received: Received) -> None:
    received.receive(CLICKS, log_batch(0, [0, 1]) + log_batch(2, [2, 3]))
    received.receive(VIEWS, log_batch(7, [7], length=3), position=7)
    taken = await received.fetch()
    assert {tp: [batch.offsets for batch in batches] for tp, batches in taken.items()} == {
        TP("clicks", 0): [[0, 1, 2, 3]],
        TP("views", 0): [[7]],
    }
    assert (received.position(CLICKS), received.position(VIEWS)) == (4, 10)
    assert not received.fetcher._records  # so aiokafka fetches the next


async def test_the_limit_is_over_all_partitions_and_the_ones_left_out_come_first(received: Received) -> None:
    received.receive(CLICKS, log_batch(0, list(range(25))))
    received.receive(VIEWS, log_batch(0, list(range(10))))
    sizes = []
    while received.fetcher._records:
        taken = await received.fetch(max_events=10)
        sizes.append([(tp.topic, len(batches[0])) for tp, batches in taken.items()])
    assert sizes == [[("clicks", 10)], [("views", 10)], [("clicks", 10)], [("clicks", 5)]]


async def test_other_topics_arrive_as_records(received: Received) -> None:
    received.in_batches = {"clicks"}
    received.receive(VIEWS, log_batch(0, [0, 1, 2]))
    first = await received.fetch(max_events=2)
    rest = await received.fetch(max_events=2)
    assert [record.offset for taken in (first, rest) for record in taken[TP("views", 0)]] == [0, 1, 2]
    assert received.position(VIEWS) == 3


@pytest.mark.parametrize("active", [set(), {TP("views", 0)}])
async def test_partitions_that_are_not_active_keep_what_they_received(received: Received, active: set[TP]) -> None:
    received.receive(CLICKS, log_batch(0, [0]))
    assert await received.fetch(active) == {}
    assert list(received.fetcher._records) == [CLICKS]


async def test_nothing_moves_while_the_flow_is_stopped(received: Received) -> None:
    """Records thrown away now would be lost for a partition without a commit: no seek would go back to them."""
    received.receive(CLICKS, log_batch(0, [0, 1]))
    received.may_take = False
    assert await received.fetch() == {}
    assert received.position(CLICKS) == 0
    received.may_take = True
    assert list(await received.fetch()) == [TP("clicks", 0)]


async def test_records_of_a_position_left_by_a_seek_are_dropped(received: Received) -> None:
    received.receive(CLICKS, log_batch(0, [0, 1, 2, 3]))
    await received.fetch(max_events=2)
    received.subscriptions.seek(CLICKS, 1)
    assert await received.fetch() == {}
    assert (received.position(CLICKS), list(received.fetcher._records)) == (1, [])


async def test_paused_partitions_are_dropped_as_in_aiokafka(received: Received) -> None:
    received.receive(CLICKS, log_batch(0, [0]))
    received.subscriptions.pause(CLICKS)
    assert await received.fetch() == {}
    assert received.position(CLICKS) == 0


async def test_an_error_is_raised_after_the_records_before_it(received: Received) -> None:
    received.receive(CLICKS, log_batch(0, [0]))
    received.fetcher._records[VIEWS] = FetchError(error=TopicAuthorizationFailedError("views"), backoff=0.0)
    assert list(await received.fetch()) == [TP("clicks", 0)]
    with pytest.raises(TopicAuthorizationFailedError):
        await received.fetch()
    assert not received.fetcher._records


async def test_it_waits_for_records_and_for_no_longer_than_told(received: Received) -> None:
    loop = asyncio.get_running_loop()
    assert await received.fetch(timeout_seconds=0.05) == {}

    def arrive() -> None:
        received.receive(CLICKS, log_batch(0, [0]))
        for waiter in list(received.fetcher._fetch_waiters):
            received.fetcher._notify(waiter)

    loop.call_later(0.05, arrive)
    began = loop.time()
    assert list(await received.fetch(timeout_seconds=5)) == [TP("clicks", 0)]
    assert loop.time() - began < 2
    assert not received.fetcher._fetch_waiters
