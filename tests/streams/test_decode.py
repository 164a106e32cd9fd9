import math
import random
import string
from datetime import UTC, datetime, timedelta, timezone

import hypothesis.strategies as st
import orjson
import pytest
from hypothesis import given, settings

from streams.decode import MAX_FUTURE_MS, decode

NOW = 1_800_000_000_000
GOOD = {"user_id": "u1", "item_id": "i9", "timestamp": 1_700_000_000_000}


def value(**changes):
    """A valid event with some fields replaced, `...` leaving one out."""
    event = {**GOOD, **changes}
    return orjson.dumps({name: entry for name, entry in event.items() if entry is not ...})


def reason_of(raw, max_bytes=65_536):
    """Why an event is rejected, or None when it is taken."""
    decoded = decode([raw], NOW, max_bytes)
    return decoded.rejected[0].reason if decoded.rejected else None


def time_of(timestamp):
    decoded = decode([value(timestamp=timestamp)], NOW)
    assert not decoded.rejected, decoded.rejected
    return int(decoded.times_ms[0])


REJECTED = {
    "empty": [None, b""],
    "bad-json": [
        b" ", b"oops", b"{", b"\xff\xfe", b"\x00", b'{"user_id":"u"', value() + b"x", b"[" * 2_000 + b"]" * 2_000,
        b'{"user_id":"\xed\xa0\x80","item_id":"i","timestamp":1}', b'{"user_id":"\\ud800","item_id":"i","timestamp":1}',
        b'{"user_id":"u","item_id":"i","timestamp":NaN}', b'{"user_id":"u","item_id":"i","timestamp":Infinity}',
        b"{'user_id':'u'}", value()[:-1], b'{"user_id":"u","item_id":"i","timestamp":1,"price":1e999}',
    ],
    "not-an-object": [b"null", b"true", b"5", b"1.5", b'"text"', b"[]", b'["user_id","item_id","timestamp"]',
                      b'[{"a":1}]'],
    "missing-id": [
        b"{}", value(user_id=...), value(item_id=...), value(user_id=""), value(item_id=""),
        value(item_id=..., timestamp=...),
    ],
    "bad-id": [
        value(**{field: bad}) for field in ("user_id", "item_id") for bad in (None, 5, 1.5, True, [], {}, ["u"])
    ],
    "oversized-id": [
        value(**{field: bad}) for field in ("user_id", "item_id")
        for bad in ("x" * 257, "é" * 129, "x" * 255 + "é", "€" * 86, "😀" * 65, "x" * 60_000)
    ],
    "bad-timestamp": [
        value(timestamp=...), *(
            value(timestamp=bad)
            for bad in (None, True, [], {}, "", "soon", "1700000000000", "2023-13-01", "2023-11-14T25:00:00", 0.5,
                        1.7e12 + 0.25, -1, -(10**15), -1e300, "1969-12-31T23:59:59Z", "0001-01-01T00:00:00+14:00")
        ),
    ],
    "future-timestamp": [
        value(timestamp=bad)
        for bad in (NOW + MAX_FUTURE_MS + 1, 2**63 - 1, 2**63, 2**64 - 1, 1e300, "2200-01-01T00:00:00Z", "9999-12-31")
    ],
    "bad-number": [
        value(**{field: bad}) for field in ("rating", "price", "quantity") for bad in ("5", True, [], {}, "NaN")
    ],
    "bad-context": [
        value(context=bad)
        for bad in ("x", 5, [], {"a": "x" * 257}, {"a": []}, {"a": {}}, {str(n): 1 for n in range(65)})
    ],
    "oversized": [value(context={"a": "x" * 70_000}), b"x" * 65_537],
}  # fmt: skip
CASES = [(reason, raw) for reason, raws in REJECTED.items() for raw in raws]


@pytest.mark.parametrize(("reason", "raw"), CASES, ids=[f"{reason}-{n}" for n, (reason, _) in enumerate(CASES)])
def test_is_rejected_with_its_reason(reason, raw):
    assert reason_of(raw) == reason


def test_moments_beyond_what_a_datetime_holds_in_utc_are_rejected():
    assert reason_of(value(timestamp="9999-12-31T23:59:59-14:00")) in ("bad-timestamp", "future-timestamp")


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"user_id": "x" * 256}, {"item_id": "é" * 128}, {"user_id": "😀" * 64}, {"user_id": "€" * 85 + "x"},
        {"user_id": " "}, {"user_id": 'a"b\\c\n\u0000'}, {"timestamp": 0}, {"timestamp": NOW + MAX_FUTURE_MS},
        {"timestamp": 1.7e12}, {"rating": 5, "price": -1.5, "quantity": 0}, {"rating": None, "context": None},
        {"context": {}}, {"context": {"device": "x" * 256, "n": 1.5, "flag": True, "none": None}},
        {"context": {str(n): n for n in range(64)}}, {"event_id": [], "session_id": {}, "anything": {"deep": [1]}},
    ],
)  # fmt: skip
def test_is_taken(changes):
    decoded = decode([value(**changes)], NOW)
    assert not decoded.rejected
    event = {**GOOD, **changes}
    assert (decoded.users, decoded.items) == ([event["user_id"]], [event["item_id"]])
    assert decoded.times_ms.tolist() == [event["timestamp"]]


