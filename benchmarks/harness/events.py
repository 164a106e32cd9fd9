"""Seeded synthetic events in the wire format, and a loader that fills the input topics with whole record batches.

Users differ in activity (log-normal, sigma 1) and items in popularity (1 / rank), as in any shop; 70% are clicks, 25%
views and 5% purchases. Keys go to the partition Kafka's murmur2 partitioner chooses.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import orjson
from aiokafka import AIOKafkaProducer
from kafka.partitioner.default import murmur2
from numpy.typing import NDArray

from state.events import TOPICS

ITEMS: Final = 1_682  # as many as MovieLens-100K has
KIND_SHARES: Final = (0.70, 0.25, 0.05)
BATCH_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class Events:
    """A log of E events in time order.

    Attributes:
        users: User number (E,); its id on the wire is ``u<number>``.
        items: Item number (E,), 1..ITEMS; its id is ``i<number>``.
        kinds: Index into the input topics (E,).
        times_ms: Epoch milliseconds (E,).
    """

    users: NDArray[np.int64]
    items: NDArray[np.int64]
    kinds: NDArray[np.int64]
    times_ms: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.users)


def make_events(n_events: int, n_users: int, seed: int = 0, step_ms: int = 5, items: int = ITEMS) -> Events:
    """`n_events` events that end now, `step_ms` apart."""
    rng = np.random.default_rng(seed)
    activity = rng.lognormal(0, 1, n_users)
    popularity = 1 / np.arange(1, items + 1)
    return Events(
        users=rng.choice(n_users, n_events, p=activity / activity.sum()),
        items=1 + rng.choice(items, n_events, p=popularity / popularity.sum()),
        kinds=rng.choice(len(TOPICS), n_events, p=KIND_SHARES),
        times_ms=int(time.time() * 1000) + step_ms * np.arange(-n_events, 0),
    )


def partition_of(key: bytes, partitions: int) -> int:
    """Kafka's default partition of a key."""
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)


def partitions_of(users: NDArray[np.int64], partitions: int) -> NDArray[np.int64]:
    """Partition of each user number (E,)."""
    distinct, inverse = np.unique(users, return_inverse=True)
    table = np.array([partition_of(b"u%d" % user, partitions) for user in distinct.tolist()], np.int64)
    chosen: NDArray[np.int64] = table[inverse]
    return chosen


def vocabulary() -> list[str]:
    """Item id of every model row; row 0 is the unknown item."""
    return ["", *(f"i{number}" for number in range(1, ITEMS + 1))]


Record = tuple[bytes, bytes, int]
"""Key, value, epoch milliseconds."""


def records(events: Events) -> list[Record]:
    """Each event as a Kafka record."""
    columns = zip(events.users.tolist(), events.items.tolist(), events.times_ms.tolist(), strict=True)
    return [
        (b"u%d" % user, orjson.dumps({"user_id": f"u{user}", "item_id": f"i{item}", "timestamp": ms}), ms)
        for user, item, ms in columns
    ]


def by_topic_partition(events: Events, partitions: int) -> dict[tuple[str, int], list[Record]]:
    """The events' records grouped by where they go, in order."""
    placed: dict[tuple[str, int], list[Record]] = defaultdict(list)
    places = zip(events.kinds.tolist(), partitions_of(events.users, partitions).tolist(), strict=True)
    for (kind, partition), record in zip(places, records(events), strict=True):
        placed[TOPICS[kind], partition].append(record)
    return placed


def load(address: str, events: Events, partitions: int) -> None:
    """Write a log into the input topics, acknowledged."""
    asyncio.run(send(address, by_topic_partition(events, partitions)))


async def send(address: str, placed: dict[tuple[str, int], list[Record]]) -> None:
    """Send records to their topic-partitions in batches of up to 256 KiB, acknowledged."""
    async with AIOKafkaProducer(bootstrap_servers=address, acks="all", max_batch_size=BATCH_BYTES) as producer:
        await asyncio.gather(*(_send(producer, *place, records) for place, records in placed.items()))


async def _send(producer: AIOKafkaProducer, topic: str, partition: int, entries: Sequence[Record]) -> None:
    batch = producer.create_batch()
    for key, value, ms in entries:
        if batch.append(key=key, value=value, timestamp=ms) is None:
            await (await producer.send_batch(batch, topic, partition=partition))
            batch = producer.create_batch()
            batch.append(key=key, value=value, timestamp=ms)
    if batch.record_count():
        await (await producer.send_batch(batch, topic, partition=partition))
