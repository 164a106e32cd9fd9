"""Bring a partition's users back before its first event: local snapshot, then the changelog behind it.

Each step is a bulk operation: record batches from the fetcher, records decoded as one array. A partition that stays
with this worker over a rebalance only reads what was written since, which is nothing unless another worker owned it.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaTimeoutError

from state.errors import StateError
from state.record import decode
from state.snapshot import read
from streams.fetch import RecordBatch, fetch_batches
from streams.kafka import client_options
from streams.metrics import Metrics
from streams.partition import Partition, snapshot_path
from streams.settings import Settings
from streams.topics import CHANGELOG

MAX_SNAPSHOT_AGE_MS: Final = 20 * 3600 * 1000  # tombstones stay readable for 24 h (delete.retention.ms)
CLOCK_SKEW_MS: Final = 5 * 60 * 1000  # a date further ahead is from a clock that was wrong: nobody knows the age
_CHUNK_EVENTS: Final = 50_000
_FETCH_BYTES: Final = 8 << 20
_WATERMARK_SECONDS: Final = 60.0

log = logging.getLogger(__name__)
InThread = Callable[..., Awaitable[Any]]


@dataclass(slots=True)
class Restored:
    """How much a restore read and how long it took."""

    snapshot_users: int = 0
    snapshot_seconds: float = 0.0
    records: int = 0
    changelog_seconds: float = 0.0


async def restore(
    partitions: Iterable[Partition], settings: Settings, changelog_id: str, metrics: Metrics, in_thread: InThread
) -> Restored:
    """Make every partition's store reflect its changelog to the end.

    Args:
        partitions: the partitions; those never restored (`changelog_next` -1) start from their snapshot.
        settings: brokers and directories.
        changelog_id: which changelog a snapshot must belong to.
        metrics: counters of what was read.
        in_thread: runs a function in the thread that computes, and returns its result.

    Raises:
        aiokafka.errors.KafkaError: the changelog cannot be read.
    """
    targets = {TopicPartition(CHANGELOG, partition.number): partition for partition in partitions}
    total = Restored()
    if not targets:
        return total
    consumer = AIOKafkaConsumer(
        **client_options(settings), group_id=None, enable_auto_commit=False, auto_offset_reset="none",
        max_partition_fetch_bytes=_FETCH_BYTES, fetch_max_bytes=4 * _FETCH_BYTES,
        fetch_max_wait_ms=50,
    )  # fmt: skip
    await consumer.start()
    try:
        consumer.assign(list(targets))
        first = await consumer.beginning_offsets(list(targets))
        for tp in targets:
            consumer.seek(tp, first[tp])
        ends = await _high_watermarks(consumer, targets)
        for tp, partition in targets.items():
            if partition.changelog_next < 0:
                started = time.perf_counter()
                total.snapshot_users += await in_thread(
                    _load_snapshot, partition, settings, changelog_id, first[tp], ends[tp]
                )
                total.snapshot_seconds += time.perf_counter() - started
            partition.changelog_next = max(partition.changelog_next, first[tp])
            consumer.seek(tp, partition.changelog_next)
        started = time.perf_counter()
        total.records = await _read_changelog(consumer, targets, ends, metrics, in_thread)
        total.changelog_seconds = time.perf_counter() - started
    finally:
        await consumer.stop()
    if total.snapshot_users:
        metrics.restore_seconds.labels("snapshot").set(total.snapshot_seconds)
        metrics.restore_users.labels("snapshot").set(total.snapshot_users)
        metrics.restore_records.labels("snapshot").inc(total.snapshot_users)
    metrics.restore_seconds.labels("changelog").set(total.changelog_seconds)
    metrics.restore_users.labels("changelog").set(total.records)
    metrics.restore_records.labels("changelog").inc(total.records)
    return total


def _load_snapshot(partition: Partition, settings: Settings, changelog_id: str, first: int, end: int) -> int:
    """Load the partition's snapshot if it fits the changelog; returns its users, 0 when there is none to use."""
    path = snapshot_path(settings.state_dir, settings.app_id, partition.number)
    try:
        snapshot = read(path)
        if snapshot is None:
            return 0
        meta = snapshot.meta
        age_ms = int(time.time() * 1000) - meta.created_ms
        fits = (meta.partition, meta.source) == (partition.number, changelog_id)
        young = -CLOCK_SKEW_MS <= age_ms <= MAX_SNAPSHOT_AGE_MS
        if not fits or not first <= meta.changelog_offset <= end or not young:
            log.info(
                "The snapshot %s does not fit its changelog, is too old or from the future: "
                "reading the changelog instead",
                path,
            )
            return 0
        users = partition.store.restore(snapshot)
    except StateError as error:
        log.warning("%s Reading the changelog instead.", error)
        return 0
    partition.changelog_next = partition.snapshot_next = meta.changelog_offset
    return users


