"""Candidates for a user's next item and what each expert says about them.

Candidates are what the transition memory knows about the user's last items, what those lead to in two hops, the user's
own recent items, what followed the last pair of items, the most popular items under every half-life and, when there is
a model, the items its scores put first. Each gets a column of features, nearly all of them logarithms of smoothed
probabilities, so that a weighted sum of them is a weighted product of experts.

Letters: C items the arrays have room for, N candidates, F features, X length of a history, V rows of a model.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.popularity import HALF_LIVES, LIVES, PopularityArrays, jit
from models.transitions import (
    ALL_BACK,
    ALL_NEXT,
    ALL_RECENT,
    ALL_SKIP,
    BACK,
    HOT,
    NEXT,
    PAIR_WIDTH,
    RECENT,
    SCALE,
    SKIP,
    TransitionArrays,
    pair_place,
)

FEATURES: Final = (
    "mixture", "next", "skip_5", "skip_10", "pair", "popular_100", "popular_1k", "popular_10k", "popular_100k",
    "recent_next", "back", "back_5", "two_hops", "own", "own_nearness", "own_log_age", "own_log_count",
    "own_successor", "known_next", "known_pair", "is_last", "is_second_last", "neural", "not_in_model",
)  # fmt: skip
(
    MIXTURE, F_NEXT, F_SKIP5, F_SKIP10, F_PAIR, F_POPULAR, _P1, _P2, _P3,
    F_RECENT, F_BACK, F_BACK5, F_HOPS, F_OWN, F_NEAR, F_AGE, F_COUNT,
    F_OWN_NEXT, F_KNOWN_NEXT, F_KNOWN_PAIR, F_LAST, F_SECOND, F_NEURAL, F_NO_ROW,
) = range(len(FEATURES))  # fmt: skip
SELECTORS: Final = 6  # weights are the sum of six vectors, each chosen by a trait of the situation
SELECTOR_SIZES: Final = (1, 7, 11, 12, 8, 12)
MAX_CANDIDATES: Final = 1024  # never reached: 64 popular, 192 next, 100 in two hops, 50 own, 8 of a pair, T neural
_COLUMNS: Final = 1040  # 65 cache lines: rows of a power of two would all fall into the same sets of the L1 cache
_ROWS_READ: Final = 6  # the user's last items whose successors are candidates
_NEAR: Final = 5
_HOPS: Final = 10  # strongest successors followed, and successors of each read
_SMOOTHING: Final = np.float32(20.0)  # events of popularity mixed into a row: 2 to 20 do equally well
_SHIFT: Final = np.float32(8.0)  # centres logarithms of probabilities near 0; cancels in the softmax
_OWN_ITEMS: Final = 50

# accumulators, one row each
_A_NEXT, _A_SKIP5, _A_SKIP10, _A_AGE, _A_COUNT, _A_PAIR, _A_RECENT, _A_OWN_NEXT, _A_BACK, _A_BACK5, _A_HOPS = range(11)
_ACCUMULATORS: Final = 11
_FLOORS: Final = np.log(0.01 / np.array(HALF_LIVES)).astype(np.float32)


class Workspace(NamedTuple):
    """Memory the kernels work in; holds nothing between events."""

    place: NDArray[np.int32]  # (C,) an item's column, -1 when it is no candidate
    items: NDArray[np.int32]  # (N,) candidates
    sums: NDArray[np.float32]  # (11, N)
    features: NDArray[np.float32]  # (F, N)
    scores: NDArray[np.float32]  # (N,)
    weights: NDArray[np.float32]  # (F,) of the situation at hand
    gradient: NDArray[np.float32]  # (F,)
    chosen: NDArray[np.int32]  # (6,) rows of the weight table in use


def workspace(capacity: int) -> Workspace:
    """A workspace for item numbers below ``capacity``."""
    return Workspace(
        place=np.full(capacity, -1, np.int32),
        items=np.zeros(MAX_CANDIDATES, np.int32),
        sums=np.zeros((_ACCUMULATORS, _COLUMNS), np.float32),
        features=np.zeros((len(FEATURES), _COLUMNS), np.float32),
        scores=np.zeros(_COLUMNS, np.float32),
        weights=np.zeros(len(FEATURES), np.float32),
        gradient=np.zeros(len(FEATURES), np.float32),
        chosen=np.zeros(SELECTORS, np.int32),
    )


@jit  # type: ignore[untyped-decorator]
def padded(n: int) -> int:
    """Columns to compute for N candidates: whole vectors, since the remainder of a vectorised loop runs one by one."""
    return (n + 31) // 32 * 32


@jit  # type: ignore[untyped-decorator]
def fast_log(x: np.float32) -> np.float32:
    """Natural logarithm of a positive normal number within 1e-4, in a form that vectorises (Chebyshev on [1, 2))."""
    bits = np.float32(x).view(np.int32)
    exponent = np.float32((bits >> np.int32(23)) - np.int32(127))
    m = np.int32((bits & np.int32(0x7FFFFF)) | np.int32(0x3F800000)).view(np.float32)
    p = np.float32(-0.05437093) * m + np.float32(0.43393244)
    p = p * m + np.float32(-1.44059216)
    p = p * m + np.float32(2.79283652)
    p = p * m + np.float32(-1.73172644)
    return exponent * np.float32(0.6931471806) + p


@jit  # type: ignore[untyped-decorator]
def fast_exp(x: np.float32) -> np.float32:
    """Exp of a number not above 0, within 1e-5 of it, in a form that vectorises."""
    y = max(x, np.float32(-80.0)) * np.float32(1.44269504)
    whole = np.floor(y)
    f = y - whole
    p = np.float32(0.01367031) * f + np.float32(0.05174500)
    p = p * f + np.float32(0.24160436)
    p = p * f + np.float32(0.69297292)
    p = p * f + np.float32(1.00000349)
    return p * np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)).view(np.float32)


@jit  # type: ignore[untyped-decorator]
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
    counts: NDArray[np.float32],  # (C, W, 4)
    totals: NDArray[np.float32],  # (C, 5)
    row: int,
    used: int,
    d: int,  # how many events ago, 0 for the last
    n: int,
) -> int:
    """Successors of one of the last items."""
    by_distance = np.float32(1.0) / np.float32(d + 1) if d < _NEAR else np.float32(0.0)
    per_skip = np.float32(1.0) / (totals[row, ALL_SKIP] + _SMOOTHING)
    per_back = np.float32(1.0) / (totals[row, ALL_BACK] + _SMOOTHING)
    per_next = np.float32(1.0) / (totals[row, ALL_NEXT] + _SMOOTHING)
    per_recent = np.float32(1.0) / (totals[row, SCALE] * (totals[row, ALL_RECENT] + np.float32(1.0)))
    back_by_distance = np.float32(1.0) / np.float32(d + 1)
    for s in range(used):
        column = _column(place, items, n, successors[row, s])
        n = max(n, column + 1)
        k = np.uintp(column)
        skip, back = counts[row, s, SKIP] * per_skip, counts[row, s, BACK] * per_back
        sums[_A_SKIP10, k] += skip
        sums[_A_SKIP5, k] += by_distance * skip
        if d == 0:
            sums[_A_NEXT, k] = counts[row, s, NEXT] * per_next
            sums[_A_RECENT, k] = counts[row, s, RECENT] * per_recent
            sums[_A_BACK, k] = back
        else:
            sums[_A_BACK5, k] += back_by_distance * back
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
    per_first = np.float32(1.0) / (totals[row, ALL_SKIP] + totals[row, ALL_BACK] + _SMOOTHING)
    for s in range(min(_HOPS, used[row])):
        via = successors[row, s]
        share = strength[row, s] * per_first / (totals[via, ALL_SKIP] + totals[via, ALL_BACK] + _SMOOTHING)
        for s2 in range(min(_HOPS, used[via])):
            k = _column(place, items, n, successors[via, s2])
            n = max(n, k + 1)
            sums[_A_HOPS, np.uintp(k)] += share * strength[via, s2]
    return n


@jit  # type: ignore[untyped-decorator]
def _from_history(
    place: NDArray[np.int32],
    items: NDArray[np.int32],
    sums: NDArray[np.float32],
    history: NDArray[np.int32],
    length: int,
    n: int,
) -> int:
    """The user's own items, and what came after the last one when it came before."""
    last = history[0]
    for d in range(length):
        if history[d] == 0:
            continue
        k = _column(place, items, n, history[d])
        n = max(n, k + 1)
        if sums[_A_AGE, k] == 0:
            sums[_A_AGE, k] = d + 1
        sums[_A_COUNT, k] += 1
        if d > 0 and history[d] == last and history[d - 1] > 0:
            after = place[history[d - 1]]
            if after >= 0:
                sums[_A_OWN_NEXT, after] += np.float32(1.0) / (1 + sums[_A_OWN_NEXT, after])
    return n


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
        sums[_A_PAIR, k] = pair_counts[pair, s]
    return n


