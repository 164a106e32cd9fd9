"""Event logs whose offsets are known, and the thread that produces them."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from aiokafka import AIOKafkaProducer
from aiokafka.partitioner import murmur2

from state.events import TOPICS

PARTITIONS = 6
Source = tuple[str, int, int]  # topic, partition, offset


@dataclass(frozen=True, slots=True)
class Record:
    """One Kafka record to produce; its offset is its place among those of its partition."""

    topic: str
    partition: int
    key: bytes
    value: bytes
    timestamp_ms: int


def event(topic: str, user: str, item: str, time_ms: int, **more: Any) -> Record:
    """A valid event on the partition its user belongs to."""
    value = orjson.dumps({"user_id": user, "item_id": item, "timestamp": time_ms, **more})
    return Record(topic, partition_of(user.encode()), user.encode(), value, time_ms)


def partition_of(key: bytes) -> int:
    """The partition Kafka's default partitioner gives a key."""
    return (murmur2(key) & 0x7FFFFFFF) % PARTITIONS


def event_log(count: int, users: int, items: int, seed: int, start_ms: int | None = None) -> list[Record]:
    """Events of one hour, oldest first; all of one user's on one topic.

    Kafka orders records within a topic-partition only, so the order in which one user's events of two topics are
    applied may differ between two runs, and with it the state.
    """
    random = np.random.default_rng(seed)
    begin = int(time.time() * 1000) - 3_600_000 if start_ms is None else start_ms
    times = begin + np.sort(random.integers(0, 3_600_000, count))
    who = random.zipf(1.3, count) % users
    what = random.zipf(1.2, count) % items
    return [
        event(TOPICS[u % len(TOPICS)], f"u{u}", f"i{i + 1}", t)
        for u, i, t in zip(who.tolist(), what.tolist(), times.tolist(), strict=True)
    ]


def sources(records: Iterable[Record]) -> list[Source]:
    """Where each record stands once all are produced in this order to empty topics."""
    ends: Counter[tuple[str, int]] = Counter()
    places = []
    for record in records:
        at = (record.topic, record.partition)
        places.append((*at, ends[at]))
        ends[at] += 1
    return places


@dataclass(slots=True)
class Load:
    """A thread that produces records in order, paced or as fast as they are taken."""

    bootstrap: str
    records: Sequence[Record]
    rate: float | None = None
    sent: int = 0
    error: BaseException | None = None
    _thread: threading.Thread | None = None

    def start(self) -> "Load":
        """Begin."""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def finish(self) -> None:
        """Wait until every record is acknowledged."""
        if self._thread is not None:
            self._thread.join(120)
        if self.error is not None:
            raise self.error
        assert self.sent == len(self.records)

    def _run(self) -> None:
        try:
            asyncio.run(self._produce())
        except BaseException as error:
            self.error = error

    async def _produce(self) -> None:
        producer = AIOKafkaProducer(bootstrap_servers=self.bootstrap, acks="all", request_timeout_ms=60_000)
        await producer.start()
        try:
            step = 1000 if self.rate is None else max(1, int(self.rate * 0.05))
            begin = time.monotonic()
            for start in range(0, len(self.records), step):
                await self._send(producer, self.records[start : start + step])
                self.sent = min(start + step, len(self.records))
                if self.rate is not None:
                    await asyncio.sleep(max(0.0, begin + self.sent / self.rate - time.monotonic()))
        finally:
            await producer.stop()

    @staticmethod
    async def _send(producer: AIOKafkaProducer, records: Sequence[Record]) -> None:
        batches: dict[tuple[str, int], list[Any]] = {}
        for record in records:
            queue = batches.setdefault((record.topic, record.partition), [producer.create_batch()])
            one = {"timestamp": record.timestamp_ms, "key": record.key, "value": record.value}
            if queue[-1].append(**one) is None:
                queue.append(producer.create_batch())
                assert queue[-1].append(**one) is not None
        pending = []
        for (topic, partition), queue in batches.items():
            for batch in queue:
                pending.append(await producer.send_batch(batch, topic, partition=partition))
        await asyncio.gather(*pending)
