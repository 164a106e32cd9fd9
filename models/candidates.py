"""Candidates for a user's next item: who they are, and what the memories say about each.

Candidates are what the transition memory knows about the user's last items, what those lead to in two hops, the user's
own recent items, what followed the last pair of items, the most popular items under every half-life and, when there is
a model, the items its scores put first. `models.features` turns the sums gathered here into features.

Letters: C items the arrays have room for, E events, N candidates, F features, X length of a history, V rows of a model,
T neural candidates.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.features import (
    A_AGE,
    A_AGREE,
    A_BACK5,
    A_COUNT,
    A_HOPS,
    A_NEXT,
    A_OWN_NEXT,
    A_PAIR,
    A_SKIP5,
    A_SKIP10,
    ACCUMULATORS,
    FEATURES,
    NEAR,
    SMOOTHING,
    memory_features,
    neural_features,
    own_features,
    popularity_features,
)
from models.kernels import fast_log, inlined, jit, padded, prefetch
from models.mixing import SELECTOR_SIZES, SELECTORS, UNITS
from models.popularity import PopularityArrays
from models.transition_log import pair_place
from models.transition_rows import (
    ALL_BACK,
    ALL_NEXT,
    ALL_SKIP,
    BACK,
    HOT,
    NEXT,
    PAIR_WIDTH,
    SKIP,
    TransitionArrays,
)

MAX_CANDIDATES: Final = 1024  # never reached: 40 popular, 144 next, 100 in two hops, 50 own, 8 of a pair, T neural
_COLUMNS: Final = 1040  # 65 cache lines: rows of a power of two would all fall into the same sets of the L1 cache
_ROWS_READ: Final = 6  # the user's last items whose successors are candidates
_ROWS_WHOLE: Final = 3  # of earlier ones only the strongest successors are read
_FEW: Final = 16
_HOPS: Final = 10  # strongest successors followed, and successors of each read
_OWN_ITEMS: Final = 50
_AGREEMENT: Final = np.float32(100.0)  # 1 / probability from which one of the last items speaks for a candidate
_AGREEMENT_SCALE: Final = np.float32(0.3)  # brings the feature to the spread of the others


class Workspace(NamedTuple):
    """Memory the kernels work in; holds nothing between events."""

    place: NDArray[np.int32]  # (C,) an item's column, -1 when it is no candidate
    items: NDArray[np.int32]  # (N,) candidates
    sums: NDArray[np.float32]  # (10, N)
    features: NDArray[np.float32]  # (F, N)
    scores: NDArray[np.float32]  # (N,)
    units: NDArray[np.float32]  # (U, N)
    chosen: NDArray[np.int32]  # (6,) rows of the weight table in use
    mixed: NDArray[np.float32]  # (F,) their sum
    gradient: NDArray[np.float32]  # (U + 1, F + 1) of the network's weights and of the sum


def workspace(capacity: int) -> Workspace:
    """A workspace for item numbers below ``capacity``."""
    return Workspace(
        place=np.full(capacity, -1, np.int32),
        items=np.zeros(MAX_CANDIDATES, np.int32),
        sums=np.zeros((ACCUMULATORS, _COLUMNS), np.float32),
        features=np.zeros((len(FEATURES), _COLUMNS), np.float32),
        scores=np.zeros(_COLUMNS, np.float32),
        units=np.zeros((UNITS, _COLUMNS), np.float32),
        chosen=np.zeros(SELECTORS, np.int32),
        mixed=np.zeros(len(FEATURES), np.float32),
        gradient=np.zeros((UNITS + 1, len(FEATURES) + 1), np.float32),
    )


@inlined  # type: ignore[untyped-decorator]
def _column(place: NDArray[np.int32], items: NDArray[np.int32], n: int, item: np.int32) -> int:
    """The item's column, N for a new one: the caller counts. No branch: whether an item is new cannot be predicted."""
    row = np.uintp(item)  # an unsigned index: numba would look for negative ones otherwise
    k = int(place[row])
    k = n if k < 0 else k
    place[row] = k
    items[np.uintp(k)] = item
    return k


