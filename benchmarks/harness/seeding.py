"""User states written straight into the changelog, as workers that had served those users would have left them."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.events import ITEMS, KIND_SHARES, Record, partitions_of, send
from benchmarks.harness.model import HIDDEN
from state.items import item_hash
from state.record import RING, empty_rows, encode
from streams.topics import CHANGELOG

CHUNK: Final = 20_000


def seed_states(
    address: str,
    users: NDArray[np.int64],
    past_events: Sequence[int] | NDArray[np.int64],
    fingerprint: int,
    partitions: int,
) -> int:
    """Write one state record per user.

    Args:
        address: host:port of the broker.
        users: User numbers (U,).
        past_events: How many events each user has behind them (U,).
        fingerprint: Of the model version that is said to have made the hidden vectors.
        partitions: Partitions of the changelog.

    Returns:
        Bytes of one record.
    """
    past, size = np.asarray(past_events, np.int64), 0
    for start in range(0, len(users), CHUNK):
        part = slice(start, start + CHUNK)
        values = _states(past[part], fingerprint, seed=start)
        size = len(values[0])
        placed: dict[tuple[str, int], list[Record]] = defaultdict(list)
        now_ms = int(time.time() * 1000)
        places = partitions_of(users[part], partitions).tolist()
        for user, place, value in zip(users[part].tolist(), places, values, strict=True):
            placed[CHANGELOG, place].append((b"u%d" % user, value, now_ms))
        asyncio.run(send(address, placed))
    return size


def _states(past: NDArray[np.int64], fingerprint: int, seed: int) -> list[bytes]:
    """Encoded states of users with `past` events (U,): random vectors, the last 50 items from the catalogue."""
    rng = np.random.default_rng(seed)
    n_users = len(past)
    rows = empty_rows(n_users, HIDDEN)
    hashes = np.array([item_hash(f"i{number}") for number in range(1, ITEMS + 1)], np.uint64)
    now = int(time.time())
    kinds = rng.choice(len(KIND_SHARES), (n_users, RING), p=KIND_SHARES)
    filled = np.arange(RING) < past[:, None]  # (U, 50)
    rows["model"] = fingerprint
    rows["count"] = past
    rows["kind_counts"] = np.stack([(filled & (kinds == kind)).sum(axis=1) for kind in range(len(KIND_SHARES))], axis=1)
    rows["kind_counts"][:, 0] += (past - filled.sum(axis=1)).astype(np.uint32)
    rows["last_ms"] = rows["touched_ms"] = 1000 * (now - 3_600)
    rows["hidden"] = rng.uniform(-1, 1, (n_users, HIDDEN))
    rows["items"] = np.where(filled, hashes[rng.integers(0, ITEMS, (n_users, RING))], 0)
    rows["times"] = np.where(filled, now - 3_600 - rng.integers(0, 10**6, (n_users, RING)), 0)
    rows["kinds"] = np.where(filled, kinds, 0)
    return encode(rows)
