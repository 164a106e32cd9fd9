"""Replay an event log into the input topics: as fast as Kafka takes it, at a fixed rate, or in its own rhythm."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import orjson
from aiokafka import AIOKafkaProducer
from aiokafka.partitioner import murmur2
from numpy.typing import NDArray

from state.events import TOPICS
from streams.kafka import broker_errors, producer_options
from streams.record_batch import blobs, encode_batches
from streams.settings import Settings
from streams.topics import ITEMS, require_topics

if TYPE_CHECKING:  # workers need only `partition_of` of this, and so no polars
    from models.tables import Events

CHUNK_EVENTS: Final = 32_768
IN_FLIGHT_EVENTS: Final = 131_072  # enough to keep the broker busy, little enough to bound memory
TICK_SECONDS: Final = 0.002  # paced events leave together every 2 ms: one request per event makes the broker the limit


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay did. `bytes` counts keys and values."""

    events: int
    seconds: float
    bytes: int

    @property
    def events_per_second(self) -> float:
        """Events acknowledged per second of wall time."""
        return self.events / self.seconds if self.seconds else 0.0


def partition_of(key: str, partitions: int) -> int:
    """Partition number of a key: murmur2, as Kafka's Java clients do it.

    >>> partition_of("u1", 8)
    0
    """
    return int((murmur2(key.encode()) & 0x7FFFFFFF) % partitions)


def schedule(times_ms: NDArray[np.int64], rate: float | None, speed: float | None) -> NDArray[np.float64] | None:
    """When each event is due, in seconds after the start; None when nothing holds it back.

    Args:
        times_ms: (N,) event times in log order.
        rate: Events per second, evenly spaced.
        speed: How many times faster than the log's own clock. Time never runs backwards: an event that is older than
            its predecessor is due together with it.
    """
    if rate is not None:
        return np.arange(len(times_ms)) / rate
    if speed is not None and len(times_ms):
        return np.maximum.accumulate(times_ms - times_ms[0]) / (1000.0 * speed)
    return None


class _Encoder:
    """Turns slices of an event log into record batches per topic and partition."""

    def __init__(self, events: "Events", partitions: int, due: NDArray[np.float64] | None, stamp_now: bool) -> None:
        from polars import selectors

        self._events = events
        self._extras = (
            events.extras.with_columns(selectors.float().fill_nan(None)) if events.extras.width else events.extras
        )
        self._partitions = partitions
        self._due = due
        self._stamp_now = stamp_now
        self._start_seconds = time.time()
        self._keys: dict[str, tuple[bytes, int]] = {}

    def _key(self, user: str) -> tuple[bytes, int]:
        found = self._keys.get(user)
        if found is None:
            key = user.encode()
            found = self._keys[user] = key, int((murmur2(key) & 0x7FFFFFFF) % self._partitions)
        return found

    def _times_ms(self, start: int, stop: int) -> list[int]:
        times_ms = self._events.times_ms[start:stop]
        if self._stamp_now and self._due is None:
            times_ms = np.full(stop - start, int(time.time() * 1000))
        elif self._stamp_now and self._due is not None:
            # The moment an event was due, not the one it was sent: a sender that lags must not hide latency.
            times_ms = ((self._start_seconds + self._due[start:stop]) * 1000).astype(np.int64)
        numbers: list[int] = times_ms.tolist()
        return numbers

    def _values(self, start: int, stop: int) -> list[bytes]:
        users, items = self._events.users[start:stop].to_list(), self._events.items[start:stop].to_list()
        dumps, times_ms = orjson.dumps, self._times_ms(start, stop)
        if not self._extras.width:
            return [
                dumps({"user_id": user, "item_id": item, "timestamp": time_ms})
                for user, item, time_ms in zip(users, items, times_ms, strict=True)
            ]
        extras = self._extras[start:stop].to_dicts()
        return [
            dumps(
                {"user_id": user, "item_id": item, "timestamp": time_ms}
                | {name: value for name, value in more.items() if value is not None}
            )
            for user, item, time_ms, more in zip(users, items, times_ms, extras, strict=True)
        ]

    def batches(self, start: int, stop: int) -> tuple[list[tuple[str, int, Any]], int]:
        """(topic, partition, batch) of events `start` to `stop`, and their bytes."""
        events = self._events
        keyed = [self._key(user) for user in events.users[start:stop].to_list()]
        values = self._values(start, stop)
        target = np.fromiter((partition for _, partition in keyed), np.int64, stop - start)
        target += events.kinds[start:stop].astype(np.int64) * self._partitions
        order = np.argsort(target, kind="stable")  # stable: log order within a partition
        sorted_targets = target[order]
        edges = np.flatnonzero(np.diff(sorted_targets)) + 1
        now_ms = int(time.time() * 1000)
        out: list[tuple[str, int, Any]] = []
        size = 0
        for group in np.split(order, edges):
            kind, partition = divmod(int(target[group[0]]), self._partitions)
            chosen = group.tolist()
            keys = blobs([keyed[i][0] for i in chosen])
            contents = blobs([values[i] for i in chosen])
            size += int(keys.offsets[-1] + contents.offsets[-1])
            out.extend((TOPICS[kind], partition, batch) for batch in encode_batches(keys, contents, now_ms))
        return out, size


