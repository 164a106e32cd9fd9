from itertools import chain, pairwise

import hypothesis.strategies as st
import numpy as np
import pytest
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from hypothesis import given, settings

from streams.record_batch import HEADER_BYTES, MAX_BATCH_BYTES, Blobs, EncodedBatch, blobs, encode_batches

NOW = 1_700_000_000_123


def by_aiokafka(records, timestamp_ms):
    """The same records framed by aiokafka's own builder."""
    builder = DefaultRecordBatchBuilder(2, 0, False, -1, -1, -1, 1 << 30)
    for offset, (key, value) in enumerate(records):
        assert builder.append(offset, timestamp_ms, key, value, []) is not None
    return bytes(builder.build())


def encode(records, timestamp_ms=NOW):
    null = np.array([value is None for _, value in records], np.bool_)
    keys, values = blobs([key for key, _ in records]), blobs([value or b"" for _, value in records])
    return list(encode_batches(keys, values, timestamp_ms, null))


pairs = st.tuples(st.binary(max_size=140), st.one_of(st.none(), st.binary(max_size=140)))


@given(st.lists(pairs, min_size=1, max_size=30))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_every_byte_is_what_aiokafkas_builder_writes(records):
    (batch,) = encode(records)
    assert bytes(batch._build()) == by_aiokafka(records, NOW)
    assert (batch.record_count(), batch.size(), batch.closed()) == (len(records), len(batch._build()), True)


@pytest.mark.parametrize("size", [0, 1, 62, 63, 64, 65, 8190, 8191, 8192, 70_000, 300_000])
def test_lengths_around_the_steps_of_varints(size):
    for records in ([(b"k" * size, b"v")], [(b"k", b"v" * size)], [(b"k", b"")] * (size // 100 + 1)):
        (batch,) = encode(records)
        assert bytes(batch._build()) == by_aiokafka(records, NOW)


def test_the_reader_gives_back_what_was_written_with_checksum_and_tombstones(read_records):
    records = [(b"ann", b'{"a":1}'), ("zoë".encode(), b""), (b"", b"x"), (b"bob", None)]
    (batch,) = encode(records)
    found = read_records(batch._build())
    assert [(record.key, record.value) for record in found] == records
    assert [record.offset for record in found] == [0, 1, 2, 3]
    assert {record.timestamp for record in found} == {NOW}
    assert all(record.headers == [] for record in found)


def test_a_flipped_bit_anywhere_behind_the_checksum_is_noticed():
    (batch,) = encode([(b"key", b"value")])
    for place in (21, 30, HEADER_BYTES, batch.size() - 1):
        damaged = bytearray(batch._build())
        damaged[place] ^= 1
        assert not MemoryRecords(bytes(damaged)).next_batch().validate_crc()


def test_many_records_are_split_into_batches_brokers_accept(read_records):
    rng = np.random.default_rng(0)
    records = [(b"u%d" % n, rng.bytes(int(rng.integers(0, 3_000)))) for n in range(3_000)]
    batches = encode(records)
    assert len(batches) > 4
    assert all(batch.size() <= MAX_BATCH_BYTES + HEADER_BYTES + 32 for batch in batches)
    assert all(batch.size() > MAX_BATCH_BYTES - 4_000 for batch in batches[:-1])
    start = 0
    for batch in batches:
        found = read_records(batch._build())
        assert [record.offset for record in found] == list(range(batch.record_count()))
        assert [(r.key, r.value) for r in found] == records[start : start + len(found)]
        start += len(found)
    assert start == len(records)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_record_larger_than_a_batch_goes_alone(read_records, place):
    records = [(b"a", b"small"), (b"b", b"small"), (b"c", b"small")]
    records[place] = (b"big", b"x" * 2_000_000)
    batches = encode(records)
    found = [[(record.key, record.value) for record in read_records(batch._build())] for batch in batches]
    assert [records[place]] in found
    assert list(chain.from_iterable(found)) == records


def test_records_that_fill_a_batch_to_the_byte(read_records):
    for size in range(MAX_BATCH_BYTES - 40, MAX_BATCH_BYTES + 40):
        batches = encode([(b"k", b"x" * size), (b"l", b"")])
        assert sum(batch.record_count() for batch in batches) == 2
        assert all(MemoryRecords(bytes(batch._build())).next_batch().validate_crc() for batch in batches)


def test_no_records_make_no_batch():
    assert encode([]) == []


def test_the_producer_state_is_written_as_aiokafka_writes_it():
    records = [(b"k%d" % n, b"v") for n in range(5)]
    (batch,) = encode(records)
    before = bytes(batch._build())
    batch._set_producer_state(123_456_789_012, 7, 4_000_000)
    builder = DefaultRecordBatchBuilder(2, 0, False, 123_456_789_012, 7, 4_000_000, 1 << 20)
    for offset, (key, value) in enumerate(records):
        builder.append(offset, NOW, key, value, [])
    assert bytes(batch._build()) == bytes(builder.build()) != before
    read = MemoryRecords(bytes(batch._build())).next_batch()
    assert read.validate_crc()
    assert (read.producer_id, read.producer_epoch, read.base_sequence) == (123_456_789_012, 7, 4_000_000)
    batch._set_producer_state(-1, -1, -1)
    assert bytes(batch._build()) == before


def test_an_encoded_batch_offers_what_aiokafkas_producer_asks_of_its_builder():
    """Contract of aiokafka 0.14: every name its accumulator and sender use on a builder, with the same answers."""
    own = BatchBuilder(1 << 20, 0)
    own.append(timestamp=NOW, key=b"k", value=b"v", headers=[])
    own.close()
    (batch,) = encode([(b"k", b"v")])
    for name in ("size", "record_count", "closed", "close", "_build", "_set_producer_state"):
        assert callable(getattr(BatchBuilder, name))
        assert callable(getattr(EncodedBatch, name))
    assert (batch.record_count(), batch.closed()) == (own.record_count(), own.closed())
    batch._set_producer_state(9, 1, 0)
    own._set_producer_state(9, 1, 0)
    assert bytes(batch._build()) == bytes(own._build())
    assert batch.size() == own.size()


@given(st.lists(st.binary(max_size=20), max_size=20))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_blobs_hold_every_part_in_place(parts):
    joined = blobs(parts)
    assert isinstance(joined, Blobs)
    data = joined.data.tobytes()
    stops = joined.offsets.tolist()
    assert [data[start:stop] for start, stop in pairwise(stops)] == parts
