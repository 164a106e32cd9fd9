"""The feed against a broker: everything once, whatever is restarted in between."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaTimeoutError
from kafka.admin import NewTopic

from state.replay_buffer import ReplayBuffer
from streams.event_feed import EventFeed
from streams.fetch import RecordBatch
from streams.kafka import admin, client_options
from streams.settings import Settings
from streams.topics import FORGET_USERS, describe_topics
from tests.streams.feeding import quick, read, rows, send, times_of, until

pytestmark = pytest.mark.broker


@pytest.fixture
def settings(contract_settings: Settings, unique: Callable[[str], str]) -> Settings:
    return quick(contract_settings, unique("feed"))


async def test_every_event_comes_once_over_restarts_and_bad_ones_are_counted(
    settings: Settings, tmp_path: Path
) -> None:
    await send(settings, rows(0, 300), bad=3)
    with ReplayBuffer(tmp_path) as buffer:
        assert await read(settings, buffer, 300) == (300, 3)
        offsets = dict(buffer.offsets)
    assert sum(offsets.values()) == 303
    await send(settings, rows(300, 50))
    with ReplayBuffer(tmp_path) as buffer:  # a crash: taken, not committed
        assert (await read(settings, buffer, 50, commit=False))[0] == 50
    with ReplayBuffer(tmp_path) as buffer:
        assert len(buffer) == 300
        assert (await read(settings, buffer, 50))[0] == 50
        assert times_of(buffer) == [time_ms for *_, time_ms in rows(0, 350)]


async def test_events_that_trickle_in_are_fetched_together(settings: Settings, tmp_path: Path) -> None:
    """Every fetch takes the interpreter from the thread that trains. (The embedded broker holds fetches anyway.)"""
    clock = asyncio.get_running_loop().time
    with ReplayBuffer(tmp_path) as buffer:
        feed = EventFeed(settings, buffer)
        await feed.start()
        try:
            await send(settings, rows(0, 1))
            while not (await feed.take(0.1)).events:
                pass
            sending = asyncio.create_task(trickle(settings, rows(1, 60)))
            started, fetches, events = clock(), 0, 0
            while events < 60:
                taken = await feed.take(0.1)
                fetches, events = fetches + bool(taken.events), events + taken.events
            seconds = clock() - started
            await sending
        finally:
            await feed.stop()
    assert fetches <= 2 * seconds / 0.25 + 3  # at most as many, from two topics, as quarters of a second; not 60


async def trickle(settings: Settings, events: list[tuple[str, str, int]]) -> None:
    async with AIOKafkaProducer(**client_options(settings)) as producer:
        for number, (user, item, time_ms) in enumerate(events):
            value = orjson.dumps({"user_id": user, "item_id": item, "timestamp": time_ms})
            await producer.send_and_wait(("clicks", "views")[number % 2], value, key=user.encode())
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("broker", ["embedded"], indirect=True)
async def test_the_buffer_knows_the_place_not_the_group(settings: Settings, tmp_path: Path) -> None:
    await send(settings, rows(0, 100))
    with ReplayBuffer(tmp_path / "first") as buffer:
        await read(settings, buffer, 100)
    with ReplayBuffer(tmp_path / "first") as buffer:
        other = settings.model_copy(update={"app_id": settings.app_id + "-new-group"})
        await send(settings, rows(100, 20))
        assert (await read(other, buffer, 20))[0] == 20
        assert len(np.unique(buffer.sample(len(buffer), 0, 0).times_ms)) == 120


def hold(feed: EventFeed) -> asyncio.Event:
    """The broker says where partitions begin only once the event is set."""
    consumer, go = feed._consumer, asyncio.Event()
    ask_broker = consumer.beginning_offsets

    async def later(partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        await go.wait()
        return dict(await ask_broker(partitions))

    consumer.beginning_offsets = later
    return go


async def fetched_but_not_taken(feed: EventFeed) -> None:
    """Turn until aiokafka has events at hand while partitions are still being placed."""
    for _ in range(150):
        taken = await feed.take(0.1)
        assert (taken.records, feed.ready) == (0, False)
        if any(partition.topic != FORGET_USERS for partition in feed._consumer._fetcher._records):
            return
    pytest.fail("nothing was fetched within 15 s")


async def to_the_end(feed: EventFeed) -> None:
    for _ in range(150):
        await feed.take(0.1)
        if await feed.caught_up():
            return
    pytest.fail("not within 15 s")


async def test_nothing_is_taken_before_every_partition_is_placed(settings: Settings, tmp_path: Path) -> None:
    await send(settings, rows(0, 140))
    with ReplayBuffer(tmp_path) as buffer:  # a kill between the buffer's commit and the group's
        await read(settings, buffer, 140, commit=False)
        buffer.forget(["u1"])
        buffer.commit()
    await send(settings, rows(140, 70))
    with ReplayBuffer(tmp_path) as buffer:
        feed = EventFeed(settings, buffer)
        go = hold(feed)
        await feed.start()
        try:
            await fetched_but_not_taken(feed)
            assert buffer.seen == 140
            go.set()
            await to_the_end(feed)
        finally:
            go.set()
            await feed.stop()
        assert buffer.seen == 210
        assert times_of(buffer) == [at for user, _, at in rows(0, 210) if user != "u1" or at >= rows(140, 1)[0][2]]


@pytest.mark.parametrize("start_from", ["earliest", "latest"])
async def test_a_buffer_that_was_lost_fills_again(settings: Settings, tmp_path: Path, start_from: str) -> None:
    settings = settings.model_copy(update={"start_from": "earliest"})
    await send(settings, rows(0, 140))
    with ReplayBuffer(tmp_path / "lost") as buffer:
        await read(settings, buffer, 140)  # and tells the group
    await send(settings, rows(140, 70))
    with ReplayBuffer(tmp_path / "new") as buffer:
        feed = EventFeed(settings.model_copy(update={"start_from": start_from}), buffer)
        go = hold(feed)
        await feed.start()
        try:
            await fetched_but_not_taken(feed)  # from where the group is
            go.set()
            await to_the_end(feed)
        finally:
            go.set()
            await feed.stop()
        assert times_of(buffer) == [at for *_, at in rows(0, 210)]


async def test_a_new_group_may_begin_at_the_end_and_goes_on_from_there(settings: Settings, tmp_path: Path) -> None:
    """Ended before anything came: what is sent meanwhile is not skipped, to a topic that was empty neither."""
    settings = settings.model_copy(update={"start_from": "latest"})
    await send(settings, [], bad=9)  # clicks only
    with ReplayBuffer(tmp_path) as buffer:
        feed = EventFeed(settings, buffer)
        await feed.start()
        await until(feed, lambda: feed.ready)
        await feed.stop()  # as a kill: nothing is told to the group
    await send(settings, rows(0, 70))
    with ReplayBuffer(tmp_path) as buffer:
        assert await read(settings, buffer, 70) == (70, 0)


@pytest.mark.parametrize("broker", ["kafka"], indirect=True)  # the embedded broker cannot add partitions
async def test_partitions_added_to_a_topic_are_read_from_their_beginning(settings: Settings, tmp_path: Path) -> None:
    settings = settings.model_copy(update={"start_from": "latest"})
    await send(settings, rows(0, 20))
    with ReplayBuffer(tmp_path) as buffer:
        await read(settings, buffer, 0)
        assert buffer.seen == 0
    with admin(settings) as client:
        client.create_partitions(dict.fromkeys(("clicks", "views"), settings.partitions + 8))
    await send(settings, rows(20, 70))
    with ReplayBuffer(tmp_path) as buffer:
        assert await read(settings, buffer, 70) == (70, 0)


async def test_a_feed_whose_partitions_cannot_be_placed_says_so(settings: Settings, tmp_path: Path) -> None:
    await send(settings, rows(0, 10))
    with ReplayBuffer(tmp_path) as buffer:
        feed = EventFeed(settings, buffer)

        async def refuse(_: object) -> None:
            raise KafkaTimeoutError("nobody leads it")

        feed._consumer.beginning_offsets = refuse
        await feed.start()
        try:
            with pytest.raises(KafkaTimeoutError, match="nobody leads it"):
                await to_the_end(feed)
        finally:
            await feed.stop()
        assert buffer.seen == 0 and not feed.ready


@pytest.mark.parametrize("broker", ["kafka"], indirect=True)
async def test_a_topic_that_was_made_anew_is_read_from_its_beginning(settings: Settings, tmp_path: Path) -> None:
    await send(settings, rows(0, 100))
    with ReplayBuffer(tmp_path) as buffer:
        await read(settings, buffer, 100)

        def recreate() -> None:
            with admin(settings) as client:
                client.delete_topics(["clicks", "views"])
                while not all(state.problem for state in describe_topics(settings)[:2]):
                    pass
                client.create_topics([NewTopic(name, settings.partitions, 1) for name in ("clicks", "views")])

        await asyncio.to_thread(recreate)
        await send(settings, rows(100, 30))
        assert (await read(settings, buffer, 30))[0] == 30
        assert times_of(buffer) == [time_ms for *_, time_ms in rows(0, 130)]


async def test_a_topic_made_anew_is_read_whole_however_much_the_first_fetch_brings(
    tmp_path: Path, record_batch: Callable[..., RecordBatch]
) -> None:
    """Kafka moved the position to the beginning of a log that has more events now than had been read of the old one."""
    with ReplayBuffer(tmp_path) as buffer:
        feed = EventFeed(Settings(_env_file=None), buffer)
        for count in (40, 300):
            events = [("u", "i", offset, count + offset) for offset in range(count)]
            assert feed._keep(replace(record_batch("clicks", events), start=0)) == (count, 0)
        assert buffer.seen == 340
        await feed.stop()


@pytest.mark.parametrize("broker", ["kafka"], indirect=True)
async def test_events_that_retention_took_before_they_were_read_are_told(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await send(settings, rows(0, 40))
    with ReplayBuffer(tmp_path) as buffer:
        await read(settings, buffer, 40)
        await send(settings, rows(40, 40))
        with admin(settings) as client:
            client.delete_records({TopicPartition("clicks", number): -1 for number in range(4)})
        await send(settings, rows(80, 40))
        await read(settings, buffer, 60)
        assert buffer.seen == 100
    assert "Kafka deleted what stood between before it was read" in caplog.text
