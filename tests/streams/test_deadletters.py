from aiokafka.record.memory_records import MemoryRecords

from streams.deadletters import dead_letter, encode_dead_letters
from streams.decode import Rejected
from streams.fetch import RecordBatch

LIMIT = 1_048_588  # message.max.bytes of a broker as it comes


def letter(value, key=b"u1", reason="bad-json", detail="not JSON"):
    batch = RecordBatch("views", 4, [7, 9], [1, 2], [b"other", key], [b"{}", value], 10)
    return dead_letter(batch, Rejected(1, reason, detail))


def test_keeps_the_bytes_and_tells_reason_and_origin():
    made = letter(b"\xff\x00oops")
    assert (made.key, made.value) == (b"u1", b"\xff\x00oops")
    assert dict(made.headers) == {
        "error": b"bad-json: not JSON",
        "source-topic": b"views",
        "source-partition": b"4",
        "source-offset": b"9",
    }


def test_a_missing_key_and_a_missing_value_can_be_sent(read_records):
    made = letter(None, key=None, reason="empty")
    (batch,) = encode_dead_letters([made])
    (record,) = read_records(batch._build())
    assert (record.key, record.value) == (None, b"")


def test_a_long_detail_is_cut_between_characters():
    for detail in ("é" * 500, "x" + "😀" * 500, "\n" * 1000):
        error = dict(letter(b"", detail=detail).headers)["error"]
        assert len(error) <= 300
        assert error.decode().startswith("bad-json: ")
        assert len(error) > 290


def test_a_record_of_any_size_fits_what_brokers_accept(read_records):
    """Producers may compress: a key or value of several megabytes can arrive where one of 1 MB cannot be sent."""
    for key, value in ((b"k" * 10, b"v" * 3_000_000), (b"k" * 3_000_000, b"v"), (b"k" * 2_000_000, b"v" * 2_000_000)):
        made = letter(value, key)
        assert dict(made.headers)["truncated"] == str(len(value)).encode()
        (batch,) = encode_dead_letters([made])
        assert len(batch._build()) < LIMIT
        (record,) = read_records(batch._build())
        assert key.startswith(record.key)
        assert value.startswith(record.value)
        assert min(len(key), 100_000) == len(record.key)


def test_a_record_just_within_the_limit_is_left_whole():
    made = letter(b"v" * 899_998)
    assert (len(made.value), "truncated" in dict(made.headers)) == (899_998, False)
    assert "truncated" in dict(letter(b"v" * 899_999).headers)


def test_many_are_packed_into_batches_in_order_with_their_headers(read_records):
    letters = [letter(b"%d" % n + b"x" * 2_000, detail=f"number {n}") for n in range(1_500)]
    batches = list(encode_dead_letters(letters))
    assert len(batches) > 3
    assert all(batch.closed() for batch in batches)
    found = []
    for batch in batches:
        assert batch.size() < LIMIT
        assert batch.record_count() > 0
        found += read_records(batch._build())
        assert MemoryRecords(bytes(batch._build())).next_batch().validate_crc()
    assert [record.value for record in found] == [one.value for one in letters]
    assert [dict(record.headers)["error"] for record in found] == [dict(one.headers)["error"] for one in letters]


def test_none_make_no_batch():
    assert list(encode_dead_letters([])) == []
