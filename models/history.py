"""Event order made visible: apply events to the users' histories one by one and note what each one saw.

The arena's arrays are changed in place; a batch may hold any number of events of one user. Letters: E events of the
batch, C slots of the arena, K recommendations kept, R = 50 entries of a user's ring.
"""

from typing import Final

import numba as nb
import numpy as np
from numpy.typing import NDArray

from state.arena import Arena

EXCLUDE_NONE: Final = 0
EXCLUDE_PURCHASED: Final = 1
EXCLUDE_SEEN: Final = 2
_PURCHASE: Final = 2
_MAX_SECONDS: Final = 0xFFFFFFFF
_jit = nb.njit(cache=True, nogil=True, error_model="numpy")


def append_events(
    arena: Arena,
    slots: NDArray[np.int32],
    items: NDArray[np.int32],
    kinds: NDArray[np.uint8],
    times_ms: NDArray[np.int64],
    offsets: NDArray[np.int64],
    touched_ms: NDArray[np.int64],
    exclude: int,
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int32]]:
    """Append events to their users' rings, counters and offsets, in order.

    Args:
        arena: the users' state, changed in place and marked dirty.
        slots: (E,) the events' users.
        items: (E,) item numbers.
        kinds: (E,)
        times_ms: (E,)
        offsets: (E,)
        touched_ms: (E,)
        exclude: `EXCLUDE_*`: which items of the user's history the lists made for each event must leave out.

    Returns:
        gaps: (E,) whole seconds since the user's previous event, 0 for the first.
        repeats: (E,) the item was in the user's history already.
        excluded: (E, R) item numbers to leave out after this event, 0 = no entry.
    """
    n = len(slots)
    gaps = np.zeros(n, np.int64)
    repeats = np.zeros(n, np.bool_)
    excluded = np.zeros((n, arena.items.shape[1] if exclude else 0), np.int32)
    _append(
        slots, items, kinds, times_ms, offsets, touched_ms, exclude,
        arena.items, arena.times, arena.kinds, arena.count, arena.kind_counts, arena.last_ms, arena.touched_ms,
        arena.offsets, gaps, repeats, excluded,
    )  # fmt: skip
    arena.dirty[slots] = True
    return gaps, repeats, excluded


def rank_in_last(
    arena: Arena,
    slots: NDArray[np.int32],
    items: NDArray[np.int32],
    recommended: NDArray[np.int32],
    listed: NDArray[np.bool_],
    model: int,
) -> tuple[NDArray[np.int32], NDArray[np.uint32]]:
    """Where each event's item stood in the list its user was shown last (prequential: tested before it is learnt).

    Args:
        arena: its `recs` and `recs_model` are read and then replaced by this batch's lists.
        slots: (E,)
        items: (E,) item numbers of the events.
        recommended: (E, K) lists made after each event; only those with `listed` count.
        listed: (E,) whether a list was made after this event.
        model: fingerprint of the version that made them.

    Returns:
        ranks: (E,) 1 = first; 0 = not in the list; -1 = the user had no list yet.
        models: (E,) fingerprint of the version that made the list.
    """
    ranks = np.empty(len(slots), np.int32)
    models = np.empty(len(slots), np.uint32)
    _rank(slots, items, recommended, listed, np.uint32(model), arena.recs, arena.recs_model, ranks, models)
    return ranks, models


@_jit  # type: ignore[untyped-decorator]
def _append(
    slots: NDArray[np.int32],
    items: NDArray[np.int32],
    kinds: NDArray[np.uint8],
    times_ms: NDArray[np.int64],
    offsets: NDArray[np.int64],
    touched_ms: NDArray[np.int64],
    exclude: int,
    ring_items: NDArray[np.int32],
    ring_times: NDArray[np.uint32],
    ring_kinds: NDArray[np.uint8],
    count: NDArray[np.uint32],
    kind_counts: NDArray[np.uint32],
    last_ms: NDArray[np.int64],
    last_touched_ms: NDArray[np.int64],
    last_offsets: NDArray[np.int64],
    gaps: NDArray[np.int64],
    repeats: NDArray[np.bool_],
    excluded: NDArray[np.int32],
) -> None:
    size = ring_items.shape[1]
    for e in range(slots.shape[0]):
        s = slots[e]
        time_ms = min(max(times_ms[e], 0), 1000 * _MAX_SECONDS)
        seconds = time_ms // 1000
        if count[s] > 0:
            gaps[e] = max(seconds - last_ms[s] // 1000, 0)
        filled = min(np.int64(count[s]), size)
        for i in range(filled):
            if ring_items[s, i] == items[e]:
                repeats[e] = True
        at = np.int64(count[s]) % size
        ring_items[s, at] = items[e]
        ring_times[s, at] = seconds
        ring_kinds[s, at] = kinds[e]
        count[s] += np.uint32(1)
        kind_counts[s, kinds[e]] += np.uint32(1)
        last_ms[s] = time_ms
        last_touched_ms[s] = touched_ms[e]
        last_offsets[s, kinds[e]] = offsets[e]
        if exclude == EXCLUDE_NONE:
            continue
        filled = min(np.int64(count[s]), size)
        for i in range(filled):
            if exclude == EXCLUDE_SEEN or ring_kinds[s, i] == _PURCHASE:
                excluded[e, i] = ring_items[s, i]


@_jit  # type: ignore[untyped-decorator]
def _rank(
    slots: NDArray[np.int32],
    items: NDArray[np.int32],
    recommended: NDArray[np.int32],
    listed: NDArray[np.bool_],
    model: np.uint32,
    last: NDArray[np.int32],
    last_model: NDArray[np.uint32],
    ranks: NDArray[np.int32],
    models: NDArray[np.uint32],
) -> None:
    k = last.shape[1]
    for e in range(slots.shape[0]):
        s = slots[e]
        models[e] = last_model[s]
        rank = -1 if last[s, 0] == 0 else 0
        for j in range(k):
            if last[s, j] == items[e]:
                rank = j + 1
                break
        ranks[e] = rank
        if listed[e]:
            last[s] = recommended[e]
            last_model[s] = model
