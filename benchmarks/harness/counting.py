"""How many records a topic has received, asked from the outside."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Protocol

from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition as Place
from kafka import KafkaConsumer, TopicPartition

from benchmarks.harness.broker import Broker


class Counter(Protocol):
    """Counts the records of one topic."""

    def count(self) -> int:
        """End offsets of all partitions, summed."""


class _Offsets:
    """Asks for the end offsets: one small request, whatever the topic holds."""

    def __init__(self, consumer: KafkaConsumer, topic: str, partitions: int) -> None:
        self._consumer = consumer
        self._places = [TopicPartition(topic, partition) for partition in range(partitions)]

    def count(self) -> int:
        return sum(int(offset) for offset in self._consumer.end_offsets(self._places).values())


class _Reader:
    """Reads along in a thread. The embedded broker needs it: what it calls the end is the start of its last batch."""

    def __init__(self, address: str, topic: str, partitions: int) -> None:
        self._ends = [0] * partitions
        self._stopping = threading.Event()
        places = [Place(topic, partition) for partition in range(partitions)]
        self._thread = threading.Thread(target=lambda: asyncio.run(self._read(address, places)), daemon=True)
        self._thread.start()

    async def _read(self, address: str, places: Sequence[Place]) -> None:
        async with AIOKafkaConsumer(bootstrap_servers=address, check_crcs=False) as consumer:
            consumer.assign(places)
            await consumer.seek_to_beginning()
            while not self._stopping.is_set():
                for place, records in (await consumer.getmany(timeout_ms=20)).items():
                    self._ends[place.partition] = records[-1].offset + 1

    def count(self) -> int:
        return sum(self._ends)

    def close(self) -> None:
        self._stopping.set()
        self._thread.join(10)


@contextmanager
def counting(broker: Broker, topic: str, partitions: int) -> Iterator[Counter]:
    """A counter of a topic's records."""
    if broker.embedded:
        with closing(_Reader(broker.address, topic, partitions)) as reader:
            yield reader
        return
    with closing(KafkaConsumer(bootstrap_servers=broker.address, client_id="benchmark-count")) as consumer:
        yield _Offsets(consumer, topic, partitions)
