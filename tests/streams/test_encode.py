from itertools import pairwise

import hypothesis.strategies as st
import numpy as np
import orjson
import pytest
from hypothesis import given, settings

from state.events import TOPICS
from state.items import ItemIndex
from streams.encode import ItemFragments, Message, encode_recommendations, encode_users

MESSAGE = Message("v0007-00c0ffee", 1_700_000_000_999)
PARTITION = 5
ids = st.text(min_size=1, max_size=64)
scores = st.floats(width=32, allow_nan=False, allow_infinity=False)


def encode(
    users, lists, kinds, offsets, times, message=MESSAGE, partition=PARTITION, fragments=None, index=None, k=None
):
    """JSON values of `lists` of (item id, score), through the real pieces."""
    index = ItemIndex() if index is None else index
    fragments = ItemFragments(index) if fragments is None else fragments
    k = max(map(len, lists), default=0) if k is None else k
    items, values = np.zeros((len(lists), k), np.int32), np.full((len(lists), k), -np.inf, np.float32)
    for row, entries in enumerate(lists):
        for column, (item, score) in enumerate(entries):
            items[row, column], values[row, column] = index.number(item), score
    as_json, keys = encode_users(users)
    blobs = encode_recommendations(
        as_json, items, values, np.array(kinds, np.uint8), np.full(len(users), partition, np.int32),
        np.array(offsets, np.int64), np.array(times, np.int64), fragments.cover(items), message,
    )  # fmt: skip
    return split(blobs), split(keys)


def split(blobs):
    data, stops = blobs.data.tobytes(), blobs.offsets.tolist()
    return [data[start:stop] for start, stop in pairwise(stops)]


@st.composite
def batches(draw):
    n = draw(st.integers(1, 6))
    entry = st.tuples(ids, scores)
    return (
        draw(st.lists(ids, min_size=n, max_size=n)),
        draw(st.lists(st.lists(entry, max_size=4), min_size=n, max_size=n)),
        draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)),
        draw(st.lists(st.integers(0, 2**63 - 1), min_size=n, max_size=n)),
        draw(st.lists(st.integers(0, 2**52), min_size=n, max_size=n)),
    )


@given(batch=batches())
@settings(max_examples=120, deadline=None, derandomize=True)
def test_messages_read_back_by_orjson_say_what_was_recommended_to_whom_and_why(batch):
    users, lists, kinds, offsets, times = batch
    values, keys = encode(*batch)
    assert keys == [user.encode() for user in users]
    for value, user, entries, kind, offset, time_ms in zip(values, users, lists, kinds, offsets, times, strict=True):
        message = orjson.loads(value)
        assert list(message) == ["user_id", "items", "model_version", "event", "generated_at"]
        assert message["user_id"] == user
        assert message["model_version"] == MESSAGE.model_version
        assert message["generated_at"] == MESSAGE.generated_at_ms
        assert message["event"] == {"topic": TOPICS[kind], "partition": 5, "offset": offset, "timestamp": time_ms}
        assert [list(entry) for entry in message["items"]] == [["item_id", "score"]] * len(entries)
        assert [entry["item_id"] for entry in message["items"]] == [item for item, _ in entries]
        for entry, (_, score) in zip(message["items"], entries, strict=True):
            expected = float(np.clip(np.float64(np.float32(score)), -1e14, 1e14))
            assert entry["score"] == pytest.approx(expected, rel=1e-15, abs=0.50001e-4)


@pytest.mark.parametrize(
    ("score", "text"),
    [
        (0.0, "0.0000"), (-0.0, "0.0000"), (1.0, "1.0000"), (-1.5, "-1.5000"), (0.25, "0.2500"), (-0.0001, "-0.0001"),
        (1e-30, "0.0000"), (-1e-30, "0.0000"), (0.99999, "1.0000"), (-0.99999, "-1.0000"), (123456.0, "123456.0000"),
        (1e20, "100000000000000.0000"), (-3.4e38, "-100000000000000.0000"), (float("inf"), "100000000000000.0000"),
    ],
)  # fmt: skip
def test_scores_are_written_with_four_decimals(score, text):
    (value,), _ = encode(["u"], [[("i", score)]], [0], [0], [0])
    assert b'"score":%b}' % text.encode() in value


def test_the_text_of_a_message():
    (value,), _ = encode(['a"\\\n'], [[("i9", 1.5), ("é", -2)]], [1], [42], [1_700_000_000_000])
    assert value == (
        b'{"user_id":"a\\"\\\\\\n","items":[{"item_id":"i9","score":1.5000},{"item_id":"\xc3\xa9","score":-2.0000}],'
        b'"model_version":"v0007-00c0ffee","event":{"topic":"views","partition":5,"offset":42,"timestamp":1700000000000},'
        b'"generated_at":1700000000999}'
    )


def test_the_longest_everything_fits_the_buffer():
    """Ids of 256 control characters (6 bytes each in JSON), the longest numbers, the longest lists."""
    user = "\x01" * 256
    entries = [("\x02" * 250 + f"{n:06d}", -3.4e38) for n in range(200)]
    message = Message('v"' * 40, 2**63 - 1)
    values, keys = encode([user] * 3, [entries] * 3, [2] * 3, [2**63 - 1] * 3, [2**63 - 1] * 3, message, 9_999)
    assert keys == [user.encode()] * 3
    for value in values:
        read = orjson.loads(value)
        assert read["model_version"] == message.model_version
        assert [entry["item_id"] for entry in read["items"]] == [item for item, _ in entries]


def test_lists_end_at_the_first_empty_place():
    values, _ = encode(["a", "b"], [[], [("i", 1)]], [0, 0], [0, 1], [0, 0], k=3)
    assert [len(orjson.loads(value)["items"]) for value in values] == [0, 1]


def test_fragments_are_encoded_once_and_survive_growth_of_items_and_buffer():
    index = ItemIndex()
    fragments = ItemFragments(index)
    first, _ = encode(["u"], [[("early", 1)]], [0], [0], [0], fragments=fragments, index=index)
    many = [(f"{n}-" + "x" * 240, n) for n in range(6_000)]  # past the first sizes of both arrays
    values, _ = encode(
        ["u"] * 6, [many[n::6] for n in range(6)], [0] * 6, [0] * 6, [0] * 6, fragments=fragments, index=index
    )
    for n, value in enumerate(values):
        assert [entry["item_id"] for entry in orjson.loads(value)["items"]] == [item for item, _ in many[n::6]]
    used = fragments._used
    again, _ = encode(["u"], [[("early", 1)]], [0], [0], [0], fragments=fragments, index=index)
    assert (again, fragments._used) == (first, used)


def test_model_version_and_partition_are_those_of_the_message_not_of_an_earlier_one():
    seen = set()
    for version in ("popularity", "v0001-00000001"):
        for partition in (0, 7):
            (value,), _ = encode(["u"], [[]], [0], [0], [0], Message(version, 5), partition)
            read = orjson.loads(value)
            seen.add((read["model_version"], read["event"]["partition"]))
    assert len(seen) == 4


@given(st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=20))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_users_are_quoted_as_orjson_does_and_keyed_by_their_bytes(users):
    as_json, keys = encode_users(users)
    assert split(as_json) == [orjson.dumps(user) for user in users]
    assert split(keys) == [user.encode() for user in users]
