import asyncio
import time
from collections import defaultdict

import numpy as np
import orjson
import polars as pl
import pytest
from aiokafka.structs import TopicPartition
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from models.tables import Events
from state.events import TOPICS
from streams.broker import EmbeddedBroker
from streams.errors import BrokerError
from streams.read_topic import read_to_end, reader
from streams.replay import Replayed, partition_of, produce_catalogue, produce_events, schedule
from streams.settings import load_settings
from streams.tail import read_titles


@pytest.fixture
def settings(contract_settings):
    return contract_settings


def events_of(rows, extras=None):
    """Events from (user, item, kind, time_ms) rows."""
    users, items, kinds, times = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Events(
        pl.Series(users, dtype=pl.String),
        pl.Series(items, dtype=pl.String),
        np.array(kinds, np.uint8),
        np.array(times, np.int64),
        pl.DataFrame(extras or {}),
    )


def log(count, seed=0):
    random = np.random.default_rng(seed)
    users = random.integers(0, 50, count)
    return events_of(
        [(f"u{users[n]}", f"i{random.integers(0, 99)}", int(random.integers(0, 3)), 1_000 * n) for n in range(count)]
    )


def read_all(settings, topics=TOPICS):
    partitions = [TopicPartition(topic, number) for topic in topics for number in range(settings.partitions)]

    async def read():
        async with reader(settings, partitions) as consumer:
            return [record async for batch in read_to_end(consumer, partitions, 20) for record in batch]

    return asyncio.run(read())


@pytest.mark.parametrize(
    ("key", "hashed"),  # vectors of Kafka's own UtilsTest
    [("21", -973932308), ("foobar", -790332482), ("a-little-bit-long-string", -985981536), ("abc", 479470107)],
)
def test_partitions_are_those_of_kafkas_java_clients(key, hashed):
    for partitions in (1, 3, 8, 17):
        assert partition_of(key, partitions) == (hashed & 0x7FFFFFFF) % partitions


def test_schedule():
    times = np.array([5_000, 6_000, 5_500, 8_000])
    assert schedule(times, None, None) is None
    assert schedule(times, 2.0, None).tolist() == [0, 0.5, 1.0, 1.5]
    assert schedule(times, None, 2.0).tolist() == [0, 0.5, 0.5, 1.5]  # the late one goes with its predecessor
    assert schedule(np.array([], np.int64), None, 2.0) is None


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=50), st.floats(0.01, 1e6))
@hypothesis_settings(max_examples=50, deadline=None)
def test_a_schedule_starts_at_once_and_never_runs_backwards(times, speed):
    due = schedule(np.array(times, np.int64), None, speed)
    assert due[0] == 0
    assert (np.diff(due) >= 0).all()


@pytest.mark.broker
def test_every_event_arrives_once_in_order_on_its_users_partition(settings):
    events = log(40_000)  # more than one chunk
    seen = []
    done = asyncio.run(produce_events(settings, events, on_progress=seen.append))
    assert done.events == 40_000
    assert seen == sorted(seen)
    assert seen[-1] == 40_000
    records = read_all(settings)
    assert done.bytes == sum(len(record.key) + len(record.value) for record in records)
    expected, found = defaultdict(list), defaultdict(list)
    for user, item, kind, time_ms in zip(events.users, events.items, events.kinds, events.times_ms, strict=True):
        where = TOPICS[kind], partition_of(user, settings.partitions)
        expected[where].append({"user_id": user, "item_id": item, "timestamp": int(time_ms)})
    for record in records:
        value = orjson.loads(record.value)
        assert record.key == value["user_id"].encode()
        found[record.topic, record.partition].append(value)
    assert found == expected


@pytest.mark.broker
def test_kafka_timestamps_are_now_and_event_timestamps_the_logs(settings):
    before_ms = int(time.time() * 1000)
    asyncio.run(produce_events(settings, log(10)))
    records = read_all(settings)
    assert all(before_ms <= record.timestamp <= int(time.time() * 1000) for record in records)
    assert sorted(orjson.loads(record.value)["timestamp"] for record in records) == [1_000 * n for n in range(10)]


@pytest.mark.broker
def test_optional_columns_travel_and_blanks_do_not(settings):
    rows = [("u", f"i{n}", 0, n) for n in range(3)]
    extras = {"rating": [5.0, None, float("nan")], "session_id": ["s", None, "t"]}
    asyncio.run(produce_events(settings, events_of(rows, extras)))
    values = [orjson.loads(record.value) for record in read_all(settings)]
    assert [{key: value[key] for key in value.keys() - {"user_id", "item_id", "timestamp"}} for value in values] == [
        {"rating": 5.0, "session_id": "s"},
        {},
        {"session_id": "t"},
    ]


@pytest.mark.broker
def test_ids_of_any_alphabet(settings):
    events = events_of([('zoë \u2603"\\', "日本\n", 1, 7), ("\U0001f600" * 60, "i", 2, 8)])
    asyncio.run(produce_events(settings, events))
    found = {(orjson.loads(r.value)["user_id"], orjson.loads(r.value)["item_id"]) for r in read_all(settings)}
    assert found == set(zip(events.users, events.items, strict=True))


@pytest.mark.broker
def test_a_rate_paces_and_now_stamps_when_events_were_due(settings):
    started_ms = time.time() * 1000
    done = asyncio.run(produce_events(settings, log(300), rate=500.0, timestamps="now"))
    assert 0.55 <= done.seconds < 5
    stamps = sorted(orjson.loads(record.value)["timestamp"] for record in read_all(settings))
    gaps = np.diff(stamps)
    assert (gaps >= 1).all()  # 2 ms apart by schedule, whatever the sender managed
    assert (gaps <= 3).all()
    assert stamps[0] >= started_ms


@pytest.mark.broker
def test_a_speed_follows_the_logs_clock(settings):
    events = events_of([("u", "i", 0, 1_000 * n) for n in range(6)])  # five seconds
    assert 0.5 <= asyncio.run(produce_events(settings, events, speed=10.0)).seconds < 5


@pytest.mark.broker
def test_an_empty_log(settings):
    done = asyncio.run(produce_events(settings, events_of([])))
    assert (done.events, done.bytes) == (0, 0)
    assert Replayed(0, 0.0, 0).events_per_second == 0


def test_missing_topics_are_named_before_anything_is_sent():
    with EmbeddedBroker() as broker, pytest.raises(BrokerError, match="recstream topics create"):
        asyncio.run(produce_events(load_settings(brokers=broker.bootstrap), log(1)))


@pytest.mark.broker
def test_the_catalogue_is_keyed_by_item(settings):
    titles = {f"i{n}": f"Title {n}" for n in range(500)}
    assert asyncio.run(produce_catalogue(settings, titles)) == 500
    for record in read_all(settings, ["items"]):
        assert record.partition == partition_of(record.key.decode(), settings.partitions)
    assert asyncio.run(read_titles(settings)) == titles


@pytest.mark.broker
@pytest.mark.slow
def test_it_is_fast_enough_to_load_workers(settings):
    events = log(200_000)
    asyncio.run(produce_events(settings, log(10)))  # compiles the framing
    assert asyncio.run(produce_events(settings, events)).events_per_second > 50_000  # 370,000 on an idle core
