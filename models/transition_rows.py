"""The rows of the transition memory (`models.transitions`), and the kernels that learn into them and merge.

The W slots of a row are a hot zone of the 32 strongest, sorted, which is what gets read when recommending, and an
unsorted cold rest where newcomers gather evidence. A newcomer takes the place of the weakest of a few cold slots under
a moving hand, a cold slot that outgrows the last hot one moves up. A row whose total passes a limit is halved: counts
stay bounded and old habits fade.

Letters: C items the arrays have room for, W row width, N (from, to) pairs, P places of the pair table, E events,
X length of a history.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.kernels import LINE, inlined, jit, prefetch
from models.lanes import equal_in, lowest_bit
from models.transition_log import REACH_BACK, note_transition, one_in, pair_place
from models.vectors import LANES

HOT: Final = 32  # slots read per row when recommending: 64 or 128 gained under 0.002 hit rate at twice the time
REACH: Final = 6  # distances learnt forwards: 10 ranked no better on any data set tried
PAIR_WIDTH: Final = 8
_HAND: Final = 8  # cold slots compared when one must go
_RICH: Final = np.float32(300.0)  # total from which far distances are sampled: 100 lost 1.5% of the hits, 300 none
_ROW_LIMIT: Final = np.float32(1_000.0)  # 400 to 2,000 do equally well, 100 forgets too fast
_PAIR_LIMIT: Final = np.float32(64.0)
_BACK_STRENGTH: Final = np.float32(0.5)

# columns of `counts` and, as sums of all that was ever added, of `totals`
NEXT, SKIP, BACK = 0, 1, 2
ALL_NEXT, ALL_SKIP, ALL_BACK = 0, 1, 2


class TransitionArrays(NamedTuple):
    """What the kernels see."""

    items: NDArray[np.int32]  # (C, W) successors
    strength: NDArray[np.float32]  # (C, W) skip + back / 2: decides who is hot and who goes
    counts: NDArray[np.float32]  # (C, W, 3) next, skip, back
    totals: NDArray[np.float32]  # (C, 3) sums of the counts ever added
    used: NDArray[np.int32]  # (C,) slots in use
    hand: NDArray[np.int32]  # (C,) where the next victim is looked for
    pair_tag: NDArray[np.uint32]  # (P,) which pair holds the place
    pair_items: NDArray[np.int32]  # (P, 8)
    pair_counts: NDArray[np.float32]  # (P, 8)
    pair_total: NDArray[np.float32]  # (P,)
    draws: NDArray[np.uint32]  # (1,) how often it was drawn whether to learn a far distance
    log: NDArray[np.int32]  # (L, 3) from, to, distance (negative: counts as 1): what was learnt since the last export
    logged: NDArray[np.int64]  # (2,) entries in the log, entries dropped because it was full


@inlined  # type: ignore[untyped-decorator]
def find(items: NDArray[np.int32], row: int, used: int, item: np.int32) -> int:
    """The slot that holds the item, or -1. The row's width is a multiple of 16 and unused slots hold 0."""
    for base in range(0, used, LANES):
        hits = equal_in(items, row, base, item)
        if hits:
            return base + lowest_bit(hits)
    return -1


@inlined  # type: ignore[untyped-decorator]
def _swap(
    items: NDArray[np.int32], strength: NDArray[np.float32], counts: NDArray[np.float32], row: int, a: int, b: int
) -> None:
    items[row, a], items[row, b] = items[row, b], items[row, a]
    strength[row, a], strength[row, b] = strength[row, b], strength[row, a]
    for c in range(3):
        counts[row, a, c], counts[row, b, c] = counts[row, b, c], counts[row, a, c]


@inlined  # type: ignore[untyped-decorator]
def _slot(
    items: NDArray[np.int32],
    strength: NDArray[np.float32],
    counts: NDArray[np.float32],
    used: NDArray[np.int32],
    hand: NDArray[np.int32],
    row: int,
    item: np.int32,
) -> int:
    """The item's slot in a row, taken from the weakest under the hand when the item is new and the row full."""
    slot = find(items, row, used[row], item)
    if slot >= 0:
        return slot
    width = items.shape[1]
    if used[row] < width:
        slot = used[row]
        used[row] += 1
    elif width <= HOT:
        slot = width - 1
    else:
        start = HOT + hand[row] % (width - HOT)
        hand[row] = (hand[row] + _HAND) % (width - HOT)
        slot = start
        for s in range(start, start + _HAND):
            if strength[row, s] < strength[row, slot]:
                slot = s
    items[row, slot] = item
    strength[row, slot] = 0
    for c in range(3):
        counts[row, slot, c] = 0
    return slot


