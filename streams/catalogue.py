"""The catalogue: every worker reads the whole compacted `items` topic.

It keeps blocked items out of the lists and remembers titles for the page.
"""

import asyncio
import logging
from collections.abc import Iterable
from typing import Any, Final

import orjson
from aiokafka import AIOKafkaConsumer, TopicPartition
from mode import Service

from streams.kafka import client_options
from streams.pipeline import Pipeline
from streams.read_topic import readable_end
from streams.settings import Settings
from streams.titles import Titles
from streams.topics import ITEMS

_PATIENCE_SECONDS: Final = 30.0  # with the catalogue before serving without the rest of it: 2 million entries
_AT_ONCE: Final = 500  # items told between two rounds: 3 ms. One by one, 60,000 would wait for 60,000 rounds

log = logging.getLogger(__name__)


class Catalogue(Service):  # type: ignore[misc]
    """Reads `items` from the beginning, outside the consumer group, and follows it.

    Args:
        settings: all settings.
        pipeline: whose recommender is told what is blocked.
        titles: learns the items' titles; None where nobody shows them.
    """

    def __init__(self, settings: Settings, pipeline: Pipeline, titles: Titles | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._settings, self._pipeline, self._titles = settings, pipeline, titles
        self._blocked: set[str] = set()  # as the topic has it
        self._untold: dict[str, bool] = {}  # what the recommender is still to be told
        self._ends: dict[TopicPartition, int] = {}  # where the topic ended when its first records came
        self._caught_up = asyncio.Event()

    async def known(self) -> None:
        """Wait until the recommender was told all that stood in the topic when the worker began to read it."""
        try:
            await asyncio.wait_for(self._caught_up.wait(), _PATIENCE_SECONDS)
        except TimeoutError:
            log.warning(
                "The catalogue was not read within %.0f s: until it is, lists may hold blocked items",
                _PATIENCE_SECONDS,
            )

    @Service.task  # type: ignore[untyped-decorator]
    async def _follow(self) -> None:
        consumer = AIOKafkaConsumer(
            **client_options(self._settings), group_id=None, enable_auto_commit=False, auto_offset_reset="earliest",
            isolation_level=self._settings.isolation,
        )  # fmt: skip
        await consumer.start()
        try:
            partitions = [TopicPartition(ITEMS, number) for number in await self._partitions(consumer)]
            consumer.assign(partitions)
            await consumer.seek_to_beginning()
            while not self.should_stop:
                fetched = await consumer.getmany(timeout_ms=500, max_records=10_000)
                for records in fetched.values():
                    for record in records:
                        self._learn(record.key, record.value)
                await self._tell()
                if not self._caught_up.is_set() and await self._reached_end(consumer, partitions):
                    self._caught_up.set()
        finally:
            await consumer.stop()

    async def _partitions(self, consumer: AIOKafkaConsumer) -> set[int]:
        await consumer.topics()
        found: set[int] | None = consumer.partitions_for_topic(ITEMS)
        return found or set(range(self._settings.partitions))

    async def _reached_end(self, consumer: AIOKafkaConsumer, partitions: Iterable[TopicPartition]) -> bool:
        """Whether everything was read that stood in the topic at first (its end as in `streams.read_topic`)."""
        for partition in partitions:
            if partition not in self._ends and (end := readable_end(consumer, partition)) is not None:
                self._ends[partition] = end
        if any(partition not in self._ends for partition in partitions):
            return False
        return all([await consumer.position(partition) >= end for partition, end in self._ends.items()])

    def _learn(self, key: bytes | None, value: bytes | None) -> None:
        try:
            entry = orjson.loads(value) if value else {}
            item_id = entry.get("item_id") or (key or b"").decode()
            blocked = bool(entry.get("blocked", False))
        except (orjson.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
            log.warning("Ignored an unreadable catalogue entry with key %r: %s", key, error)
            return
        if not isinstance(item_id, str) or not item_id:
            return
        if self._titles is not None:
            self._titles.learn(item_id, entry.get("title"))
        if blocked == (item_id in self._blocked):
            return
        (self._blocked.add if blocked else self._blocked.discard)(item_id)
        self._untold[item_id] = blocked

    async def _tell(self) -> None:
        changed, self._untold = list(self._untold.items()), {}
        for start in range(0, len(changed), _AT_ONCE):
            await self._pipeline.between_rounds(self._block, changed[start : start + _AT_ONCE])

    def _block(self, changed: list[tuple[str, bool]]) -> None:
        for item_id, blocked in changed:
            self._pipeline.recommender.block(item_id, blocked)
