"""Where partitions begin that the group has never committed, when it is to start at the end of the input topics."""

from collections.abc import Collection
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition
from faust.types import TP
from mode import Service

from state.events import TOPICS
from streams.kafka import broker_errors, client_options
from streams.read_topic import end_offsets, reader
from streams.settings import Settings


class FirstOffsets(Service):  # type: ignore[misc]
    """Tells which partitions begin at their end, and where that is; all others begin at their beginning.

    Those of topics of which the group had committed nothing when this worker started. A partition without a commit
    beside others that have one was added to its topic later: its events are as new as those of the others. That is
    looked up before this worker joins; afterwards a worker that joins with it may have committed its own already.
    """

    def __init__(self, settings: Settings, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._settings = settings
        self._at_the_end: frozenset[TopicPartition] = frozenset()

    async def on_start(self) -> None:
        """Look up what the group has committed.

        Raises:
            BrokerError: when that cannot be had.
        """
        there = [TopicPartition(topic, number) for topic in TOPICS for number in range(self._settings.partitions)]
        with broker_errors(self._settings, "read the group's offsets"):
            committed = await _committed(self._settings, there)
        known = {partition.topic for partition in committed}
        self._at_the_end = frozenset(partition for partition in there if partition.topic not in known)

    async def of(self, unread: Collection[TP]) -> dict[TP, int]:
        """First offsets of partitions without a commit; those left out begin at their beginning.

        Raises:
            BrokerError: when the broker does not answer in time.
        """
        wanted = [TopicPartition(*tp) for tp in unread if tp in self._at_the_end]
        if not wanted:
            return {}
        with broker_errors(self._settings, "look up where the input topics end"):
            async with reader(self._settings, wanted, self._settings.isolation) as consumer:
                return {TP(*partition): end for partition, end in (await end_offsets(consumer, wanted)).items()}


async def _committed(settings: Settings, partitions: Collection[TopicPartition]) -> set[TopicPartition]:
    """Those of the partitions that the group has committed; asks without joining it."""
    consumer = AIOKafkaConsumer(**client_options(settings), group_id=settings.app_id, enable_auto_commit=False)
    await consumer.start()
    try:
        return {partition for partition in partitions if await consumer.committed(partition) is not None}
    finally:
        await consumer.stop()