# The loops below name single arrays and index them fully: a row view or a tuple of arrays handed to a function costs
# reference counting, which at hundreds of slots an event is most of the time.
@jit  # type: ignore[untyped-decorator]
def _from_row(
    place: NDArray[np.int32],
    items: NDArray[np.int32],
    sums: NDArray[np.float32],
    successors: NDArray[np.int32],  # (C, W)
    counts: NDArray[np.float32],  # (C, W, 3)
    totals: NDArray[np.float32],  # (C, 3)
    row: int,
    used: int,
    d: int,  # how many events ago, 0 for the last
    n: int,
) -> int:
    """Successors of one of the last items."""
    r = np.uintp(row)
    near = np.float32(1.0) / np.float32(d + 1)
    near_only = near if d < NEAR else np.float32(0.0)
    per_skip = np.float32(1.0) / (totals[r, ALL_SKIP] + SMOOTHING)
    per_back = np.float32(1.0) / (totals[r, ALL_BACK] + SMOOTHING)
    per_next = np.float32(1.0) / (totals[r, ALL_NEXT] + SMOOTHING)
    voice = _AGREEMENT_SCALE * near
    for s in range(np.uintp(used)):
        column = _column(place, items, n, successors[r, s])
        n = max(n, column + 1)
        k = np.uintp(column)
        skip, back = counts[r, s, SKIP] * per_skip, counts[r, s, BACK] * per_back
        sums[A_SKIP10, k] += skip
        sums[A_SKIP5, k] += near_only * skip
        sums[A_BACK5, k] += near * back
        sums[A_AGREE, k] += voice * fast_log(np.float32(1.0) + _AGREEMENT * (skip + back))
        if d == 0:
            sums[A_NEXT, k] = counts[r, s, NEXT] * per_next
    return n


@jit  # type: ignore[untyped-decorator]
def _from_two_hops(
    place: NDArray[np.int32],
    items: NDArray[np.int32],
    sums: NDArray[np.float32],
    successors: NDArray[np.int32],
    strength: NDArray[np.float32],
    totals: NDArray[np.float32],
    used: NDArray[np.int32],
    row: int,
    n: int,
) -> int:
    """What the strongest successors of the last item lead to."""
    r = np.uintp(row)
    per_first = np.float32(1.0) / (totals[r, ALL_SKIP] + totals[r, ALL_BACK] + SMOOTHING)
    for s in range(np.uintp(min(_HOPS, used[r]))):
        via = np.uintp(successors[r, s])
        share = strength[r, s] * per_first / (totals[via, ALL_SKIP] + totals[via, ALL_BACK] + SMOOTHING)
        for s2 in range(np.uintp(min(_HOPS, used[via]))):
            k = _column(place, items, n, successors[via, s2])
            n = max(n, k + 1)
            sums[A_HOPS, np.uintp(k)] += share * strength[via, s2]
    return n


@jit  # type: ignore[untyped-decorator]
def _from_history(
    place: NDArray[np.int32],
    items: NDArray[np.int32],
    sums: NDArray[np.float32],
    histories: NDArray[np.int32],
    e: int,
    length: int,
    n: int,
) -> tuple[int, int]:
    """The user's own items, and what came after the last one when it came before.

    Returns N, and how many of the user's events were of an item that came again later.
    """
    last, repeats = histories[e, 0], 0
    for d in range(length):
        item = histories[e, d]
        if item == 0:
            continue
        column = _column(place, items, n, item)
        n = max(n, column + 1)
        k = np.uintp(column)
        again = sums[A_COUNT, k] > 0
        repeats += int(again)
        sums[A_AGE, k] = sums[A_AGE, k] if again else np.float32(d + 1)
        sums[A_COUNT, k] += 1
        if d > 0 and item == last and histories[e, d - 1] > 0:
            after = place[histories[e, d - 1]]
            if after >= 0:
                sums[A_OWN_NEXT, after] += np.float32(1.0) / (1 + sums[A_OWN_NEXT, after])
    return n, repeats


@jit  # type: ignore[untyped-decorator]
def _from_pair(
    place: NDArray[np.int32],
    items: NDArray[np.int32],
    sums: NDArray[np.float32],
    pair_items: NDArray[np.int32],
    pair_counts: NDArray[np.float32],
    pair: int,
    n: int,
) -> int:
    """What followed the last two items."""
    for s in range(PAIR_WIDTH):
        if pair_items[pair, s] == 0:
            break
        k = _column(place, items, n, pair_items[pair, s])
        n = max(n, k + 1)
        sums[A_PAIR, np.uintp(k)] = pair_counts[pair, s]
    return n


@inlined  # type: ignore[untyped-decorator]
def _log2_bucket(x: np.float32, most: int) -> int:
    """Floor of log2(1 + x), at most ``most``."""
    bits = np.float32(x + np.float32(1.0)).view(np.int32)
    return min(int(bits >> np.int32(23)) - 127, most)