@jit  # type: ignore[untyped-decorator]
def _log2_bucket(x: float, most: int) -> int:
    bucket = 0
    x += 1.0
    while x >= 2.0 and bucket < most:
        x *= 0.5
        bucket += 1
    return bucket


@jit  # type: ignore[untyped-decorator]
def gather(
    w: Workspace,
    t: TransitionArrays,
    p: PopularityArrays,
    history: NDArray[np.int32],  # (X,) newest first
    length: int,
    gap_seconds: float,  # between the last two events; the gap to come is not known when recommending
    kind: int,  # of the last event
    neural: NDArray[np.float32],  # (V,) scores, or (0,) without a model
    neural_top: NDArray[np.int32],  # rows to consider on account of them
    row_of: NDArray[np.int32],  # (C,) item number -> row, 0 = none
    number_of: NDArray[np.int32],  # (V,) row -> item number, 0 = none
) -> int:
    """Fill the workspace with candidates, features and the choice of weights.

    Returns:
        N, the number of candidates. `release` must follow before the next call.
    """
    place, items, sums = w.place, w.items, w.sums
    n = 0
    last = history[0] if length > 0 else np.int32(0)
    for life in range(p.top.shape[0]):
        for i in range(p.top.shape[1]):
            if p.top[life, i] > 0:
                n = max(n, _column(place, items, n, p.top[life, i]) + 1)
    for d in range(max(1, min(length, _ROWS_READ))):
        row = history[d] if length > 0 else np.int32(0)
        if row > 0 or length == 0:
            n = _from_row(place, items, sums, t.items, t.counts, t.totals, row, min(HOT, t.used[row]), d, n)
    n = _from_history(place, items, sums, history, min(length, _OWN_ITEMS), n)
    repeats = 0
    for d in range(min(length, _OWN_ITEMS)):
        repeats += history[d] > 0 and sums[_A_AGE, place[history[d]]] != d + 1
    pair_total = np.float32(0.0)
    if length >= 2 and last > 0 and history[1] > 0:
        pair, tag = pair_place(t.pair_tag.shape[0], history[1], last)
        if t.pair_tag[pair] == tag:
            pair_total = t.pair_total[pair]
            n = _from_pair(place, items, sums, t.pair_items, t.pair_counts, pair, n)
    if last > 0:
        n = _from_two_hops(place, items, sums, t.items, t.strength, t.totals, t.used, last, n)
    for i in range(neural_top.shape[0]):
        if neural_top[i] > 0 and number_of[neural_top[i]] > 0:
            n = max(n, _column(place, items, n, number_of[neural_top[i]]) + 1)

    events = t.totals[last, ALL_NEXT]
    w.chosen[0] = 0
    w.chosen[1] = min(length, 6)
    w.chosen[2] = 0 if length < 2 else 1 if gap_seconds <= 0 else min(2 + int(np.log1p(gap_seconds) * 0.5), 10)
    w.chosen[3] = _log2_bucket(events, 11)
    w.chosen[4] = _log2_bucket(pair_total, 7)
    w.chosen[5] = min(kind, 2) * 4 + _log2_bucket(repeats, 3)
    base = 0
    for s in range(SELECTORS):
        w.chosen[s] += base
        base += SELECTOR_SIZES[s]
    _features(w.features, sums, items, w.scores, t.totals[last], p.log_weight, p.scale, p.mass, n, length, pair_total)
    if neural.shape[0] > 0:
        _neural_features(w.features, items, n, neural, row_of)
    else:
        w.features[F_NEURAL, : padded(n)] = 0
        w.features[F_NO_ROW, : padded(n)] = 0
    return n