@inlined  # type: ignore[untyped-decorator]
def _settle(
    items: NDArray[np.int32], strength: NDArray[np.float32], counts: NDArray[np.float32], row: int, slot: int
) -> None:
    """Move a slot that grew to its place: up from the cold zone, then up within the sorted hot zone."""
    if slot >= HOT:
        if strength[row, slot] < strength[row, HOT - 1]:
            return
        _swap(items, strength, counts, row, slot, HOT - 1)
        slot = HOT - 1
    while slot > 0 and strength[row, slot - 1] < strength[row, slot]:
        _swap(items, strength, counts, row, slot - 1, slot)
        slot -= 1


@jit  # type: ignore[untyped-decorator]
def _halve(
    strength: NDArray[np.float32], counts: NDArray[np.float32], totals: NDArray[np.float32], row: int, used: int
) -> None:
    half = np.float32(0.5)
    for s in range(used):
        strength[row, s] *= half
        for c in range(3):
            counts[row, s, c] *= half
    for c in range(3):
        totals[row, c] *= half


@inlined  # type: ignore[untyped-decorator]
def forwards(t: TransitionArrays, row: int, item: np.int32, skip: np.float32, adjacent: np.float32) -> None:
    """``row`` was followed by ``item``: ``skip`` of weight, ``adjacent`` times directly."""
    items, strength, counts, totals = t.items, t.strength, t.counts, t.totals
    slot = _slot(items, strength, counts, t.used, t.hand, row, item)
    strength[row, slot] += skip
    counts[row, slot, SKIP] += skip
    totals[row, ALL_SKIP] += skip
    if adjacent > 0:
        counts[row, slot, NEXT] += adjacent
        totals[row, ALL_NEXT] += adjacent
    _settle(items, strength, counts, row, slot)
    while totals[row, ALL_SKIP] > _ROW_LIMIT:  # more than once behind what another worker learnt in a busy second
        _halve(strength, counts, totals, row, t.used[row])


@inlined  # type: ignore[untyped-decorator]
def backwards(t: TransitionArrays, row: int, item: np.int32, weight: np.float32) -> None:
    """``row`` followed ``item``: evidence that someone at ``row`` may want ``item``."""
    items, strength, counts, totals = t.items, t.strength, t.counts, t.totals
    slot = _slot(items, strength, counts, t.used, t.hand, row, item)
    strength[row, slot] += _BACK_STRENGTH * weight
    counts[row, slot, BACK] += weight
    totals[row, ALL_BACK] += weight
    _settle(items, strength, counts, row, slot)
    while totals[row, ALL_BACK] > _ROW_LIMIT:
        _halve(strength, counts, totals, row, t.used[row])


@jit  # type: ignore[untyped-decorator]
def learn_pair(t: TransitionArrays, before: np.int32, last: np.int32, item: np.int32) -> None:
    """The pair (before, last) was followed by ``item``. A place in use is worn down by other pairs, then taken."""
    place, tag = pair_place(t.pair_tag.shape[0], before, last)
    if t.pair_tag[place] != tag:
        t.pair_total[place] *= np.float32(0.5)
        if t.pair_total[place] >= 1:
            return
        t.pair_tag[place] = tag
        t.pair_items[place] = 0
        t.pair_counts[place] = 0
        t.pair_total[place] = 0
    row, counts = t.pair_items[place], t.pair_counts[place]
    slot = PAIR_WIDTH - 1
    for s in range(PAIR_WIDTH):
        if row[s] == item or row[s] == 0:
            slot = s
            break
    if row[slot] != item:
        row[slot] = item
        counts[slot] = 0
    counts[slot] += 1
    t.pair_total[place] += 1
    while slot > 0 and counts[slot - 1] <= counts[slot]:
        row[slot - 1], row[slot] = row[slot], row[slot - 1]
        counts[slot - 1], counts[slot] = counts[slot], counts[slot - 1]
        slot -= 1
    if t.pair_total[place] > _PAIR_LIMIT:
        counts *= np.float32(0.5)
        t.pair_total[place] *= np.float32(0.5)