@inlined  # type: ignore[untyped-decorator]
def _choose(
    chosen: NDArray[np.int32], length: int, gap_seconds: float, known: float, pair_known: float, kind: int, repeats: int
) -> None:
    """Which rows of the weight table the situation calls for."""
    gap = np.float32(gap_seconds)
    chosen[0] = 0
    chosen[1] = min(length, 6)
    chosen[2] = 0 if length < 2 else 1 if gap <= 0 else min(2 + int(fast_log(np.float32(1.0) + gap) * 0.5), 10)
    chosen[3] = _log2_bucket(np.float32(known), 11)
    chosen[4] = _log2_bucket(np.float32(pair_known), 7)
    chosen[5] = min(kind, 2) * 4 + _log2_bucket(np.float32(repeats), 3)
    base = 0
    for s in range(SELECTORS):
        chosen[s] += base
        base += SELECTOR_SIZES[s]


@jit  # type: ignore[untyped-decorator]
def gather(
    w: Workspace,
    t: TransitionArrays,
    p: PopularityArrays,
    histories: NDArray[np.int32],  # (E, X) newest first
    e: int,
    length: int,
    gap_seconds: float,  # between the last two events; the gap to come is not known when recommending
    kind: int,  # of the last event
    neural: NDArray[np.float32],  # (S, V) scores, or (0, 0) without a model
    neural_top: NDArray[np.int32],  # (S, T) rows to consider on account of them
    s: int,  # which of them
    row_of: NDArray[np.int32],  # (C,) item number -> row, 0 = none
    number_of: NDArray[np.int32],  # (V,) row -> item number, 0 = none
) -> int:
    """Fill the workspace with candidates, features and the choice of weights.

    Returns:
        N, the number of candidates. `release` must follow before the next call.
    """
    place, items, sums = w.place, w.items, w.sums
    n = 0
    last = histories[e, 0] if length > 0 else np.int32(0)
    for hop in range(min(_HOPS, t.used[last])):
        prefetch(t.items, t.items[last, hop], 0)
        prefetch(t.strength, t.items[last, hop], 0)
    rows = min(length, _ROWS_READ)
    if length == 0:
        n = _from_row(place, items, sums, t.items, t.counts, t.totals, np.int32(0), min(HOT, t.used[0]), 0, n)
    for d in range(rows):
        row = histories[e, d]
        if row > 0:
            slots = min(HOT if d < _ROWS_WHOLE else _FEW, t.used[row])
            n = _from_row(place, items, sums, t.items, t.counts, t.totals, row, slots, d, n)
    own = min(length, _OWN_ITEMS)
    n, repeats = _from_history(place, items, sums, histories, e, own, n)
    pair_total = np.float32(0.0)
    if length >= 2 and last > 0 and histories[e, 1] > 0:
        pair, tag = pair_place(t.pair_tag.shape[0], histories[e, 1], last)
        if t.pair_tag[pair] == tag:
            pair_total = t.pair_total[pair]
            n = _from_pair(place, items, sums, t.pair_items, t.pair_counts, pair, n)
    if last > 0:
        n = _from_two_hops(place, items, sums, t.items, t.strength, t.totals, t.used, last, n)
    if s < neural.shape[0]:
        for i in range(neural_top.shape[1]):
            row = neural_top[s, i]
            if row > 0 and number_of[row] > 0:
                n = max(n, _column(place, items, n, number_of[row]) + 1)
    for life in range(p.top.shape[0]):  # last, since finding the K best is quicker when they stand in front
        for i in range(p.top.shape[1]):
            if p.top[life, i] > 0:
                n = max(n, _column(place, items, n, p.top[life, i]) + 1)
    _choose(w.chosen, length, gap_seconds, t.totals[last, ALL_NEXT], pair_total, kind, repeats)
    popularity_features(w.features, w.scores, items, p.rows, p.scale, p.mass, n)
    memory_features(w.features, sums, w.scores, t.totals, last, n, length, rows, pair_total)
    own_features(w.features, sums, n)
    neural_features(w.features, items, n, neural, s, row_of)
    return n


@jit  # type: ignore[untyped-decorator]
def release(place: NDArray[np.int32], items: NDArray[np.int32], sums: NDArray[np.float32], n: int) -> None:
    """Forget the candidates."""
    for k in range(n):
        place[np.uintp(items[k])] = -1
    for a in range(sums.shape[0]):
        for k in range(padded(n)):
            sums[a, k] = 0
