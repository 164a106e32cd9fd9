"""An open-loop load: a producer that keeps to a schedule, and a consumer that dates each recommendation.

Event i is due at start + i / rate, whatever the system does, and its latency counts from that moment (no coordinated
omission: a stall delays every event that was due meanwhile). A recommendation names its event's topic, partition and
offset; one producer fills each partition in order, so the offset tells which event it was.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import numpy as np
import orjson
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from numpy.typing import NDArray

from benchmarks.harness.events import Events, partitions_of
from benchmarks.harness.processes import BenchmarkError, Measured
from state.events import TOPICS

LINGER_MS: Final = 2
_TICK_SECONDS: Final = 0.001
_FIRST_ANSWER_SECONDS: Final = 90.0
_DRAIN_SECONDS: Final = 15.0

Source = tuple[str, int]
"""Topic and partition of an event."""


class OpenLoop:
    """One producer and one consumer around a process that answers events.

    Args:
        producer: A started producer.
        consumer: A started consumer, assigned to the end of the answers.
        partitions: Partitions of every topic.
    """

    def __init__(self, producer: AIOKafkaProducer, consumer: AIOKafkaConsumer, partitions: int) -> None:
        self._producer, self._consumer, self._partitions = producer, consumer, partitions
        self._answered: dict[Source, dict[int, float]] = {}  # offset -> epoch seconds
        self._next_offset: dict[Source, int] = {}

    async def prime(self, process: Measured) -> None:
        """Send one event to every input partition and wait for all answers: the process has joined and warmed up.

        Raises:
            BenchmarkError: It ended, or did not answer in time.
        """
        sources = [(topic, partition) for topic in TOPICS for partition in range(self._partitions)]
        for topic, partition in sources:
            key, head = _wire(partition, 1)
            sent = await self._producer.send_and_wait(topic, _dated(head, time.time()), key=key, partition=partition)
            self._next_offset[topic, partition] = sent.offset + 1
        first = {source: offset - 1 for source, offset in self._next_offset.items()}
        deadline = time.monotonic() + _FIRST_ANSWER_SECONDS
        while not all(offset in self._answered.get(source, {}) for source, offset in first.items()):
            process.check()
            if time.monotonic() > deadline:
                what = f"{process.name} did not answer within {_FIRST_ANSWER_SECONDS:.0f} s"
                raise BenchmarkError(what, process.log_tail())
            await asyncio.sleep(0.1)

    async def fly(self, events: Events, rate: float) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Send events at `rate` per second.

        Returns:
            Milliseconds from due to answered of each event (E,), and which were answered (E,). One without an answer
            15 s after the last event was sent has waited until then.
        """
        wires = [_wire(user, item) for user, item in zip(events.users.tolist(), events.items.tolist(), strict=True)]
        places = partitions_of(events.users, self._partitions).tolist()
        sources = [(TOPICS[kind], place) for kind, place in zip(events.kinds.tolist(), places, strict=True)]
        for answered in self._answered.values():
            answered.clear()
        start = time.time() + 0.1
        due = start + np.arange(len(events)) / rate
        offsets = await self._send(wires, sources, due.tolist())
        deadline = time.monotonic() + _DRAIN_SECONDS
        while sum(map(len, self._answered.values())) < len(events) and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        answered_at = np.array(
            [
                self._answered.get(source, {}).get(offset, np.inf)
                for source, offset in zip(sources, offsets, strict=True)
            ]
        )
        answered = np.isfinite(answered_at)
        return 1000 * (np.where(answered, answered_at, time.time()) - due), answered

    async def _send(
        self, wires: Sequence[tuple[bytes, bytes]], sources: Sequence[Source], due: Sequence[float]
    ) -> list[int]:
        offsets = []
        position = 0
        while position < len(wires):
            now = time.time()
            while position < len(wires) and due[position] <= now:
                topic, partition = source = sources[position]
                key, head = wires[position]
                await self._producer.send(topic, _dated(head, due[position]), key=key, partition=partition)
                offsets.append(self._next_offset[source])
                self._next_offset[source] += 1
                position += 1
            await asyncio.sleep(_TICK_SECONDS)
        await self._producer.flush()
        return offsets

    async def read(self) -> None:
        """Date every answer until cancelled; the first answer to an event counts."""
        while True:
            fetched = await self._consumer.getmany(timeout_ms=200)
            now = time.time()
            for records in fetched.values():
                for record in records:
                    event = orjson.loads(record.value)["event"]
                    source = (event["topic"], event["partition"])
                    self._answered.setdefault(source, {}).setdefault(event["offset"], now)


@asynccontextmanager
async def open_loop(address: str, output: str, partitions: int) -> AsyncIterator[OpenLoop]:
    """An open loop whose answers come on the topic `output`."""
    consumer = AIOKafkaConsumer(bootstrap_servers=address, check_crcs=False)
    producer = AIOKafkaProducer(bootstrap_servers=address, acks="all", linger_ms=LINGER_MS)
    async with consumer, producer:
        places = [TopicPartition(output, partition) for partition in range(partitions)]
        consumer.assign(places)
        await consumer.seek_to_beginning()
        loop = OpenLoop(producer, consumer, partitions)
        reading = asyncio.create_task(loop.read())
        try:
            yield loop
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


def _wire(user: int, item: int) -> tuple[bytes, bytes]:
    """Key and the value up to its timestamp."""
    return b"u%d" % user, b'{"user_id":"u%d","item_id":"i%d","timestamp":' % (user, item)


def _dated(head: bytes, seconds: float) -> bytes:
    return head + b"%d}" % (1000 * seconds)
