"""Asking for users to be forgotten, and waiting for the receipts: what `recstream forget` does."""

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.structs import TopicPartition

from streams.decode import MAX_ID_BYTES
from streams.errors import BrokerError
from streams.forget_requests import read_receipt
from streams.kafka import broker_errors, producer_options
from streams.read_topic import end_offsets, reader
from streams.replay import partition_of
from streams.settings import Settings, SettingsError
from streams.topics import FORGET_USERS, FORGOTTEN_USERS, require_topics


@dataclass(slots=True)
class Asked:
    """A request that Kafka has, and the receipts that came for it: by whom -> the message."""

    user: str
    partition: int
    offset: int
    receipts: dict[str, dict[str, Any]] = field(default_factory=dict)


async def forget(
    settings: Settings,
    users: Sequence[str],
    wait_for: Collection[str] = (),
    timeout_seconds: float = 60.0,
    on_receipt: Callable[[int], None] = lambda _: None,
) -> list[Asked]:
    """Ask for users to be forgotten.

    Args:
        settings: Brokers and partitions.
        users: User ids, as in the events.
        wait_for: Whose receipts to wait for: ``worker``, ``trainer``.
        timeout_seconds: How long to wait for them.
        on_receipt: Called with the number of receipts that have come.

    Returns:
        The requests in the order of `users`.

    Raises:
        SettingsError: a user id is empty, too long or no text.
        BrokerError: when Kafka cannot be reached or refuses, the topics are missing, or receipts did not come in time.
    """
    for user in users:
        require_user_id(user)
    await asyncio.to_thread(require_topics, settings, [FORGET_USERS, FORGOTTEN_USERS])
    numbers = {partition_of(user, settings.partitions) for user in users}
    answers = [TopicPartition(FORGOTTEN_USERS, number) for number in sorted(numbers)]
    with broker_errors(settings, "ask for users to be forgotten"):
        if not wait_for:
            return await _send(settings, users)
        async with reader(settings, answers) as consumer:
            await end_offsets(consumer, answers)  # receipts come behind this
            asked = await _send(settings, users)
            await _collect(consumer, asked, wait_for, timeout_seconds, on_receipt)
            return asked


def require_user_id(text: str) -> None:
    """Make sure that what was written on the command line, perhaps bytes that are no text, can be a user's id.

    Raises:
        SettingsError: no event can have it.
    """
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        size = 0
    if not 0 < size <= MAX_ID_BYTES:
        what, why = f"{text[:40]!a} cannot be a user id", f"ids are UTF-8 text of 1 to {MAX_ID_BYTES} bytes"
        raise SettingsError(what, why, "give the user_id as it is in the events")


async def _send(settings: Settings, users: Sequence[str]) -> list[Asked]:
    async with AIOKafkaProducer(**producer_options(settings, "recstream-forget")) as producer:
        sent = [
            await producer.send(FORGET_USERS, b"", key=user.encode(), partition=partition_of(user, settings.partitions))
            for user in users
        ]
        places = [await future for future in sent]
    return [Asked(user, place.partition, place.offset) for user, place in zip(users, places, strict=True)]


async def _collect(
    consumer: Any,
    asked: list[Asked],
    wait_for: Collection[str],
    timeout_seconds: float,
    on_receipt: Callable[[int], None],
) -> None:
    of: dict[tuple[Any, Any], Asked] = {(one.partition, one.offset): one for one in asked}
    deadline = time.monotonic() + timeout_seconds
    while missing := [by for one in asked for by in wait_for if by not in one.receipts]:
        if time.monotonic() > deadline:
            count = {by: missing.count(by) for by in dict.fromkeys(missing)}
            whose = " and ".join(f"{n} of {len(asked)} from the {by}" for by, n in count.items())
            raise BrokerError(
                what=f"receipts did not come within {timeout_seconds:.0f} s: {whose}",
                why="the requests are on forget-users and will be answered once whoever is missing runs, "
                "has read the input topics up to here, and (the trainer) has ended its training pass",
                fix="start it, wait longer (--timeout), or do not wait for a trainer you do not run (--no-trainer)",
            )
        for records in (await consumer.getmany(timeout_ms=200)).values():
            for record in records:
                message = read_receipt(record.value)
                request = message.get("request") or {}
                found = of.get((request.get("partition"), request.get("offset")))
                if found is not None and message.get("user_id") == found.user:
                    found.receipts.setdefault(str(message.get("by")), message)
        on_receipt(sum(by in one.receipts for one in asked for by in wait_for))
