"""Event order made visible: apply events to the users' histories one by one and note what each one saw.

The arena's arrays are changed in place; a batch may hold any number of events of one user. Letters: E events of the
batch, C slots of the arena, K recommendations kept, R = 50 entries of a user's ring.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numba as nb
import numpy as np
from numpy.typing import NDArray

from state.arena import Arena, Slots
from state.record import RING

EXCLUDE_NONE: Final = 0
EXCLUDE_PURCHASED: Final = 1
EXCLUDE_SEEN: Final = 2
_PURCHASE: Final = 2
_MAX_SECONDS: Final = 0xFFFFFFFF
_jit = nb.njit(cache=True, nogil=True, error_model="numpy")


@dataclass(frozen=True, slots=True)
class Part:
    """One partition's share of a batch: events `at` are those of the users in `slots` of `arena`; never empty."""

    arena: Arena
    slots: Slots
    at: slice


@dataclass(frozen=True, slots=True)
class PopularList:
    """The list every user would be shown by popularity alone, for comparison; items nobody is shown are not in it."""

    place_of: NDArray[np.int32]  # (N,) place of an item number, 0 = best; numbers beyond N are as the last one
    length: int  # places below it are in the list
    k: int  # how many a user is shown


@dataclass(frozen=True, slots=True)
class Appended:
    """What each of E events met in its user's history."""

    gaps: NDArray[np.int64]  # (E,) whole seconds since the user's previous event, 0 for the first
    repeats: NDArray[np.bool_]  # (E,) the item was in the user's history already
    excluded: NDArray[np.int32]  # (E, R) item numbers to leave out after this event, 0 = no entry; (E, 0) for none
    popular_ranks: NDArray[np.int32]  # (E,) place of the item among the popular ones the user could be shown, 0 = none