@jit  # type: ignore[untyped-decorator]
def _features(
    f: NDArray[np.float32],
    sums: NDArray[np.float32],
    items: NDArray[np.int32],
    popular: NDArray[np.float32],  # (N,) free memory
    total: NDArray[np.float32],  # (5,) of the last item's row
    log_weight: NDArray[np.float32],
    scale: NDArray[np.float64],
    mass: NDArray[np.float64],
    n: int,
    length: int,
    pair_total: np.float32,
) -> None:
    m = padded(n)  # stale columns past N are finite and never chosen
    for k in range(m):
        item = items[k]  # one pass over the items: a second array read by item number would double the cost
        f[F_POPULAR, k] = log_weight[item, 0]
        f[F_POPULAR + 1, k] = log_weight[item, 1]
        f[F_POPULAR + 2, k] = log_weight[item, 2]
        f[F_POPULAR + 3, k] = log_weight[item, 3]
    for k in range(m):
        popular[k] = 0
    for life in range(LIVES):
        centre, floor = np.float32(np.log(max(scale[life] * mass[life], 1e-300))), _FLOORS[life]
        for k in range(m):
            f[F_POPULAR + life, k] = max(f[F_POPULAR + life, k] - centre, floor)
        for k in range(m):
            popular[k] += np.float32(0.25) * fast_exp(min(f[F_POPULAR + life, k], np.float32(0.0)))
        for k in range(m):
            f[F_POPULAR + life, k] += _SHIFT
    back_off_next = _SMOOTHING / (total[ALL_NEXT] + _SMOOTHING)
    back_off_back = _SMOOTHING / (total[ALL_BACK] + _SMOOTHING)
    distances = np.float32(0.0)
    for d in range(min(max(length, 1), _NEAR)):
        distances += np.float32(1.0) / np.float32(d + 1)
    per_distance = np.float32(1.0) / distances
    per_row = np.float32(1.0) / np.float32(max(1, min(length, _ROWS_READ)))
    per_pair = np.float32(1.0) / (pair_total + np.float32(1.0))
    faint, light = np.float32(0.05), np.float32(0.1)
    # Short loops over one or two rows: the compiler turns these into vector instructions, one long loop it does not.
    for k in range(m):
        f[F_NEXT, k] = sums[_A_NEXT, k] + back_off_next * popular[k]
    for k in range(m):
        f[F_SKIP5, k] = sums[_A_SKIP5, k] * per_distance + faint * popular[k]
    for k in range(m):
        f[F_SKIP10, k] = sums[_A_SKIP10, k] * per_row + faint * popular[k]
    for k in range(m):
        f[F_PAIR, k] = (sums[_A_PAIR, k] + f[F_NEXT, k]) * per_pair
    for k in range(m):
        f[F_RECENT, k] = sums[_A_RECENT, k] + light * popular[k]
    for k in range(m):
        f[F_BACK, k] = sums[_A_BACK, k] + back_off_back * popular[k]
    for k in range(m):
        f[F_BACK5, k] = sums[_A_BACK5, k] * per_distance + faint * popular[k]
    for k in range(m):
        f[F_HOPS, k] = sums[_A_HOPS, k] + faint * popular[k]
    for k in range(m):
        f[MIXTURE, k] = np.float32(0.3) * (f[F_NEXT, k] + f[F_SKIP5, k]) + np.float32(0.2) * f[F_PAIR, k]
    for k in range(m):
        f[MIXTURE, k] += light * (f[F_SKIP10, k] + f[F_RECENT, k])
    for row in (MIXTURE, F_NEXT, F_SKIP5, F_SKIP10, F_PAIR, F_RECENT, F_BACK, F_BACK5, F_HOPS):
        for k in range(m):
            f[row, k] = fast_log(f[row, k]) + _SHIFT
    for k in range(m):
        f[F_OWN, k] = min(sums[_A_AGE, k], np.float32(1.0))
    for k in range(m):
        f[F_NEAR, k] = f[F_OWN, k] / max(sums[_A_AGE, k], np.float32(1.0))
    for k in range(m):
        f[F_AGE, k] = fast_log(max(sums[_A_AGE, k], np.float32(1.0)))
    for k in range(m):
        f[F_COUNT, k] = fast_log(max(sums[_A_COUNT, k], np.float32(1.0)))
    for k in range(m):
        f[F_OWN_NEXT, k] = fast_log(np.float32(1.0) + sums[_A_OWN_NEXT, k])
    for k in range(m):
        f[F_KNOWN_NEXT, k] = np.float32(sums[_A_NEXT, k] > 0)
    for k in range(m):
        f[F_KNOWN_PAIR, k] = np.float32(sums[_A_PAIR, k] > 0)
    for k in range(m):
        f[F_LAST, k] = np.float32(sums[_A_AGE, k] == 1)
    for k in range(m):
        f[F_SECOND, k] = np.float32(sums[_A_AGE, k] == 2)


