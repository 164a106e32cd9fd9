"""The catalogue: every worker reads the whole compacted `items` topic.

It keeps blocked items out of the lists and remembers titles for the page.
"""

import logging
from typing import Any

import orjson
from aiokafka import AIOKafkaConsumer, TopicPartition
from mode import Service

from streams.kafka import client_options
from streams.pipeline import Pipeline
from streams.settings import Settings
from streams.titles import Titles
from streams.topics import ITEMS

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
        self._blocked: set[str] = set()

    @Service.task  # type: ignore[untyped-decorator]
    async def _follow(self) -> None:
        consumer = AIOKafkaConsumer(
            **client_options(self._settings), group_id=None, enable_auto_commit=False, auto_offset_reset="earliest"
        )
        await consumer.start()
        try:
            partitions = await self._partitions(consumer)
            consumer.assign([TopicPartition(ITEMS, number) for number in partitions])
            await consumer.seek_to_beginning()
            while not self.should_stop:
                fetched = await consumer.getmany(timeout_ms=500, max_records=10_000)
                for records in fetched.values():
                    for record in records:
                        await self._learn(record.key, record.value)
        finally:
            await consumer.stop()

    async def _partitions(self, consumer: AIOKafkaConsumer) -> set[int]:
        await consumer.topics()
        found: set[int] | None = consumer.partitions_for_topic(ITEMS)
        return found or set(range(self._settings.partitions))

    async def _learn(self, key: bytes | None, value: bytes | None) -> None:
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
        await self._pipeline.between_rounds(self._pipeline.recommender.block, item_id, blocked)