def take_fresh(
    arena: Arena, slots: NDArray[np.int32], kinds: NDArray[np.uint8], offsets: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Positions of the events their users have not seen yet, ascending, and note their offsets as applied.

    An event is new when its offset lies beyond the last one of its topic that was applied to its user, in an earlier
    batch or earlier in this one: after a rebalance the same records may wait twice.
    """
    fresh = np.empty(len(slots), np.int64)
    return fresh[: _take_fresh(slots, kinds, offsets, arena.offsets, fresh)]


def distinct(slots: NDArray[np.int32], scratch: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Distinct slots (U,) in order of appearance, and for each event which of them is its own (E,).

    Args:
        slots: (E,)
        scratch: zeros, one for each slot that may occur; zeros again afterwards.
    """
    users, user = np.empty(len(slots), np.int32), np.empty(len(slots), np.int32)
    return users[: _distinct(slots, scratch, users, user)], user


def append_events(
    parts: Sequence[Part],
    items: NDArray[np.int32],
    kinds: NDArray[np.uint8],
    times_ms: NDArray[np.int64],
    touched_ms: NDArray[np.int64],
    exclude: int,
    popular: PopularList,
) -> Appended:
    """Append events to their users' rings and counters, in order; `take_fresh` has noted their offsets.

    Args:
        parts: the users' state, changed in place and marked dirty, and which events are theirs (E in all).
        items: (E,) item numbers.
        kinds: (E,)
        times_ms: (E,)
        touched_ms: (E,)
        exclude: `EXCLUDE_*`: which items of the user's history the lists made for each event must leave out.
        popular: the list to compare with.
    """
    n = len(items)
    done = Appended(
        gaps=np.zeros(n, np.int64),
        repeats=np.zeros(n, np.bool_),
        excluded=np.zeros((n, RING if exclude else 0), np.int32),
        popular_ranks=np.zeros(n, np.int32),
    )
    for part in parts:
        arena, at = part.arena, part.at
        _append(
            part.slots, items[at], kinds[at], times_ms[at], touched_ms[at], exclude,
            popular.place_of, popular.length, popular.k, arena.items, arena.times, arena.kinds,
            arena.count, arena.kind_counts, arena.last_ms, arena.touched_ms, arena.dirty,
            done.gaps[at], done.repeats[at], done.excluded[at], done.popular_ranks[at],
        )  # fmt: skip
    return done


def rank_in_last(
    parts: Sequence[Part],
    items: NDArray[np.int32],
    recommended: NDArray[np.int32],
    listed: NDArray[np.int64],
    model: int,
) -> tuple[NDArray[np.int32], NDArray[np.uint32]]:
    """Where each event's item stood in the list its user was shown last (prequential: tested before it is learnt).

    Args:
        parts: the `recs` and `recs_model` of their arenas are read and then replaced by this batch's lists.
        items: (E,) item numbers of the events.
        recommended: (L, K) the lists made.
        listed: (L,) the events they were made after, ascending.
        model: fingerprint of the version that made them.

    Returns:
        ranks: (E,) 1 = first; 0 = not in the list; -1 = the user had no list yet.
        models: (E,) fingerprint of the version that made the list.
    """
    ranks = np.empty(len(items), np.int32)
    models = np.empty(len(items), np.uint32)
    every = len(listed) == len(items)
    for part in parts:
        arena, at = part.arena, part.at
        made = at if every else slice(*np.searchsorted(listed, (at.start, at.stop)).tolist())
        _rank(
            part.slots, at.start, items[at], recommended[made], listed[made], np.uint32(model), arena.recs,
            arena.recs_model, ranks[at], models[at],
        )  # fmt: skip
    return ranks, models


@_jit  # type: ignore[untyped-decorator]
def _take_fresh(
    slots: NDArray[np.int32],
    kinds: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    last_offsets: NDArray[np.int64],
    fresh: NDArray[np.int64],
) -> int:
    n = 0
    for e in range(slots.shape[0]):
        if offsets[e] > last_offsets[slots[e], kinds[e]]:
            last_offsets[slots[e], kinds[e]] = offsets[e]
            fresh[n] = e
            n += 1
    return n


@_jit  # type: ignore[untyped-decorator]
def _distinct(
    slots: NDArray[np.int32], scratch: NDArray[np.int32], users: NDArray[np.int32], user: NDArray[np.int32]
) -> int:
    n = 0
    for e in range(slots.shape[0]):
        if scratch[slots[e]] == 0:
            users[n] = slots[e]
            n += 1
            scratch[slots[e]] = n
        user[e] = scratch[slots[e]] - 1
    for u in range(n):
        scratch[users[u]] = 0
    return n


@_jit  # type: ignore[untyped-decorator]
def _popular_rank(
    item: np.int32,
    ring_items: NDArray[np.int32],
    ring_kinds: NDArray[np.uint8],
    filled: int,
    exclude: int,
    place_of: NDArray[np.int32],
    k: int,
    taken: NDArray[np.bool_],
) -> int:
    """Rank of an item in the popular list once its user's excluded items are taken out."""
    last = place_of.shape[0] - 1
    place = place_of[min(item, last)]
    if place >= taken.shape[0]:
        return 0
    taken[: place + 1] = False
    if exclude != EXCLUDE_NONE:
        for i in range(filled):
            if exclude == EXCLUDE_SEEN or ring_kinds[i] == _PURCHASE:
                taken[min(place_of[min(ring_items[i], last)], taken.shape[0] - 1)] = True
    rank = 1
    for i in range(place):
        rank += not taken[i]
    return 0 if taken[place] or rank > k else rank


@_jit  # type: ignore[untyped-decorator]
def _append(
    slots: NDArray[np.int32],
    items: NDArray[np.int32],
    kinds: NDArray[np.uint8],
    times_ms: NDArray[np.int64],
    touched_ms: NDArray[np.int64],
    exclude: int,
    place_of: NDArray[np.int32],
    listed_places: int,
    k: int,
    ring_items: NDArray[np.int32],
    ring_times: NDArray[np.uint32],
    ring_kinds: NDArray[np.uint8],
    count: NDArray[np.uint32],
    kind_counts: NDArray[np.uint32],
    last_ms: NDArray[np.int64],
    last_touched_ms: NDArray[np.int64],
    dirty: NDArray[np.bool_],
    gaps: NDArray[np.int64],
    repeats: NDArray[np.bool_],
    excluded: NDArray[np.int32],
    popular_ranks: NDArray[np.int32],
) -> None:
    size = ring_items.shape[1]
    taken = np.zeros(listed_places + 1, np.bool_)  # the entry behind the list's places is for items not in it
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
        popular_ranks[e] = _popular_rank(items[e], ring_items[s], ring_kinds[s], filled, exclude, place_of, k, taken)
        at = np.int64(count[s]) % size
        ring_items[s, at] = items[e]
        ring_times[s, at] = seconds
        ring_kinds[s, at] = kinds[e]
        count[s] += np.uint32(1)
        kind_counts[s, kinds[e]] += np.uint32(1)
        last_ms[s] = time_ms
        last_touched_ms[s] = touched_ms[e]
        dirty[s] = True
        if exclude == EXCLUDE_NONE:
            continue
        filled = min(np.int64(count[s]), size)
        for i in range(filled):
            if exclude == EXCLUDE_SEEN or ring_kinds[s, i] == _PURCHASE:
                excluded[e, i] = ring_items[s, i]


@_jit  # type: ignore[untyped-decorator]
def _rank(
    slots: NDArray[np.int32],
    start: int,  # what `listed` counts from
    items: NDArray[np.int32],
    recommended: NDArray[np.int32],
    listed: NDArray[np.int64],
    model: np.uint32,
    last: NDArray[np.int32],
    last_model: NDArray[np.uint32],
    ranks: NDArray[np.int32],
    models: NDArray[np.uint32],
) -> None:
    k = last.shape[1]
    made = 0
    for e in range(slots.shape[0]):
        s = slots[e]
        models[e] = last_model[s]
        rank = -1 if last[s, 0] == 0 else 0
        for j in range(k):
            if last[s, j] == items[e]:
                rank = j + 1
                break
        ranks[e] = rank
        if made < listed.shape[0] and listed[made] == start + e:
            last[s] = recommended[made]
            last_model[s] = model
            made += 1
