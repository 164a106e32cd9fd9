"""The CPU work of one round: record batches of one partition number in, encoded Kafka batches out.

Runs in the compute thread, away from the event loop; nothing here waits.
"""

import time
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.recommend import Advanced, Recommender
from state.events import KIND_OF_TOPIC, EventBatch
from streams.deadletters import DeadLetter, dead_letter
from streams.decode import decode
from streams.encode import ItemFragments, Message, encode_recommendations, encode_users
from streams.fetch import RecordBatch
from streams.metrics import Metrics
from streams.partition import Partition
from streams.record_batch import EncodedBatch, encode_batches

_PUBLISH_EVENTS: Final = 4096


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

    def __init__(self, recommender: Recommender, metrics: Metrics, max_event_bytes: int) -> None:
        self.recommender, self.metrics, self._max_event_bytes = recommender, metrics, max_event_bytes
        self._fragments = ItemFragments(recommender.items)
        self._names = {0: recommender.model_version}  # fingerprint 0: lists made before there was a model
        self._noted: list[_Note] = []
        self._noted_events = 0

    def rounds(self, work: list[tuple[Partition, list[RecordBatch]]]) -> list[Produced]:
        """`round` for several partitions."""
        return [self.round(partition, batches) for partition, batches in work]

    def round(self, partition: Partition, batches: list[RecordBatch]) -> Produced:
        """Everything one partition's waiting records lead to.

        Args:
            partition: whose users they are; advanced in place.
            batches: waiting batches of its input topics, each topic's in offset order.
        """
        started = time.perf_counter()
        produced = Produced()
        events = self._events(batches, produced)
        if len(events):
            advanced = self.recommender.advance(partition.store, events)
            now_ms = time.time_ns() // 1_000_000
            self._encode(partition, events, advanced, now_ms, produced)
            seconds = time.perf_counter() - started
            self._noted.append(_Note(events.kinds, advanced, events.touched_ms, now_ms, seconds))
            self._noted_events += len(events)
            if self._noted_events >= _PUBLISH_EVENTS:
                self.publish()
        return produced

    def _events(self, batches: list[RecordBatch], produced: Produced) -> EventBatch:
        now_ms = time.time_ns() // 1_000_000
        parts = []
        for batch in batches:
            decoded = decode(batch.values, now_ms, self._max_event_bytes)
            for bad in decoded.rejected:
                self.metrics.dead_letters.labels(bad.reason).inc()
                self.metrics.events.labels(batch.topic, "rejected").inc()
                produced.dead_letters.append(dead_letter(batch, bad))
            kinds = np.full(len(decoded.users), KIND_OF_TOPIC[batch.topic], np.uint8)
            offsets, touched_ms = np.array(batch.offsets, np.int64), np.array(batch.timestamps, np.int64)
            if decoded.rejected:
                offsets, touched_ms = offsets[decoded.positions], touched_ms[decoded.positions]
            parts.append(EventBatch(decoded.users, decoded.items, kinds, decoded.times_ms, offsets, touched_ms))
        return parts[0] if len(parts) == 1 else merge(parts)

    def _encode(
        self, partition: Partition, events: EventBatch, advanced: Advanced, now_ms: int, produced: Produced
    ) -> None:
        if not len(advanced.listed):
            return
        users, kinds, offsets, times_ms = events.users, events.kinds, events.offsets, events.times_ms
        if len(advanced.listed) < len(events):
            at = advanced.fresh[advanced.listed]  # (L,) positions in the batch
            users = [users[i] for i in at.tolist()]
            kinds, offsets, times_ms = kinds[at], offsets[at], times_ms[at]
        as_json, keys = encode_users(users)
        values = encode_recommendations(
            as_json, advanced.items, advanced.scores, kinds, offsets, times_ms,
            self._fragments.cover(advanced.items), Message(advanced.model_version, partition.number, now_ms),
        )  # fmt: skip
        produced.recommendations += encode_batches(keys, values, now_ms)

    def publish(self) -> None:
        """Bring the metrics up to date: they are counted a few thousand events at a time."""
        noted, self._noted, self._noted_events = self._noted, [], 0
        if not noted:
            return
        metrics = self.metrics
        model = self.recommender.model
        if model is not None:
            self._names[model.fingerprint] = model.name
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
            metrics.recommendations.labels(version).inc(sent)
        metrics.observe_ranks(
            self._names,
            np.concatenate([note.advanced.ranks for note in noted]),
            np.concatenate([note.advanced.rank_models for note in noted]),
            np.concatenate([note.advanced.popularity_ranks for note in noted]),
        )


def merge(parts: list[EventBatch]) -> EventBatch:
    """Batches of several topics in one order: by event time, never overtaking within a topic.

    A batch counts as its running maximum time, so a late event does not move before its predecessors: the offsets of
    each topic must be applied in order for redelivered ones to be recognised.
    """
    by_kind: dict[int, int] = {}
    clock = []
    for part in parts:  # several batches of one topic continue its clock
        kind = int(part.kinds[0]) if len(part) else -1
        times = np.maximum.accumulate(np.maximum(part.times_ms, by_kind.get(kind, 0)))
        if len(part):
            by_kind[kind] = int(times[-1])
        clock.append(times)
    order = np.argsort(np.concatenate(clock), kind="stable")
    users = [user for part in parts for user in part.users]
    items = [item for part in parts for item in part.items]
    places = order.tolist()
    return EventBatch(
        [users[i] for i in places],
        [items[i] for i in places],
        np.concatenate([part.kinds for part in parts])[order],
        np.concatenate([part.times_ms for part in parts])[order],
        np.concatenate([part.offsets for part in parts])[order],
        np.concatenate([part.touched_ms for part in parts])[order],
    )