async def _high_watermarks(consumer: Any, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
    """The end of each partition as its first fetch tells it.

    Not `end_offsets`: the embedded broker answers that with the first offset of the last batch + 1.

    Raises:
        KafkaTimeoutError: a partition has no leader for 60 s.
    """
    deadline = time.monotonic() + _WATERMARK_SECONDS
    waiting = list(partitions)
    ends: dict[TopicPartition, int] = {}
    while waiting:
        ends.update({tp: end for tp in waiting if (end := consumer.highwater(tp)) is not None})
        waiting = [tp for tp in waiting if tp not in ends]
        if waiting:
            if time.monotonic() > deadline:
                message = f"no answer for {len(waiting)} partitions of {CHANGELOG} in {_WATERMARK_SECONDS:.0f} s"
                raise KafkaTimeoutError(message)
            await asyncio.sleep(0.005)
    return ends


async def _read_changelog(
    consumer: Any,
    targets: dict[TopicPartition, Partition],
    ends: dict[TopicPartition, int],
    metrics: Metrics,
    in_thread: InThread,
) -> int:
    """Read until every partition has reached the end it had at the start; nobody else writes to it meanwhile."""
    unread = {tp for tp, partition in targets.items() if partition.changelog_next < ends[tp]}
    consumer.pause(*(set(targets) - unread))
    records = 0
    loading: Awaitable[int] | None = None
    while unread:
        fetched = await fetch_batches(
            consumer._fetcher, unread, may_take=lambda: True, in_batches=lambda _topic: True, timeout_seconds=1.0,
            max_events=_CHUNK_EVENTS,
        )  # fmt: skip
        if loading is not None:  # the fetch above overlapped with loading the chunk before
            metrics.restore_bad.inc(await loading)
        chunk: list[tuple[Partition, RecordBatch]] = []
        for tp, batches in fetched.items():
            for batch in batches:
                chunk.append((targets[TopicPartition(*tp)], batch))
                records += len(batch)
                if batch.next_offset >= ends[TopicPartition(*tp)]:
                    unread.discard(TopicPartition(*tp))
        loading = asyncio.ensure_future(in_thread(_load_records, chunk))
    if loading is not None:
        metrics.restore_bad.inc(await loading)
    return records


def _load_records(chunk: list[tuple[Partition, RecordBatch]]) -> int:
    """Load fetched records; returns how many were unreadable."""
    bad = 0
    for partition, batch in chunk:
        bad += _load_batch(partition, batch)
        partition.changelog_next = batch.next_offset
    return bad


def _other_key(partition: Partition) -> StateError:
    """Users are strangers to each other under two keys: mixing them would leave the ids a key was to hide in place."""
    return StateError(
        what=f"the changelog of partition {partition.number} names users under another pseudonym key",
        why="RECSTREAM_PSEUDONYM_KEY was set, changed or removed since it was written",
        fix=f"give the key it was written with; or begin anew: stop all workers, delete the topic {CHANGELOG}, "
        "RECSTREAM_STATE_DIR and its trainer's part, `recstream topics create`, start (docs/security.md)",
    )


def _load_batch(partition: Partition, batch: RecordBatch) -> int:
    """The newest record of each user wins; a tombstone erases.

    Newest is judged by the offsets inside the record, not by its place: a worker that lost its partitions while it was
    suspended may still write one flush, which must not take users back.
    """
    store = partition.store
    deleted = {key for key, value in zip(batch.keys, batch.values, strict=True) if value is None and key is not None}
    latest = dict(zip(batch.keys, range(len(batch)), strict=True))
    candidates = [
        i for i, (key, value) in enumerate(zip(batch.keys, batch.values, strict=True))
        if value is not None and key is not None and (key not in deleted or latest[key] == i)
    ]  # fmt: skip
    if deleted:
        store.forget([key.decode() for key in deleted])
    values = [value for i in candidates if (value := batch.values[i]) is not None]
    rows, bad = decode(values, store.arena.state_size)
    if (rows["user_key"][~bad] != partition.user_key).any():
        raise _other_key(partition)
    progress = rows["offsets"].sum(axis=1)
    order = np.argsort(progress, kind="stable")
    newest = {batch.keys[candidates[i]]: i for i in order[~bad[order]].tolist()}
    users = [key.decode() for key in newest if key is not None]
    out_of_place = [key.decode() for key, i in newest.items() if key is not None and candidates[i] != latest[key]]
    rows = rows[np.fromiter(newest.values(), np.int64, len(newest))]
    ahead = store.offsets_of(users).sum(axis=1) > rows["offsets"].sum(axis=1)
    if ahead.any():
        out_of_place += [user for user, skip in zip(users, ahead.tolist(), strict=True) if skip]
        rows = rows[~ahead]
        users = [user for user, skip in zip(users, ahead.tolist(), strict=True) if not skip]
    store.load_rows(users, rows)
    if out_of_place:  # compaction would keep the older record: write the newer one again
        slots = store.slots(out_of_place)  # those who are cold come back: only resident users are written
        store.arena.dirty[slots] = True
    if bad.any():
        log.error("%d state records of partition %d are unreadable and were skipped", int(bad.sum()), partition.number)
    return int(bad.sum())
