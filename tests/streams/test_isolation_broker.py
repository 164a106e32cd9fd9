"""Producers' transactions on a real Kafka: what workers and trainer take of aborted and open ones, by the setting."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import pytest
from aiokafka import AIOKafkaProducer

from state.events import TOPICS
from state.replay_buffer import ReplayBuffer
from streams.event_feed import EventFeed
from streams.settings import Settings
from streams.topics import FORGET_USERS, FORGOTTEN_USERS, ITEMS
from tests.streams.event_log import PARTITIONS, Record, event, partition_of
from tests.streams.feeding import quick, times_of, until
from tests.streams.worker_cluster import Cluster
from tests.streams.worker_process import wait_for

pytestmark = [pytest.mark.broker, pytest.mark.slow]

NOW_MS = 1_700_000_000_000
Ending = str  # committed, aborted, open


@asynccontextmanager
async def producer_of(bootstrap: str, name: str) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, transactional_id=name, transaction_timeout_ms=60_000)
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()  # ends no transaction: an open one stays open until its time-out


async def transaction(producer: AIOKafkaProducer, records: Sequence[Record], ending: Ending) -> None:
    await producer.begin_transaction()
    for record in records:
        await producer.send(record.topic, record.value, key=record.key, partition=record.partition)
    await producer.flush()
    if ending == "committed":
        await producer.commit_transaction()
    elif ending == "aborted":
        await producer.abort_transaction()


async def begun(cluster: Cluster, records: Sequence[Record]) -> AIOKafkaProducer:
    """The producer of a transaction that is left open."""
    producer = AIOKafkaProducer(bootstrap_servers=cluster.bootstrap, transactional_id=cluster.app_id)
    await producer.start()
    await transaction(producer, records, "open")
    return producer


def clicks(prefix: str, count: int = 40) -> list[Record]:
    return [event("clicks", f"{prefix}{n}", f"i{n % 50 + 1}", NOW_MS + n) for n in range(count)]


def at(number: int) -> Record:
    """The event of that time, on one of the trainer's topics and four partitions."""
    value = orjson.dumps({"user_id": "u", "item_id": "i", "timestamp": NOW_MS + number})
    return Record(TOPICS[number % 3], number % 4, b"u", value, NOW_MS)


def request(user: bytes) -> Record:
    return Record(FORGET_USERS, partition_of(user), user, b"", NOW_MS)


def blocked(item: str) -> Record:
    key = item.encode()
    return Record(ITEMS, partition_of(key), key, orjson.dumps({"item_id": item, "blocked": True}), NOW_MS)


def names(prefix: str, count: int = 40) -> set[str]:
    return {f"{prefix}{n}" for n in range(count)}


def answered(cluster: Cluster) -> set[str]:
    return {message["user_id"] for message in cluster.recommendations()}


def listed(cluster: Cluster) -> set[str]:
    return {item["item_id"] for message in cluster.recommendations() for item in message["items"]}


def told(cluster: Cluster) -> set[str]:
    return {orjson.loads(record.value)["user_id"] for record in cluster.read(FORGOTTEN_USERS)}


@pytest.mark.parametrize("small", ["kafka"], indirect=True)
@pytest.mark.parametrize("isolation", ["read_committed", "read_uncommitted"])
def test_a_worker_takes_aborted_events_requests_and_entries_only_where_asked(small: Cluster, isolation: str) -> None:
    wrong = [Record("clicks", number, b"wrong", b"{", NOW_MS) for number in range(PARTITIONS)]

    async def send() -> None:
        async with producer_of(small.bootstrap, small.app_id) as producer:
            await transaction(producer, [blocked("i1")], "committed")
            await transaction(producer, [blocked("i2")], "aborted")
            await transaction(producer, clicks("good"), "committed")
            await transaction(producer, [*clicks("undone"), *wrong, request(b"good1")], "aborted")
            await transaction(producer, [request(b"good2")], "committed")

    asyncio.run(send())
    worker = small.worker(isolation=isolation, top_k="50").wait_ready()
    committed = isolation == "read_committed"
    wait_for(lambda: "good2" in told(small), 90, small.output)
    expected = names("good") if committed else names("good") | names("undone")
    wait_for(lambda: answered(small) >= expected, 90, small.output)
    small.produce(clicks("after"))
    wait_for(lambda: answered(small) >= names("after"), 90, small.output)

    assert answered(small) == expected | names("after")
    assert len(small.dead_letters()) == (0 if committed else len(wrong))
    assert told(small) == ({"good2"} if committed else {"good1", "good2"})
    assert {"i1", "i2"} - listed(small) == ({"i1"} if committed else {"i1", "i2"})
    assert worker.stop() == 0, worker.output()


@pytest.mark.parametrize("small", ["kafka"], indirect=True)
def test_an_open_transaction_holds_its_partitions_until_it_ends(small: Cluster) -> None:
    """What comes behind it waits; neither a start nor a first offset at the end waits for it or passes it."""
    small.produce(clicks("old"))

    with asyncio.Runner() as runner:
        producer = runner.run(begun(small, [*clicks("late"), blocked("i1")]))
        small.produce(clicks("behind"))
        worker = small.worker(isolation="read_committed", start_from="latest").wait_ready()
        assert "catalogue was not read" not in worker.log.read_text()
        time.sleep(2)
        assert worker.applied() == 0
        runner.run(producer.commit_transaction())
        runner.run(producer.stop())
        wait_for(lambda: answered(small) == names("late") | names("behind"), 90, small.output)
        assert worker.stop() == 0, worker.output()
    assert max(small.answered().values()) == 1


@pytest.fixture
def settings(contract_settings: Settings, unique: Callable[[str], str]) -> Settings:
    return quick(contract_settings, unique("feed"))


@pytest.mark.parametrize("broker", ["kafka"], indirect=True)
@pytest.mark.parametrize("isolation", ["read_committed", "read_uncommitted"])
async def test_the_trainer_learns_no_aborted_events_and_waits_for_no_open_ones(
    settings: Settings, tmp_path: Path, isolation: str
) -> None:
    settings = settings.model_copy(update={"isolation": isolation})
    bootstrap = settings.broker_list[0]
    async with producer_of(bootstrap, settings.app_id) as producer:
        for ending, first in (("committed", 0), ("aborted", 100), ("committed", 200), ("aborted", 300), ("open", 400)):
            await transaction(producer, [at(n) for n in range(first, first + 30)], ending)
        with ReplayBuffer(tmp_path) as buffer:
            feed = EventFeed(settings, buffer)
            await feed.start()
            try:
                await until(feed, lambda: feed.ready)
                for _ in range(150):
                    await feed.take(0.1)
                    if await feed.caught_up():
                        break
                assert await feed.caught_up()
                await feed.commit()
            finally:
                await feed.stop()
            firsts = (0, 200) if isolation == "read_committed" else (0, 100, 200, 300, 400)
            assert times_of(buffer) == [NOW_MS + n for first in firsts for n in range(first, first + 30)]