@inlined  # type: ignore[untyped-decorator]
def _expect_row(t: TransitionArrays, row: np.int32) -> None:
    for byte in range(0, 4 * t.used[row], LINE):
        prefetch(t.items, row, byte)
    hot = min(HOT, t.used[row])
    for byte in range(0, 4 * hot, LINE):
        prefetch(t.strength, row, byte)
    for byte in range(0, 12 * hot, LINE):
        prefetch(t.counts, row, byte)


@inlined  # type: ignore[untyped-decorator]
def _expect_pair(t: TransitionArrays, before: np.int32, last: np.int32) -> None:
    place, _ = pair_place(t.pair_tag.shape[0], before, last)
    prefetch(t.pair_tag, place, 0)
    prefetch(t.pair_total, place, 0)
    prefetch(t.pair_items, place, 0)
    prefetch(t.pair_counts, place, 0)


@jit  # type: ignore[untyped-decorator]
def expect_event(t: TransitionArrays, histories: NDArray[np.int32], e: int, length: int, item: np.int32) -> None:
    """Fetch the rows and pairs that learning event ``e``, and recommending after it, will touch.

    They are spread over megabytes that a model's scores push out of the nearer caches.
    """
    if length >= 1:
        _expect_pair(t, histories[e, 0], item)
    if length >= 2:
        _expect_pair(t, histories[e, 1], histories[e, 0])
    _expect_row(t, item)
    for d in range(min(length, REACH)):
        _expect_row(t, histories[e, d])


@jit  # type: ignore[untyped-decorator]
def learn_event(t: TransitionArrays, histories: NDArray[np.int32], e: int, length: int, item: np.int32) -> None:
    """Learn that ``item`` came after history ``e`` of (E, X), newest first, of which ``length`` are there."""
    for d in range(1, min(max(length, 1), REACH) + 1):
        before = histories[e, d - 1] if length > 0 else np.int32(0)
        if before > 0 or length == 0:
            _learn_one(t, before, item, d)
    if length >= 2 and histories[e, 0] > 0 and histories[e, 1] > 0:
        learn_pair(t, histories[e, 1], histories[e, 0], item)


@inlined  # type: ignore[untyped-decorator]
def _weight(t: TransitionArrays, total: np.float32, distance: int) -> np.float32:
    """1 / distance; in a rich row 1 for one event in ``distance`` instead: the same on average, for less work."""
    if distance == 1 or total < _RICH:
        return np.float32(1.0) / np.float32(distance)
    return np.float32(one_in(t.draws, distance))


@inlined  # type: ignore[untyped-decorator]
def _learn_one(t: TransitionArrays, before: np.int32, item: np.int32, distance: int) -> None:
    weight = _weight(t, t.totals[before, ALL_SKIP], distance)
    if weight > 0:
        forwards(t, before, item, weight, np.float32(1.0 if distance == 1 else 0.0))
    if before > 0 and distance <= REACH_BACK:
        weight = _weight(t, t.totals[item, ALL_BACK], distance)
        if weight > 0:
            backwards(t, item, before, weight)
    note_transition(t.log, t.logged, t.draws, before, item, distance)


@jit  # type: ignore[untyped-decorator]
def learn_many(
    t: TransitionArrays, histories: NDArray[np.int32], lengths: NDArray[np.int32], items: NDArray[np.int32]
) -> None:
    """Learn events in order: histories (E, X), lengths (E,), items (E,), of which 0 is skipped."""
    for e in range(items.shape[0]):
        if items[e] > 0:
            learn_event(t, histories, e, int(lengths[e]), items[e])


@jit  # type: ignore[untyped-decorator]
def merge_pairs(
    t: TransitionArrays, before: NDArray[np.int32], after: NDArray[np.int32], weights: NDArray[np.float32]
) -> None:
    """Add pairs (N,) that another process learnt, with their weights (N, 3): skip, adjacent, back."""
    for i in range(before.shape[0]):
        if after[i] <= 0:
            continue
        forwards(t, before[i], after[i], weights[i, 0], weights[i, 1])
        if before[i] > 0 and weights[i, 2] > 0:
            backwards(t, after[i], before[i], weights[i, 2])
