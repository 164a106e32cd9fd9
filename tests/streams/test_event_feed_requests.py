"""Requests to be forgotten, as the trainer reads them, against a broker."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import orjson
import pytest
from aiokafka import AIOKafkaProducer, TopicPartition

from state.replay_buffer import ReplayBuffer
from streams.event_feed import EventFeed
from streams.kafka import client_options
from streams.read_topic import read_to_end, reader
from streams.replay import partition_of
from streams.settings import Settings
from streams.topics import FORGET_USERS, FORGOTTEN_USERS
from streams.trainer_eraser import TrainerEraser
from streams.trainer_metrics import TrainerMetrics
from tests.streams.feeding import quick, read, rows, send, until

pytestmark = pytest.mark.broker
T = TypeVar("T")


@pytest.fixture
def settings(contract_settings: Settings, unique: Callable[[str], str]) -> Settings:
    return quick(contract_settings, unique("feed"))


async def ask(settings: Settings, *users: str) -> None:
    async with AIOKafkaProducer(**client_options(settings)) as producer:
        for user in users:
            await producer.send_and_wait(FORGET_USERS, b"", key=user.encode())


async def receipts(settings: Settings) -> list[dict[str, Any]]:
    partitions = [TopicPartition(FORGOTTEN_USERS, number) for number in range(settings.partitions)]
    async with reader(settings, partitions) as consumer:
        return [orjson.loads(record.value) async for records in read_to_end(consumer, partitions) for record in records]


def waiting(feed: EventFeed) -> int:
    return sum(map(len, feed.erasures.values()))


async def beside(feed: EventFeed, work: Coroutine[Any, Any, T]) -> T:
    """The outcome of work done while reading goes on: aiokafka leaves a group whose member rests."""
    task = asyncio.ensure_future(work)
    while not task.done():
        await feed.take(0.05)
    return await task


async def test_requests_are_answered_when_no_pass_holds_the_user_and_done_again_after_a_kill(
    settings: Settings, tmp_path: Path
) -> None:
    await send(settings, rows(0, 140))
    with ReplayBuffer(tmp_path) as buffer:
        await read(settings, buffer, 140)
    assert b'"u1"' in (tmp_path / "events.replay").read_bytes()
    await ask(settings, "u1", "nobody")
    with ReplayBuffer(tmp_path) as buffer:  # a kill before the receipt
        feed = EventFeed(settings, buffer)
        await feed.start()
        await until(feed, lambda: waiting(feed) == 2)
        assert len(buffer) == 120
        await feed.commit()
        await feed.stop()
    assert b'"u1"' not in (tmp_path / "events.replay").read_bytes()
    with ReplayBuffer(tmp_path) as buffer:
        feed, passes, metrics = EventFeed(settings, buffer), SimpleNamespace(running=True, begun=1), TrainerMetrics()
        eraser = TrainerEraser(settings, feed, buffer, passes, metrics)  # type: ignore[arg-type]
        await feed.start()
        await until(feed, lambda: waiting(feed) == 2)
        await beside(feed, send(settings, [("u1", "i1", 1)]))  # before the ends are known: hers no more
        await beside(feed, send(settings, [("u5", "i1", 1)]))
        await until(feed, lambda: len(buffer) == 121)
        await beside(feed, eraser.step())
        await feed.commit()
        await beside(feed, eraser.step())
        assert await beside(feed, receipts(settings)) == []
        passes.begun = 2  # another pass, which began without her
        await until(feed, lambda: buffer.offset("clicks", partition_of("u1", settings.partitions)) == 11)
        await feed.commit()
        await beside(feed, eraser.step())
        assert waiting(feed) == 0
        await beside(feed, send(settings, [("u1", "i2", 2)]))
        await until(feed, lambda: len(buffer) == 122)
        await feed.commit()
        await feed.stop()
        assert metrics.registry.get_sample_value("recstream_trainer_forgotten_users_total") == 2
    told = sorted(await receipts(settings), key=lambda one: str(one["user_id"]))
    assert [(one["user_id"], one["by"], one["found"]) for one in told] == [
        ("nobody", "trainer", False), ("u1", "trainer", False),
    ]  # fmt: skip
    assert told[1]["request"]["partition"] == partition_of("u1", settings.partitions)
    with ReplayBuffer(tmp_path) as buffer:  # and never again
        assert await read(settings, buffer, 0) == (0, 0)
        assert len(buffer) == 122
    assert len(await receipts(settings)) == 2


async def test_requests_from_before_the_first_start_are_read_wherever_the_group_begins(
    settings: Settings, tmp_path: Path
) -> None:
    await ask(settings, "u1")
    with ReplayBuffer(tmp_path) as buffer:
        feed = EventFeed(settings.model_copy(update={"start_from": "latest"}), buffer)
        await feed.start()
        await until(feed, lambda: waiting(feed) == 1)
        await feed.stop()