def test_a_value_of_exactly_the_limit_is_taken():
    raw = value()
    assert reason_of(raw, max_bytes=len(raw)) is None
    assert reason_of(raw, max_bytes=len(raw) - 1) == "oversized"


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2023-11-14T22:13:20Z", 1_700_000_000_000),
        ("2023-11-14T22:13:20", 1_700_000_000_000),
        ("2023-11-14 22:13:20.5+00:00", 1_700_000_000_500),
        ("2023-11-15T03:43:20.123+05:30", 1_700_000_000_123),
        ("2023-11-14T14:13:20.999999-08:00", 1_700_000_000_999),
        ("2023-11-14", 1_699_920_000_000),
        ("1970-01-01T00:00:00Z", 0),
    ],
)
def test_iso_8601_is_read_in_its_zone(text, moment):
    assert time_of(text) == moment


@given(
    milliseconds=st.integers(0, NOW + MAX_FUTURE_MS),
    offset_minutes=st.integers(-14 * 60, 14 * 60),
)
@settings(max_examples=500, deadline=None, derandomize=True)
def test_iso_8601_loses_no_millisecond(milliseconds, offset_minutes):
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=milliseconds)
    text = moment.astimezone(timezone(timedelta(minutes=offset_minutes))).isoformat(timespec="milliseconds")
    assert time_of(text) == milliseconds


def check_partition(values, decoded):
    """Check that every place of the batch is either an event or rejected, both in order."""
    taken, refused = decoded.positions.tolist(), [bad.position for bad in decoded.rejected]
    assert sorted(taken + refused) == list(range(len(values)))
    assert (taken, refused) == (sorted(taken), sorted(refused))
    assert len(decoded.users) == len(decoded.items) == len(decoded.times_ms) == len(taken)
    assert all(bad.reason in REJECTED and bad.detail for bad in decoded.rejected)


@given(st.lists(st.one_of(st.none(), st.binary(max_size=60), st.just(value())), max_size=20))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_bytes_are_events_or_rejected_and_never_raise(values):
    decoded = decode(values, NOW, max_bytes=50)
    check_partition(values, decoded)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=80),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)
KNOWN = ["user_id", "item_id", "timestamp", "rating", "price", "quantity", "context"]
fields = st.sampled_from([*KNOWN, "other"])


@given(st.lists(st.one_of(json_values, st.dictionaries(fields, json_values, max_size=6)), max_size=8))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_json_is_an_event_or_rejected_and_what_is_taken_is_valid(documents):
    values = [orjson.dumps(document) for document in documents]
    decoded = decode(values, NOW)
    check_partition(values, decoded)
    for position, user, item, time_ms in zip(
        decoded.positions.tolist(), decoded.users, decoded.items, decoded.times_ms.tolist(), strict=True
    ):
        event = orjson.loads(values[position])
        assert (user, item) == (event["user_id"], event["item_id"])
        assert 0 < len(user.encode()) <= 256
        assert 0 < len(item.encode()) <= 256
        assert 0 <= time_ms <= NOW + MAX_FUTURE_MS


@given(st.dictionaries(st.text().filter(lambda name: name not in KNOWN), json_values, max_size=6))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_unknown_fields_never_reject_an_event(others):
    assert reason_of(orjson.dumps({**GOOD, **others})) is None


# -- ten thousand malformed events among valid ones


