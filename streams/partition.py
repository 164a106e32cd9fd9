"""One partition number's state on this worker: its users, and how far their changelog is known."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from state.capture import Capture
from state.record import seal
from state.store import UserStore
from streams.erasures import Erased, Erasures
from streams.record_batch import Blobs, EncodedBatch, blobs, encode_batches

# A produce request carries one batch of each partition, and recommendations wait behind the request under way: eight
# batches of 900 kB held them up for 0.3 s.
_FLUSH_BATCH_BYTES: Final = 96 << 10


@dataclass(slots=True)
class Partition:
    """The users of one partition number.

    Attributes:
        number: partition number, the same on every topic.
        store: their state.
        changelog_next: changelog offset up to which `store` is known to reflect the changelog; -1 before any restore.
        snapshot_next: the same of the newest local snapshot, to write none when nothing changed.
        captured_at: when it was last captured for a snapshot, or else when it came (monotonic).
        expiring: users past their time whom the next flushes are to drop, piece by piece.
        rewrite: the next flush writes every resident user, changed or not.
        anew: users whose next record goes behind a tombstone: the offsets in it are below those of records before it,
            which a restore would take for newer.
        user_key: fingerprint of the key its users are named under (`Pseudonyms.fingerprint`), 0 without.
        erasures: requests to be forgotten that are not answered yet.
    """

    number: int
    store: UserStore
    changelog_next: int = -1
    snapshot_next: int = -1
    captured_at: float = field(default_factory=time.monotonic)
    expiring: Iterator[list[str]] | None = None
    rewrite: bool = False
    anew: set[str] = field(default_factory=set)
    user_key: int = 0
    erasures: Erasures = field(default_factory=Erasures)


@dataclass(eq=False, slots=True)
class Flushed:
    """Everything one partition's flush has to make durable.

    Attributes:
        partition: the partition.
        batches: for its changelog.
        records: states in them.
        expired: users dropped because their time is over.
        snapshot: its users once `batches` are written; None: no snapshot asked for, none needed, or dealt with.
        erased: whom that snapshot is the first one without.
        captured_ms: when this was, epoch ms.
    """

    partition: Partition
    batches: list[EncodedBatch]
    records: int
    expired: int
    snapshot: Capture | None = None
    erased: list[Erased] = field(default_factory=list)
    captured_ms: int = 0


def snapshot_path(state_dir: Path, app_id: str, partition: int) -> Path:
    """Where a partition's local snapshot lies."""
    return state_dir / app_id / f"users-{partition:05d}.snapshot"


def flush_partition(partition: Partition, now_ms: int, expire_before_ms: int | None, snapshot: bool) -> Flushed:
    """Encode every changed user's whole state (hot users once), mark them clean, and drop users past their time.

    Runs between two batches. Users that expire or asked to be forgotten leave a tombstone in the changelog; that of the
    latter stands first, for they may have come again.

    Args:
        partition: the partition.
        now_ms: create time of the records.
        expire_before_ms: begin to forget users last touched earlier: those in memory, and with this and each further
            flush up to 50,000 of the cold store are looked at, 0.1 s; None begins nothing.
        snapshot: capture the state for a local snapshot, to be written once the batches are acknowledged.
    """
    store = partition.store
    arena = store.arena
    slots = np.flatnonzero(arena.occupied()).astype(np.int32) if partition.rewrite else arena.dirty_slots()
    partition.rewrite = False
    batches = tombstones(partition.erasures.untold(), now_ms)
    if len(slots):
        rows = arena.to_rows(slots, store.index)
        rows["user_key"] = partition.user_key
        sealed = seal(rows)  # (N, record bytes)
        names = arena.users
        users = [names[slot] or "" for slot in slots.tolist()]
        if partition.anew:
            batches += _anew(partition.anew, users, sealed, now_ms)
        keys = blobs([user.encode() for user in users])
        values = Blobs(sealed.reshape(-1), np.arange(len(slots) + 1, dtype=np.int64) * sealed.shape[1])
        batches += encode_batches(keys, values, now_ms, max_bytes=_FLUSH_BATCH_BYTES)
        arena.dirty[slots] = False
    if expire_before_ms is not None and partition.expiring is None:
        partition.expiring = store.expire(expire_before_ms)
    expired: list[str] = []
    if partition.expiring is not None:
        try:
            expired = next(partition.expiring)
        except StopIteration:
            partition.expiring = None
    if expired:
        batches += tombstones(expired, now_ms)
    store.evict()
    flushed = Flushed(partition, batches, len(slots), len(expired), captured_ms=now_ms)
    if snapshot:
        partition.captured_at = now = time.monotonic()
        flushed.erased = partition.erasures.capture(now)
        if batches or partition.changelog_next != partition.snapshot_next:
            flushed.snapshot = store.capture()
    return flushed


def _anew(anew: set[str], users: list[str], sealed: NDArray[np.uint8], now_ms: int) -> list[EncodedBatch]:
    """A tombstone and the record for each of `users` that is in `anew`, which it leaves: a kill between is unlikely."""
    at = [i for i, user in enumerate(users) if user in anew]
    anew.difference_update(users)
    keys = blobs([users[i].encode() for i in at for _ in range(2)])
    values = blobs([part for i in at for part in (b"", sealed[i].tobytes())])
    return list(encode_batches(keys, values, now_ms, np.arange(2 * len(at)) % 2 == 0, _FLUSH_BATCH_BYTES))


def tombstones(users: list[str], now_ms: int) -> list[EncodedBatch]:
    """Changelog records that delete users."""
    keys = blobs([user.encode() for user in users])
    empty = Blobs(np.zeros(0, np.uint8), np.zeros(len(users) + 1, np.int64))
    return list(encode_batches(keys, empty, now_ms, np.ones(len(users), np.bool_)))