async def produce_events(
    settings: Settings,
    events: "Events",
    *,
    rate: float | None = None,
    speed: float | None = None,
    timestamps: Literal["log", "now"] = "log",
    on_progress: Callable[[int], None] | None = None,
) -> Replayed:
    """Write events to `clicks`, `views` and `purchases`, keyed by user, in log order within each partition.

    Args:
        settings: Brokers and partition count.
        events: The log, in time order.
        rate: Events per second; None does not pace.
        speed: Factor on the log's own clock; None does not pace.
        timestamps: `log` keeps the log's times, a user's ties a millisecond apart; `now` replaces them by the moment
            each event was due, for measuring latency.
        on_progress: Called with the number of events acknowledged so far.

    Returns:
        What was sent, after all of it was acknowledged.

    Raises:
        BrokerError: when Kafka cannot be reached, refuses, or the topics are not as they must be.
    """
    await asyncio.to_thread(require_topics, settings)
    if timestamps == "log":
        events = events.apart()
    due = schedule(events.times_ms, rate, speed)
    with broker_errors(settings, "write events"):
        producer = AIOKafkaProducer(**producer_options(settings, "recstream-replay"))
        await producer.start()
        try:
            encoder = _Encoder(events, settings.partitions, due, timestamps == "now")
            return await _send(producer, encoder, len(events.times_ms), due, on_progress)
        finally:
            await producer.stop()


async def produce_catalogue(settings: Settings, titles: Mapping[str, str]) -> int:
    """Write one catalogue entry per item to the topic `items`, keyed by item. Returns how many.

    Raises:
        BrokerError: when Kafka cannot be reached or refuses.
    """
    now_ms = int(time.time() * 1000)
    by_partition: dict[int, list[str]] = {}
    for item in titles:
        by_partition.setdefault(partition_of(item, settings.partitions), []).append(item)
    with broker_errors(settings, "write the catalogue"):
        producer = AIOKafkaProducer(**producer_options(settings, "recstream-replay"))
        await producer.start()
        try:
            futures = []
            for partition, items in by_partition.items():
                keys = blobs([item.encode() for item in items])
                values = blobs([orjson.dumps({"item_id": item, "title": titles[item]}) for item in items])
                for batch in encode_batches(keys, values, now_ms):
                    futures.append(await producer.send_batch(batch, ITEMS, partition=partition))
            await asyncio.gather(*futures)
        finally:
            await producer.stop()
    return len(titles)


async def _send(
    producer: AIOKafkaProducer,
    encoder: _Encoder,
    count: int,
    due: NDArray[np.float64] | None,
    on_progress: Callable[[int], None] | None,
) -> Replayed:
    in_flight: deque[tuple[int, Sequence[asyncio.Future[Any]]]] = deque()
    sent = size = 0
    started = time.monotonic()
    while sent < count:
        stop = min(sent + CHUNK_EVENTS, count)
        if due is not None:
            elapsed = time.monotonic() - started
            stop = min(stop, int(np.searchsorted(due, elapsed, side="right")))
            if stop <= sent:
                await asyncio.sleep(max(TICK_SECONDS, float(due[sent]) - elapsed))
                continue
        batches, chunk_bytes = encoder.batches(sent, stop)
        futures = [await producer.send_batch(batch, topic, partition=number) for topic, number, batch in batches]
        in_flight.append((stop, futures))
        sent, size = stop, size + chunk_bytes
        await _acknowledge(in_flight, sent - IN_FLIGHT_EVENTS, on_progress)
    await _acknowledge(in_flight, sent, on_progress)
    return Replayed(count, time.monotonic() - started, size)


async def _acknowledge(
    in_flight: deque[tuple[int, Sequence[asyncio.Future[Any]]]], needed: int, on_progress: Callable[[int], None] | None
) -> None:
    """Take off what is acknowledged already; wait until the first `needed` events are."""
    while in_flight and (in_flight[0][0] <= needed or all(future.done() for future in in_flight[0][1])):
        acknowledged, futures = in_flight.popleft()
        await asyncio.gather(*futures)
        if on_progress is not None:
            on_progress(acknowledged)
