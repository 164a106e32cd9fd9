"""Counting baselines that learn from every event at once, exact, in file order.

Every event is ranked among the items seen so far, nothing excluded, then learnt: rank = 1 + better + ties / 2, `inf`
for an item's first event ever. These rank all items, so they cost time in the size of the catalogue; the stream's own
memory (`models.transitions`) does not.

Letters: N events, V items.
References: Shani, Heckerman, Brafman, "An MDP-based recommender system", JMLR 2005 (skipping transitions).
"""

from typing import Final, NamedTuple

import numba as nb
import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.log import Log

WINDOWS: Final = (200, 500, 1_000, 2_000, 5_000, 10_000, 50_000, 0)  # newest events counted; 0 counts all
BACK_OFF_WINDOW: Final = 5_000  # events of the popularity that breaks ties and fills up
BACK_OFF: Final = 1e-3  # weight of that popularity's share: below any transition
OWN_ITEMS: Final = 50
_jit = nb.njit(cache=True, nogil=True, error_model="numpy")


def popularity(log: Log, windows: tuple[int, ...] = WINDOWS) -> dict[int, NDArray[np.float64]]:
    """Ranks (N,) by how often an item occurred among the newest events, for each window; 0 counts all events."""
    return {window: _popularity(log.items, log.seen, _width(log), window) for window in windows}


def markov(log: Log) -> NDArray[np.float64]:
    """Ranks (N,) of a first-order Markov chain: what followed the user's last item, popularity as back-off."""
    return skip_markov(log, learnt=1, read=1)


def skip_markov(log: Log, learnt: int = 10, read: int = 5) -> NDArray[np.float64]:
    """Ranks (N,) of a skip-Markov chain with popularity as back-off.

    An event adds 1/d to "the user's d-th last item is followed by it" for d up to `learnt`; the score of an item sums
    1/d times those counts over the user's last `read` items.
    """
    users = int(log.users.max(initial=-1)) + 1
    rows = _rows(_width(log), len(log) * learnt)
    return _skip_markov(log.users, log.items, log.seen, users, learnt, read, rows)


def own_recent(log: Log) -> NDArray[np.float64]:
    """Ranks (N,) by recency in the user's own last 50 items, newest first, then by popularity."""
    users = int(log.users.max(initial=-1)) + 1
    return _own_recent(log.users, log.items, log.seen, users, _width(log))


def _width(log: Log) -> int:
    return int(log.items.max(initial=-1)) + 1


@_jit  # type: ignore[untyped-decorator]
def _rank(scores: NDArray[np.float64], seen: int, item: int) -> float:
    wanted = scores[item]
    better, ties = 0, 0
    for i in range(seen):
        better += scores[i] > wanted
        ties += scores[i] == wanted
    return 1.0 + better + 0.5 * (ties - 1)


@_jit  # type: ignore[untyped-decorator]
def _popularity(items: NDArray[np.int32], seen: NDArray[np.int64], width: int, window: int) -> NDArray[np.float64]:
    counts = np.zeros(width)
    ranks = np.full(len(items), np.inf)
    for e in range(len(items)):
        if items[e] < seen[e]:
            ranks[e] = _rank(counts, seen[e], items[e])
        counts[items[e]] += 1
        if 0 < window <= e:
            counts[items[e - window]] -= 1
    return ranks


class _Rows(NamedTuple):
    """Sparse rows of successors, each in one piece: reading a row is what takes the time."""

    keys: NDArray[np.int64]  # open addressing: (before << 32 | after) + 1, 0 = free
    places: NDArray[np.int32]  # of a key: where in its row the pair is
    start: NDArray[np.int64]  # (V,) of a row in the pool
    used: NDArray[np.int32]  # (V,)
    room: NDArray[np.int32]  # (V,)
    items: NDArray[np.int32]  # the pool
    weights: NDArray[np.float32]
    end: NDArray[np.int64]  # (1,) of the pool's used part