@jit  # type: ignore[untyped-decorator]
def _neural_features(
    f: NDArray[np.float32], items: NDArray[np.int32], n: int, neural: NDArray[np.float32], row_of: NDArray[np.int32]
) -> None:
    """Scores less their mean over the candidates (a constant cancels in the softmax); unknown items get the mean."""
    total, known = np.float32(0.0), 0
    for k in range(n):
        row = row_of[items[k]]
        if row > 0:
            f[F_NEURAL, k] = neural[row]
            f[F_NO_ROW, k] = 0
            total += neural[row]
            known += 1
        else:
            f[F_NO_ROW, k] = 1
    mean = total / np.float32(max(known, 1))
    for k in range(n):
        f[F_NEURAL, k] = np.float32(0.0) if f[F_NO_ROW, k] > 0 else f[F_NEURAL, k] - mean
    for k in range(n, padded(n)):
        f[F_NEURAL, k] = 0
        f[F_NO_ROW, k] = 0


@jit  # type: ignore[untyped-decorator]
def release(w: Workspace, n: int) -> None:
    """Forget the candidates."""
    place, items, sums = w.place, w.items, w.sums
    for k in range(n):
        place[items[k]] = -1
    for a in range(sums.shape[0]):
        for k in range(padded(n)):
            sums[a, k] = 0
