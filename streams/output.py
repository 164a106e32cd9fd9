"""What a worker writes to Kafka: whole encoded batches, acknowledged by every in-sync replica, idempotent."""

import asyncio
import logging
from collections.abc import Iterable
from typing import Any, Final

from aiokafka import AIOKafkaProducer
from aiokafka.errors import MessageSizeTooLargeError, UnknownError
from aiokafka.structs import RecordMetadata, TopicPartition

from streams.errors import BrokerError
from streams.kafka import describe, producer_options
from streams.record_batch import EncodedBatch
from streams.settings import Settings

MAX_OUTSTANDING_BYTES: Final = 64 << 20  # unacknowledged output a worker holds before it stops reading

log = logging.getLogger(__name__)


def _refused(topic: str, size: int, error: BaseException) -> BaseException:
    """The error that says what to do, where that is known."""
    if not isinstance(error, MessageSizeTooLargeError):
        return error
    return BrokerError(
        what=f"Kafka refuses {size} bytes for the topic {topic}",
        why=f"{describe(error)}: max.message.bytes of the topic, or message.max.bytes of the brokers, is below that",
        fix=f"kafka-configs --alter --entity-type topics --entity-name {topic} --add-config max.message.bytes=1048588",
    )


class Output:
    """The worker's producer.

    aiokafka's own `send_batch` waits until the previous batch of the same partition is on its way; batches here are
    queued behind each other in the accumulator instead (its private `_append_batch`, see the contract test).
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._producer: Any = None
        self._unacknowledged: set[asyncio.Future[RecordMetadata]] = set()
        self._queued: dict[tuple[str, int], Any] = {}
        self._bytes = 0
        self._room = asyncio.Event()
        self._room.set()
        self.failure: BaseException | None = None

    async def start(self, topics: Iterable[str]) -> None:
        """Connect and learn where the partitions of `topics` are."""
        options = {**producer_options(self._settings), "linger_ms": 0, "max_request_size": 8 << 20}
        self._producer = AIOKafkaProducer(**options, enable_idempotence=True)
        try:
            await self._producer.start()
        except UnknownError:  # the embedded broker's storage in memory gives no producer ids
            log.info("The broker knows no idempotent producers: a retried batch may appear twice")
            await self._producer.stop()
            self._producer = AIOKafkaProducer(**options)
            await self._producer.start()
        for topic in topics:
            await self._producer.partitions_for(topic)

    async def stop(self) -> None:
        """Send what is queued and disconnect."""
        if self._producer is not None:
            await self._producer.stop()

    async def taken(self, topic: str, partition: int) -> None:
        """Wait until the last batch of a partition is on its way.

        A produce request carries one batch per partition and one request is under way at a time: batches queued behind
        each other would wait for as many round trips. Waiting here instead makes the next round larger.
        """
        queued = self._queued.get((topic, partition))
        if queued is not None and not queued._drain_waiter.done():
            await asyncio.wait([queued._drain_waiter])

    async def know(self, topic: str) -> None:
        """Learn where the partitions of `topic` are; free once they are known."""
        await self._producer.partitions_for(topic)

    def send(self, topic: str, partition: int, batch: EncodedBatch) -> "asyncio.Future[RecordMetadata]":
        """Queue a batch; the future is done when the broker has acknowledged it.

        Raises:
            Exception: what ended the producer's sender for good; nothing queued now would ever be sent.
        """
        accumulator = self._producer._message_accumulator
        if accumulator._exception is not None:
            raise accumulator._exception
        pending: Any = accumulator._append_batch(batch, TopicPartition(topic, partition))
        self._queued[topic, partition] = pending
        future: asyncio.Future[RecordMetadata] = asyncio.get_running_loop().create_future()
        size = batch.size()
        self._bytes += size
        self._unacknowledged.add(future)
        future.add_done_callback(self._unacknowledged.discard)
        if self._bytes > MAX_OUTSTANDING_BYTES:
            self._room.clear()

        def acknowledged(done: "asyncio.Future[RecordMetadata]") -> None:
            self._bytes -= size
            self._room.set() if self._bytes <= MAX_OUTSTANDING_BYTES else None
            if done.cancelled():
                future.cancel()
            elif (error := done.exception()) is not None:
                self.failure = _refused(topic, size, error)
                self._room.set()
                if not future.done():
                    future.set_exception(self.failure)
                    future.exception()  # nobody need ask: `check` raises it too
            elif not future.done():
                future.set_result(done.result())

        pending.future.add_done_callback(acknowledged)
        return future

    def outstanding(self) -> list["asyncio.Future[RecordMetadata]"]:
        """Everything sent and not yet acknowledged.

        Raises:
            Exception: what made a batch fail for good: no state may be written that takes its events for answered.
        """
        self.check()
        return list(self._unacknowledged)

    def check(self) -> None:
        """Raise what made a batch fail for good, if one did."""
        if self.failure is not None:
            raise self.failure

    async def room(self) -> None:
        """Wait while too much is unacknowledged.

        Raises:
            Exception: what made a batch fail for good; the worker must stop, its events are not committed.
        """
        await self._room.wait()
        self.check()
