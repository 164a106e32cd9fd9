"""Announcements of promoted versions on `model-versions`: key the version, value JSON, compacted."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from aiokafka import AIOKafkaProducer

from streams.kafka import broker_errors, producer_options
from streams.settings import Settings
from streams.topics import MODEL_VERSIONS


@dataclass(frozen=True, slots=True)
class Announcement:
    """What everybody may know of a version that now serves.

    Attributes:
        version: Its name.
        parent: The version it was made from, None for a first one.
        metrics: As beside it in the registry.
        created_ms: When it was announced.
    """

    version: str
    parent: str | None
    metrics: Mapping[str, Any]
    created_ms: int

    def encode(self) -> tuple[bytes, bytes]:
        """Key and value of the message."""
        value = {
            "version": self.version,
            "parent": self.parent,
            "metrics": dict(self.metrics),
            "created": self.created_ms,
        }
        return self.version.encode(), orjson.dumps(value)


async def announce(settings: Settings, announcement: Announcement) -> None:
    """Send one announcement and wait until the broker has it.

    Raises:
        BrokerError: when Kafka cannot be reached or refuses.
    """
    key, value = announcement.encode()
    with broker_errors(settings, "announce a model version"):
        producer = AIOKafkaProducer(**producer_options(settings, "recstream-trainer"))
        try:
            await producer.start()
            await producer.send_and_wait(MODEL_VERSIONS, value, key=key)
        finally:
            await producer.stop()
