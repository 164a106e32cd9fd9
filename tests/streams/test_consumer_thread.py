"""The rest between two fetches: after few events, never after many, never longer than the caller would wait."""

import time
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP

from streams import consumer_thread
from streams.consumer_thread import BatchConsumerThread
from streams.fetch import RecordBatch

CLICKS = TP("clicks", 0)


def batch(events: int) -> RecordBatch:
    offsets = list(range(events))
    return RecordBatch("clicks", 0, offsets, [0] * events, [b"u"] * events, [b"{}"] * events, events)


class Fetches:
    """A thread's fetches of batches of given sizes, and when each was made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *sizes: int) -> None:
        self.sizes, self.at = list(sizes), list[float]()
        self.thread: Any = BatchConsumerThread.__new__(BatchConsumerThread)
        self.thread.consumer = SimpleNamespace(flow_active=True)
        self.thread.transport = SimpleNamespace(batch_topics={"clicks"}, lone_topics=set(), max_batch_events=4096)
        monkeypatch.setattr(consumer_thread, "fetch_batches", self._fetch)

    async def _fetch(self, *_: Any, **__: Any) -> dict[TP, list[RecordBatch]]:
        self.at.append(time.monotonic())
        size = self.sizes.pop(0)
        return {CLICKS: [batch(size)]} if size else {}

    async def take(self, timeout: float = 1.0) -> float:
        """Fetch once; seconds from the call to the fetch."""
        subscriptions = SimpleNamespace(fetch_context=nullcontext)
        consumer = SimpleNamespace(_fetcher=SimpleNamespace(_closed=False, _subscriptions=subscriptions), _closed=False)
        called = time.monotonic()
        await self.thread._fetch_records(consumer, None, timeout=timeout)
        return self.at[-1] - called


async def test_a_fetch_of_few_events_is_followed_by_a_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer_thread, "_REST_SECONDS", 0.05)
    fetches = Fetches(monkeypatch, 3, 0, 1)
    await fetches.take()
    assert await fetches.take() >= 0.045
    assert await fetches.take() >= 0.045  # nothing is few, too


async def test_a_fetch_of_many_events_is_followed_by_the_next_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer_thread, "_REST_SECONDS", 30.0)
    fetches = Fetches(monkeypatch, 257, 257)
    await fetches.take()
    assert await fetches.take(timeout=60.0) < 30


async def test_whoever_does_not_wait_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer_thread, "_REST_SECONDS", 30.0)
    fetches = Fetches(monkeypatch, 3, 3)
    await fetches.take()
    assert await fetches.take(timeout=0.0) < 30


async def test_records_of_other_topics_count_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer_thread, "_REST_SECONDS", 30.0)
    fetches = Fetches(monkeypatch)

    async def records(*_: Any, **__: Any) -> dict[TP, list[object]]:
        fetches.at.append(time.monotonic())
        return {TP("other", 0): [object()] * 257}  # as aiokafka's records they have no length

    monkeypatch.setattr(consumer_thread, "fetch_batches", records)
    await fetches.take()
    assert await fetches.take(timeout=60.0) < 30