def _valid(rng):
    event = {
        "user_id": "".join(rng.choices(string.printable + "éß漢😀", k=rng.randint(1, 40))),
        "item_id": f"i{rng.randrange(10**6)}",
        "timestamp": rng.randrange(NOW),
    }
    if rng.random() < 0.3:
        event["timestamp"] = datetime.fromtimestamp(event["timestamp"] // 1000, UTC).isoformat()
    if rng.random() < 0.3:
        event["price"] = rng.choice([1, 2.5, -3, 0, None])
    if rng.random() < 0.3:
        event["context"] = {"device": rng.choice(["phone", "desk"]), "n": rng.random()}
    if rng.random() < 0.2:
        event["unknown"] = rng.choice([[1, 2], {"a": None}, "x", True])
    return event


def _set(field, choices):
    return lambda rng, event: orjson.dumps({**event, field: rng.choice(choices)})


def _without(field):
    return lambda rng, event: orjson.dumps({name: entry for name, entry in event.items() if name != field})


def _text(rng, low, high, alphabet):
    return "".join(rng.choices(alphabet, k=rng.randint(low, high)))


NOT_STRINGS = [None, 0, 1.5, True, False, [], ["u"], {}, {"id": "u"}]
MUTATIONS = [
    lambda rng, event: orjson.dumps(event)[: -rng.randint(1, 20)],  # cut short: an object without its end
    lambda rng, event: orjson.dumps(event) + rng.choice([b"}", b",", b"x", b"{}", b"\x00"]),
    lambda rng, event: rng.choice([b"x", b"\xff", b"'", b"\x00", b"{"]) + orjson.dumps(event),
    lambda rng, event: orjson.dumps(event).replace(b'"', b"'"),
    lambda rng, event: orjson.dumps(event).replace(b":", b"=", 1),
    lambda rng, event: b"\xff" + rng.randbytes(rng.randint(0, 300)),
    lambda rng, event: orjson.dumps([event]),
    lambda rng, event: orjson.dumps(list(event.items())),
    lambda rng, event: orjson.dumps(orjson.dumps(event).decode()),
    lambda rng, event: orjson.dumps(rng.choice([None, True, 5, -1.5, "text", []])),
    lambda rng, event: None,
    lambda rng, event: b"",
    lambda rng, event: orjson.dumps({**event, "context": {"a": "x" * rng.randint(65_536, 80_000)}}),
    lambda rng, event: orjson.dumps({**event, "user_id": _text(rng, 257, 2000, string.ascii_letters)}),
    lambda rng, event: orjson.dumps({**event, "item_id": _text(rng, 129, 250, "éßñ")}),
    lambda rng, event: orjson.dumps({**event, "item_id": _text(rng, 65, 250, "😀🎬")}),
    lambda rng, event: orjson.dumps({**event, "timestamp": NOW + MAX_FUTURE_MS + rng.randint(1, 10**15)}),
    lambda rng, event: orjson.dumps({**event, "timestamp": -rng.randint(1, 10**15)}),
    lambda rng, event: orjson.dumps({**event, "timestamp": rng.randrange(NOW) + 0.5}),
    lambda rng, event: orjson.dumps({**event, "timestamp": _text(rng, 0, 30, "abcxyz/ ")}),
    lambda rng, event: orjson.dumps({**event, "timestamp": f"20{rng.randint(10, 20)}-{rng.randint(13, 99)}-01"}),
    lambda rng, event: orjson.dumps({**event, "timestamp": None}).replace(
        b'"timestamp":null', b'"timestamp":' + rng.choice([b"NaN", b"Infinity", b"-Infinity", b"1e999", b"01", b"0x10"])
    ),
    lambda rng, event: orjson.dumps({**event, "price": None}).replace(
        b'"price":null', b'"price":' + rng.choice([b"NaN", b"Infinity", b"-Infinity", b"1e999", b".5"])
    ),
    lambda rng, event: orjson.dumps({**event, "context": {str(n): n for n in range(rng.randint(65, 200))}}),
    lambda rng, event: orjson.dumps({**event, "context": {"a": rng.choice([[], {}, "x" * 257])}}),
    _set("context", ["x", 5, [], True]),
    _set("user_id", ["", *NOT_STRINGS]), _set("item_id", ["", *NOT_STRINGS]),
    _set("timestamp", [None, True, False, [], {}, "", "yesterday", "12:00"]),
    _set("rating", ["5", True, [], {}]), _set("price", ["free", False, [1]]), _set("quantity", ["1", True, {}]),
    _without("user_id"), _without("item_id"), _without("timestamp"),
]  # fmt: skip


def test_of_ten_thousand_malformed_events_among_valid_ones_all_are_rejected_and_all_valid_ones_kept():
    rng = random.Random(7)
    values, valid = [], {}
    for n in range(20_000):
        event = _valid(rng)
        if n % 2:
            valid[len(values)] = event
            values.append(orjson.dumps(event))
        else:
            values.append(MUTATIONS[n // 2 % len(MUTATIONS)](rng, event))
    decoded = decode(values, NOW)
    check_partition(values, decoded)
    assert decoded.positions.tolist() == list(valid)
    assert decoded.users == [event["user_id"] for event in valid.values()]
    assert decoded.items == [event["item_id"] for event in valid.values()]
    assert len(decoded.rejected) == 10_000
    assert {bad.reason for bad in decoded.rejected} == set(REJECTED)
    assert all(math.isfinite(time_ms) for time_ms in decoded.times_ms.tolist())
