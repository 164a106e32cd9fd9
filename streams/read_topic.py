"""Reading partitions from their beginning to the end they have now, outside any consumer group."""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from aiokafka import AIOKafkaConsumer
from aiokafka.structs import ConsumerRecord, TopicPartition

from streams.errors import BrokerError
from streams.kafka import REACH_HINT, client_options
from streams.settings import Settings


@asynccontextmanager
async def reader(
    settings: Settings, partitions: Sequence[TopicPartition], isolation: str = "read_uncommitted"
) -> AsyncIterator[AIOKafkaConsumer]:
    """A consumer outside any group on the given partitions, at their beginning, closed at the end."""
    consumer = AIOKafkaConsumer(
        **client_options(settings),
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level=isolation,
        fetch_max_wait_ms=50,  # an empty partition answers so late, and catching up waits for the last one
    )
    await consumer.start()
    try:
        consumer.assign(partitions)
        yield consumer
    finally:
        await consumer.stop()


def readable_end(consumer: AIOKafkaConsumer, partition: TopicPartition) -> int | None:
    """Where a partition ended at its last fetch, None before the first.

    A consumer of committed records cannot pass an open transaction: for it the partition ends there.
    """
    committed = consumer._isolation_level == "read_committed"
    end: int | None = consumer.last_stable_offset(partition) if committed else consumer.highwater(partition)
    return end


async def read_to_end(
    consumer: AIOKafkaConsumer, partitions: Sequence[TopicPartition], timeout_seconds: float = 60.0
) -> AsyncIterator[list[ConsumerRecord[bytes, bytes]]]:
    """Yield the records of assigned partitions up to the end they have now.

    The end is what comes with each fetch. The offset lookup (`end_offsets`, `seek_to_end`) will not
    do: the embedded broker answers it with the first offset of the last batch + 1 (226 records in one batch: 1).

    Raises:
        BrokerError: when the end is not reached in time.
    """
    ends: dict[TopicPartition, int] = {}
    deadline = time.monotonic() + timeout_seconds
    while True:
        fetched = await consumer.getmany(*partitions, timeout_ms=100)
        for partition in partitions:
            if partition not in ends and (end := readable_end(consumer, partition)) is not None:
                ends[partition] = end  # the first one seen: records that keep coming must not keep us here
        for records in fetched.values():
            yield records
        if len(ends) == len(partitions):
            positions = [(await consumer.position(partition), end) for partition, end in ends.items()]
            if all(position >= end for position, end in positions):
                return
        if time.monotonic() > deadline:
            raise BrokerError(
                what=f"the end of {partitions[0].topic} was not reached within {timeout_seconds:.0f} s",
                why="the broker answers too slowly or not at all",
                fix=REACH_HINT,
            )


async def end_offsets(consumer: AIOKafkaConsumer, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
    """The true end of each assigned partition; leaves the consumer there.

    Raises:
        BrokerError: when the broker does not answer in time.
    """
    await consumer.seek_to_end(*partitions)  # near enough on every broker: at most the last batch is read on
    async for _ in read_to_end(consumer, partitions):
        pass
    return {partition: await consumer.position(partition) for partition in partitions}
