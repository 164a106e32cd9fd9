"""The input topics as the trainer reads them: a consumer group of its own, positions kept beside the buffer's data."""

import asyncio
import logging
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import compress
from typing import Any, Final

import numpy as np
from aiokafka import AIOKafkaConsumer
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from state.events import KIND_OF_TOPIC, TOPICS
from state.pseudonyms import Pseudonyms
from state.replay_buffer import ReplayBuffer
from streams.decode import decode
from streams.erasures import Erasures
from streams.fetch import RecordBatch, fetch_batches, passed_by
from streams.kafka import client_options, describe
from streams.read_topic import end_offsets, readable_end, reader
from streams.settings import Settings
from streams.topics import FORGET_USERS

_MOST_EVENTS: Final = 16_384  # of one fetch: about 30 ms of work between two turns of the event loop
# A broker answers as soon as it has a byte, and every small fetch takes the interpreter from the thread that trains.
# Events may come a quarter of a second late here.
_FETCH_MIN_BYTES: Final = 1 << 18
_FETCH_MAX_WAIT_MS: Final = 250

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Taken:
    """What one turn of the feed brought."""

    events: int
    invalid: int
    records: int


class EventFeed(ConsumerRebalanceListener):  # type: ignore[misc]
    """Reads events into a replay buffer.

    The buffer names the next offset of every partition, atomically with the data: reading starts there, whatever the
    group has committed; without one at the beginning, or at the end where `start_from` says so, which the buffer notes
    before anything is taken. Commits to the group are for operators who watch its lag.

    Args:
        settings: Brokers, group, partitions.
        buffer: Where the events go.

    Attributes:
        erasures: Requests to be forgotten that are not answered yet, by partition number. Their users have left the
            buffer; its offset on `forget-users` moves when they are answered.
    """

    def __init__(self, settings: Settings, buffer: ReplayBuffer) -> None:
        self._settings, self._buffer = settings, buffer
        self._pseudonyms = Pseudonyms(settings.pseudonym_key.get_secret_value())
        self._consumer = AIOKafkaConsumer(
            **client_options(settings, "recstream-trainer"),
            group_id=f"{settings.app_id}-trainer",
            enable_auto_commit=False,
            isolation_level=settings.isolation,
            auto_offset_reset="earliest",  # where offsets go that Kafka no longer keeps
            session_timeout_ms=int(settings.session_timeout_seconds * 1000),
            heartbeat_interval_ms=int(settings.session_timeout_seconds * 1000 / 4),
            max_poll_interval_ms=int(settings.rebalance_timeout_seconds * 1000),
            rebalance_timeout_ms=int(settings.rebalance_timeout_seconds * 1000),
            fetch_min_bytes=_FETCH_MIN_BYTES,
            fetch_max_wait_ms=_FETCH_MAX_WAIT_MS,
        )
        self._assigned: set[TopicPartition] = set()
        self._placed = asyncio.Event()  # every assigned partition stands where reading begins: before, nothing is taken
        self._failed: Exception | None = None  # why they could not be placed
        self._durable = dict(buffer.offsets)
        self.erasures: dict[int, Erasures] = {}

    @property
    def ready(self) -> bool:
        """Whether partitions have been assigned."""
        return bool(self._assigned)

    async def start(self) -> None:
        """Connect and ask to join the group; `ready` says when that has happened.

        Raises:
            aiokafka.errors.KafkaError: the broker cannot be reached or refuses.
        """
        await self._consumer.start()
        # Before `start`, this would wait for the group's answer.
        self._consumer.subscribe((*TOPICS, FORGET_USERS), listener=self)

    async def stop(self) -> None:
        """Leave the group."""
        await self._consumer.stop()

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Another trainer takes partitions over."""
        self._placed.clear()
        self._assigned -= set(revoked)

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Go on where the buffer's data ends, and read all requests to be forgotten that were not answered."""
        self.erasures = {}
        try:
            await self._place(assigned)
        except Exception as error:  # aiokafka would log it and read on from elsewhere; `take` raises it
            self._failed = error
            return
        self._assigned = set(assigned)
        self._placed.set()

    def consumed(self, topic: str, partition: int) -> int:
        """Offset of an input topic's partition below which nothing will be read any more, whatever crashes."""
        if self._buffer.offset(topic, partition) is not None:
            return self._durable.get(f"{topic}:{partition}", 0)
        assignment = self._consumer._subscription.subscription.assignment
        tp = TopicPartition(topic, partition)
        state = assignment.state_value(tp) if assignment is not None and tp in assignment.tps else None
        return int(state.position) if state is not None and state.has_valid_position else 0

    async def take(self, wait_seconds: float) -> Taken:
        """Put what has come into the buffer; waits a while when nothing has.

        Raises:
            aiokafka.errors.KafkaError: a fetch or the group failed.
        """
        consumer = self._consumer
        consumer._coordinator.check_errors()
        if self._failed is not None:
            raise self._failed
        with consumer._fetcher._subscriptions.fetch_context():
            if not self._placed.is_set():
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._placed.wait(), wait_seconds)
                return Taken(0, 0, 0)
            fetched: dict[Any, list[RecordBatch]] = await fetch_batches(
                consumer._fetcher,
                None,
                may_take=self._placed.is_set,
                in_batches=lambda _: True,
                timeout_seconds=wait_seconds,
                max_events=_MOST_EVENTS,
            )
        events = invalid = records = 0
        for batches in fetched.values():
            for batch in batches:
                new, bad = self._keep(batch)
                events, invalid, records = events + new, invalid + bad, records + len(batch)
        return Taken(events, invalid, records)

    async def commit(self) -> None:
        """Make what was taken durable, then tell the group how far it is."""
        self._buffer.commit()
        self._durable = dict(self._buffer.offsets)
        offsets = {}
        for partition in self._assigned:
            following = self._buffer.offset(partition.topic, partition.partition)
            if following is not None:
                offsets[partition] = following
        if not offsets:
            return
        try:
            await self._consumer.commit(offsets)
        except KafkaError as error:  # a rebalance under way; the buffer knows its place
            log.debug("The group's offsets were not committed: %s", describe(error))

    async def caught_up(self) -> bool:
        """Whether everything the broker had at the last fetch, and lets us read, was read."""
        if not self._assigned:
            return False
        for partition in self._assigned:
            end = readable_end(self._consumer, partition)
            if end is None or await self._consumer.position(partition) < end:
                return False
        return True

    async def lag(self) -> int:
        """Events the broker has that were not read yet, as of the last fetches."""
        total = 0
        for partition in self._assigned:
            end = self._consumer.highwater(partition)
            if end is not None:
                total += max(0, end - await self._consumer.position(partition))
        return total

    async def _place(self, assigned: Iterable[TopicPartition]) -> None:
        """Meanwhile aiokafka resolves positions by what the group has committed, and fetches from there."""
        unread = []
        for partition in assigned:
            following = self._buffer.offset(partition.topic, partition.partition)
            if following is None:
                unread.append(partition)
            else:
                self._consumer.seek(partition, following)
        ended = [partition for partition in unread if await self._begins_at_the_end(partition)]
        first = [partition for partition in unread if partition not in ended]
        if first:
            for partition, offset in (await self._consumer.beginning_offsets(first)).items():
                self._consumer.seek(partition, offset)
        if ended:
            await self._begin_at_the_end(ended)

    async def _begins_at_the_end(self, partition: TopicPartition) -> bool:
        """Only where nothing was ever read: a group that has committed had a buffer, which fills again.

        A partition the buffer does not know, of a topic it knows, was added to the topic later.
        """
        if partition.topic == FORGET_USERS or self._settings.start_from != "latest":
            return False
        if any(name.startswith(f"{partition.topic}:") for name in self._buffer.offsets):
            return False
        return await self._consumer.committed(partition) is None

    async def _begin_at_the_end(self, partitions: list[TopicPartition]) -> None:
        """On disk at once: whatever ends the trainer, the next one goes on from here."""
        async with reader(self._settings, partitions, self._settings.isolation) as consumer:
            ends = await end_offsets(consumer, partitions)
        for partition, offset in ends.items():
            self._consumer.seek(partition, offset)
            self._buffer.pass_over(partition.topic, partition.partition, offset)
        self._buffer.commit()
        self._durable = dict(self._buffer.offsets)

    def _keep(self, batch: RecordBatch) -> tuple[int, int]:
        following = self._buffer.offset(batch.topic, batch.partition)
        if following is not None and 0 <= batch.start < following:
            # Reading started at `following`; the broker can only be behind it when the topic was made anew.
            log.warning("%s/%d begins again: the topic was made anew", batch.topic, batch.partition)
            self._buffer.forget_offset(batch.topic, batch.partition)
        elif following is not None and batch.start > following:
            log.warning("%s", passed_by(batch, following))
        erasures = self.erasures.setdefault(batch.partition, Erasures())
        if batch.topic == FORGET_USERS:
            rejected = erasures.take(batch, batch.next_offset, self._buffer.forget, self._pseudonyms)
            if len(rejected) == len(batch) and not len(erasures):
                self._buffer.pass_over(batch.topic, batch.partition, batch.next_offset)
            return 0, len(rejected)
        decoded = decode(batch.values, int(time.time() * 1000), self._settings.max_event_bytes)
        offsets = np.array(batch.offsets, np.int64)[decoded.positions]
        kinds = np.full(len(offsets), KIND_OF_TOPIC[batch.topic], np.uint8)
        users, items, times_ms = decoded.users, decoded.items, decoded.times_ms
        if erasures.barring:
            kept = erasures.kept(users, kinds, offsets)
            users, items = list(compress(users, kept)), list(compress(items, kept))
            kinds, times_ms, offsets = kinds[kept], times_ms[kept], offsets[kept]
        new = self._buffer.append(
            batch.topic,
            batch.partition,
            self._pseudonyms.names(users),
            items,
            kinds,
            times_ms,
            offsets,
            batch.next_offset,
        )
        return new, len(decoded.rejected)
