"""Recommendations as people read them: who, when, why, and titles instead of ids."""

import asyncio
import datetime as dt
import time
from collections.abc import Iterable, Mapping
from typing import Any

import orjson
from aiokafka.structs import ConsumerRecord, TopicPartition
from rich.console import Console
from rich.text import Text

from streams.console import harmless
from streams.forget import require_user_id
from streams.kafka import broker_errors
from streams.read_topic import read_to_end, reader
from streams.replay import partition_of
from streams.settings import Settings
from streams.topics import ITEMS, RECOMMENDATIONS, require_topics

_EVENT_WORDS = {"clicks": "clicked", "views": "viewed", "purchases": "bought"}


async def read_titles(settings: Settings) -> dict[str, str]:
    """Titles by item id: the newest catalogue entry of every item, as the topic `items` has them now.

    Raises:
        BrokerError: when Kafka cannot be reached.
    """
    titles: dict[str, str] = {}
    partitions = _partitions(ITEMS, settings)
    with broker_errors(settings, "read the catalogue"):
        async with reader(settings, partitions) as consumer:
            async for records in read_to_end(consumer, partitions):
                _learn(titles, records)
    return titles


async def follow(
    settings: Settings,
    user: str | None = None,
    limit: int | None = None,
    earliest: bool = False,
    console: Console | None = None,
) -> int:
    """Print recommendations as they come.

    Args:
        settings: Brokers and partitions.
        user: Only this user's.
        limit: End after so many; None goes on for ever.
        earliest: Begin with the oldest one kept instead of new ones.
        console: Where to print; standard output by default.

    Returns:
        How many were printed.

    Raises:
        BrokerError: when Kafka cannot be reached or the topics are missing.
        SettingsError: no user can have this id.
    """
    if user is not None:
        require_user_id(user)
    out = console or Console(highlight=False)
    await asyncio.to_thread(require_topics, settings, [ITEMS, RECOMMENDATIONS])
    started_ms = 0 if earliest else int(time.time() * 1000)
    # A user's messages are all on one partition; the others need not be read.
    wanted = _partitions(RECOMMENDATIONS, settings, user)
    catalogue = _partitions(ITEMS, settings)
    titles: dict[str, str] = {}
    printed = 0
    with broker_errors(settings, "read recommendations"):
        async with reader(settings, [*catalogue, *wanted]) as consumer:
            if not earliest:
                await consumer.seek_to_end(*wanted)
            async for records in read_to_end(consumer, catalogue):
                _learn(titles, records)
            while True:
                for partition, records in (await consumer.getmany(timeout_ms=500)).items():
                    if partition.topic == ITEMS:
                        _learn(titles, records)
                        continue
                    for record in records:
                        message = _object(record.value)
                        # The broker's idea of the end may be a batch early: leave out what was there before us.
                        if record.timestamp < started_ms or user not in (None, message.get("user_id")):
                            continue
                        out.print(line(message, titles), soft_wrap=True)
                        printed += 1
                        if limit is not None and printed >= limit:
                            return printed


def line(message: Mapping[str, Any], titles: Mapping[str, str]) -> Text:
    """One recommendation message as one line, whatever ids and titles are made of.

    Args:
        message: The decoded message.
        titles: Titles by item id; an id without one stands for itself.
    """
    event = message.get("event") or {}
    made_ms = message.get("generated_at")
    made = dt.datetime.fromtimestamp(made_ms / 1000, dt.UTC).astimezone() if isinstance(made_ms, int | float) else None
    topic = str(event.get("topic", "?"))
    items = [entry for entry in message.get("items") or [] if isinstance(entry, dict)]
    names = [
        f"{harmless(titles.get(item, item))} ({float(entry.get('score', 0)):.2f})"
        for entry in items
        for item in [str(entry.get("item_id"))]
    ]
    return Text.assemble(
        (f"{made:%H:%M:%S} " if made else "", "dim"),
        (harmless(str(message.get("user_id"))), "bold cyan"),
        f" {_EVENT_WORDS.get(topic, topic)} -> ",
        ", ".join(names) or "nothing",
        (f"  [{message.get('model_version')}]", "dim"),
    )


def _partitions(topic: str, settings: Settings, key: str | None = None) -> list[TopicPartition]:
    """All partitions of a topic, or the one of a key."""
    numbers = range(settings.partitions) if key is None else [partition_of(key, settings.partitions)]
    return [TopicPartition(topic, number) for number in numbers]


def _learn(titles: dict[str, str], records: Iterable[ConsumerRecord[bytes, bytes]]) -> None:
    """Take catalogue entries in."""
    for record in records:
        item = (record.key or b"").decode(errors="replace")
        title = _object(record.value).get("title")
        if isinstance(title, str) and title:
            titles[item] = title
        else:  # a tombstone, or an entry without a title
            titles.pop(item, None)


def _object(value: bytes | None) -> dict[str, Any]:
    try:
        decoded = orjson.loads(value or b"null")
    except orjson.JSONDecodeError:
        return {}
    return decoded if isinstance(decoded, dict) else {}
