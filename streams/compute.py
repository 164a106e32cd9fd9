"""The CPU work of one round: waiting records of all partitions in, encoded Kafka batches of each out.

One call serves all partitions of a round: at 2,000 events/s a round has a handful of events, and calls, not
arithmetic, are what it costs. Runs in the compute thread, or on the event loop for a few events; nothing here waits.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.recommend import Advanced, Recommender
from state.events import KIND_OF_TOPIC
from state.pseudonyms import NO_PSEUDONYMS, Pseudonyms
from streams.deadletters import DeadLetter, dead_letter
from streams.encode import ItemFragments, Message, encode_recommendations, encode_users
from streams.fetch import RecordBatch
from streams.metrics import Metrics
from streams.partition import Partition
from streams.record_batch import Blobs, EncodedBatch, encode_batches
from streams.round_events import RoundEvents, round_events

_PUBLISH_EVENTS: Final = 4096
_SECONDS: Final = (500_000_000, 100_000_000_000)  # since 1985 in seconds; in milliseconds before March 1973

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Produced:
    """What a round sends for one partition."""

    recommendations: list[EncodedBatch] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Note:
    """What the metrics need of one round."""

    kinds: NDArray[np.uint8]  # (E,)
    advanced: Advanced
    touched_ms: NDArray[np.int64]  # (E,)
    sent_ms: int
    seconds: float

    def waited_seconds(self) -> NDArray[np.float64]:
        """Kafka timestamp of each answered event to its recommendation: (L,)."""
        waited_ms = self.sent_ms - self.touched_ms[self.advanced.fresh[self.advanced.listed]]
        return np.maximum(waited_ms, 0) / 1000.0


class Compute:
    """Decode -> advance -> encode, with the counters beside it."""

    def __init__(
        self,
        recommender: Recommender,
        metrics: Metrics,
        max_event_bytes: int,
        pseudonyms: Pseudonyms = NO_PSEUDONYMS,
    ) -> None:
        self.recommender, self.metrics, self._max_event_bytes = recommender, metrics, max_event_bytes
        self._pseudonyms = pseudonyms
        self._fragments = ItemFragments(recommender.items)
        self._names = {0: recommender.model_version}  # fingerprint 0: lists made before there was a model
        self._noted: list[_Note] = []
        self._noted_events = 0
        self._warned = False

    def round(self, work: Sequence[tuple[Partition, Sequence[RecordBatch]]]) -> list[Produced]:
        """Everything the waiting records of some partitions lead to.

        Args:
            work: partitions, whose users are advanced in place, and their waiting batches, those of a topic in offset
                order.

        Returns:
            What to send, partition by partition.
        """
        started = time.perf_counter()
        partitions = [partition for partition, _ in work]
        events = round_events([batches for _, batches in work], time.time_ns() // 1_000_000, self._max_event_bytes)
        produced = [Produced() for _ in work]
        self._reject(events, produced)
        if any(partition.erasures.barring for partition in partitions):
            events = self._not_erased(partitions, events)
        if len(events.batch):
            self._warn_of_seconds(events.batch.times_ms)
            named = self._pseudonyms.rename(events.batch)
            advanced = self.recommender.advance_all([partition.store for partition in partitions], named, events.bounds)
            if (model := self.recommender.model) is not None:  # at every round: several may serve between two flushes
                self._names[model.fingerprint] = model.name
            now_ms = time.time_ns() // 1_000_000
            self._encode(partitions, events, advanced, now_ms, produced)
            seconds = time.perf_counter() - started
            self._noted.append(_Note(events.batch.kinds, advanced, events.batch.touched_ms, now_ms, seconds))
            self._noted_events += len(events.batch)
            if self._noted_events >= _PUBLISH_EVENTS:
                self.publish()
        return produced

    def _reject(self, events: RoundEvents, produced: list[Produced]) -> None:
        for place, batch, bad in events.rejected:
            self.metrics.dead_letters.labels(bad.reason).inc()
            self.metrics.events.labels(batch.topic, "rejected").inc()
            produced[place].dead_letters.append(dead_letter(batch, bad))

    def _warn_of_seconds(self, times_ms: NDArray[np.int64]) -> None:
        earliest = int(times_ms.min())
        if not self._warned and _SECONDS[0] <= earliest < _SECONDS[1]:
            self._warned = True
            log.warning(
                "timestamp %d is in %d: it looks like seconds, the unit is milliseconds",
                earliest,
                1970 + earliest // 31_556_952_000,
            )

    def _not_erased(self, partitions: list[Partition], events: RoundEvents) -> RoundEvents:
        """Leave out events that are older than their user's request to be forgotten."""
        batch, bounds = events.batch, events.bounds
        kept = np.ones(len(batch), np.bool_)
        for place, partition in enumerate(partitions):
            part = slice(bounds[place], bounds[place + 1])
            if partition.erasures.barring:
                kept[part] = partition.erasures.kept(batch.users[part], batch.kinds[part], batch.offsets[part])
        if kept.all():
            return events
        for topic, kind in KIND_OF_TOPIC.items():
            if dropped := int((~kept & (batch.kinds == kind)).sum()):
                self.metrics.events.labels(topic, "forgotten").inc(dropped)
        before = np.concatenate(([0], np.cumsum(kept)))  # (E + 1,) events kept before each
        return replace(events, batch=batch.take(kept), bounds=before[bounds].tolist())

    def _encode(
        self,
        partitions: list[Partition],
        events: RoundEvents,
        advanced: Advanced,
        now_ms: int,
        produced: list[Produced],
    ) -> None:
        if not len(advanced.listed):
            return
        batch, bounds = events.batch, events.bounds
        users, kinds, offsets, times_ms = batch.users, batch.kinds, batch.offsets, batch.times_ms
        if len(advanced.listed) < len(batch):
            at = advanced.fresh[advanced.listed]  # (L,) positions in the batch
            users = [users[i] for i in at.tolist()]
            kinds, offsets, times_ms = kinds[at], offsets[at], times_ms[at]
            bounds = np.searchsorted(at, bounds).tolist()
        numbers = np.array([partition.number for partition in partitions], np.int32)
        as_json, keys = encode_users(users)
        values = encode_recommendations(
            as_json, advanced.items, advanced.scores, kinds, np.repeat(numbers, np.diff(bounds)), offsets, times_ms,
            self._fragments.cover(advanced.items), Message(advanced.model_version, now_ms),
        )  # fmt: skip
        for place, made in enumerate(produced):
            part = slice(bounds[place], bounds[place + 1] + 1)
            made.recommendations += encode_batches(
                Blobs(keys.data, keys.offsets[part]), Blobs(values.data, values.offsets[part]), now_ms
            )

    def publish(self) -> None:
        """Bring the metrics up to date: they are counted a few thousand events at a time."""
        noted, self._noted, self._noted_events = self._noted, [], 0
        if not noted:
            return
        metrics = self.metrics
        kinds = np.concatenate([note.kinds for note in noted])
        applied = np.concatenate([note.kinds[note.advanced.fresh] for note in noted])
        for topic, kind in KIND_OF_TOPIC.items():
            fresh, every = int((applied == kind).sum()), int((kinds == kind).sum())
            if fresh:
                metrics.events.labels(topic, "applied").inc(fresh)
            if every > fresh:
                metrics.events.labels(topic, "duplicate").inc(every - fresh)
        metrics.batch_events.observe(np.array([len(note.kinds) for note in noted], np.float64))
        metrics.latency.observe(np.concatenate([note.waited_seconds() for note in noted]))
        metrics.compute_seconds.inc(sum(note.seconds for note in noted))
        metrics.rehydrations.inc(sum(note.advanced.rehydrated for note in noted))
        for version in {note.advanced.model_version for note in noted}:
            sent = sum(len(note.advanced.listed) for note in noted if note.advanced.model_version == version)
            metrics.count_sent(version, sent)
        metrics.observe_ranks(
            self._names,
            np.concatenate([note.advanced.ranks for note in noted]),
            np.concatenate([note.advanced.rank_models for note in noted]),
            np.concatenate([note.advanced.popularity_ranks for note in noted]),
        )