def _rows(width: int, most_pairs: int) -> _Rows:
    places = 1 << max((2 * most_pairs).bit_length(), 4)  # under half full, whatever the log
    pool = 4 * most_pairs + 8  # rows that double leave at most three times their size behind and free
    return _Rows(
        np.zeros(places, np.int64), np.empty(places, np.int32), np.zeros(width, np.int64), np.zeros(width, np.int32),
        np.zeros(width, np.int32), np.empty(pool, np.int32), np.empty(pool, np.float32), np.zeros(1, np.int64),
    )  # fmt: skip


@_jit  # type: ignore[untyped-decorator]
def _add(rows: _Rows, before: int, after: int, weight: float) -> None:
    """Count that `after` followed `before`."""
    key = ((np.int64(before) << 32) | np.int64(after)) + 1
    mask = len(rows.keys) - 1
    at = np.int64((np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(20)) & mask
    while rows.keys[at] and rows.keys[at] != key:
        at = (at + 1) & mask
    if not rows.keys[at]:
        used = rows.used[before]
        if used == rows.room[before]:  # move to the pool's end with twice the room
            start, end = rows.start[before], rows.end[0]
            rows.items[end : end + used] = rows.items[start : start + used]
            rows.weights[end : end + used] = rows.weights[start : start + used]
            rows.start[before], rows.room[before] = end, max(2 * used, 1)
            rows.end[0] = end + rows.room[before]
        rows.keys[at], rows.places[at] = key, used
        rows.items[rows.start[before] + used] = after
        rows.weights[rows.start[before] + used] = 0
        rows.used[before] = used + 1
    rows.weights[rows.start[before] + rows.places[at]] += np.float32(weight)


@_jit  # type: ignore[untyped-decorator]
def _skip_markov(
    users: NDArray[np.int32],
    items: NDArray[np.int32],
    seen: NDArray[np.int64],
    n_users: int,
    learnt: int,
    read: int,
    rows: _Rows,
) -> NDArray[np.float64]:
    width = len(rows.used)
    history = np.full((n_users, learnt), -1, np.int32)  # newest first
    popular = np.zeros(width)
    scores = np.zeros(width)
    ranks = np.full(len(items), np.inf)
    for e in range(len(items)):
        user, item = users[e], items[e]
        if item < seen[e]:
            share = BACK_OFF / max(min(e, BACK_OFF_WINDOW), 1)
            for i in range(seen[e]):
                scores[i] = share * popular[i]
            for d in range(read):
                before = history[user, d]
                if before >= 0:
                    start, per_step = rows.start[before], 1.0 / (d + 1)
                    for k in range(start, start + rows.used[before]):
                        scores[rows.items[k]] += per_step * rows.weights[k]
            ranks[e] = _rank(scores, seen[e], item)
        for d in range(learnt):
            if history[user, d] >= 0:
                _add(rows, history[user, d], item, 1.0 / (d + 1))
        for d in range(learnt - 1, 0, -1):
            history[user, d] = history[user, d - 1]
        history[user, 0] = item
        popular[item] += 1
        if e >= BACK_OFF_WINDOW:
            popular[items[e - BACK_OFF_WINDOW]] -= 1
    return ranks


@_jit  # type: ignore[untyped-decorator]
def _own_recent(
    users: NDArray[np.int32], items: NDArray[np.int32], seen: NDArray[np.int64], n_users: int, width: int
) -> NDArray[np.float64]:
    history = np.full((n_users, OWN_ITEMS), -1, np.int32)  # newest first, each item once
    popular = np.zeros(width)
    scores = np.zeros(width)
    ranks = np.full(len(items), np.inf)
    for e in range(len(items)):
        user, item = users[e], items[e]
        if item < seen[e]:
            for i in range(seen[e]):
                scores[i] = popular[i]
            for d in range(OWN_ITEMS):
                if history[user, d] >= 0:
                    scores[history[user, d]] = 1e12 - d
            ranks[e] = _rank(scores, seen[e], item)
        last = OWN_ITEMS - 1
        for d in range(OWN_ITEMS):
            if history[user, d] == item:
                last = d
                break
        for d in range(last, 0, -1):
            history[user, d] = history[user, d - 1]
        history[user, 0] = item
        popular[item] += 1
        if e >= BACK_OFF_WINDOW:
            popular[items[e - BACK_OFF_WINDOW]] -= 1
    return ranks
