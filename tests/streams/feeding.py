"""What tests of the trainer's feed send and read."""

from collections.abc import Callable

import orjson
import pytest
from aiokafka import AIOKafkaProducer

from state.replay_buffer import ReplayBuffer
from streams.event_feed import EventFeed
from streams.kafka import client_options
from streams.settings import Settings


def quick(settings: Settings, app_id: str) -> Settings:
    """A group of its own, whose members are soon given up."""
    return settings.model_copy(
        update={"app_id": app_id, "session_timeout_seconds": 2.0, "rebalance_timeout_seconds": 2.0}
    )


async def send(settings: Settings, events: list[tuple[str, str, int]], bad: int = 0) -> None:
    async with AIOKafkaProducer(**client_options(settings)) as producer:
        for number, (user, item, time_ms) in enumerate(events):
            value = orjson.dumps({"user_id": user, "item_id": item, "timestamp": time_ms})
            await producer.send(("clicks", "views")[number % 2], value, key=user.encode())
        for number in range(bad):
            await producer.send("clicks", b"{", key=b"%d" % number)
        await producer.flush()


async def read(settings: Settings, buffer: ReplayBuffer, wanted: int, *, commit: bool = True) -> tuple[int, int]:
    """Take until so many events are new or nothing comes: events and invalid ones."""
    feed = EventFeed(settings, buffer)
    events = invalid = 0
    await feed.start()
    try:
        for _ in range(150):
            taken = await feed.take(0.1)
            events, invalid = events + taken.events, invalid + taken.invalid
            if events >= wanted and await feed.caught_up():
                break
        if commit:
            await feed.commit()
            assert await feed.lag() == 0
    finally:
        await feed.stop()
    return events, invalid


def rows(start: int, count: int) -> list[tuple[str, str, int]]:
    return [(f"u{n % 7}", f"i{n % 5}", 1_700_000_000_000 + n) for n in range(start, start + count)]


def times_of(buffer: ReplayBuffer) -> list[int]:
    return sorted(buffer.sample(len(buffer), 0, 0).times_ms.tolist())


async def until(feed: EventFeed, done: Callable[[], bool]) -> None:
    for _ in range(150):
        await feed.take(0.1)
        if done():
            return
    pytest.fail("not within 15 s")
