"""What each expert says about each candidate, as one row of features per expert.

Nearly all of them are logarithms of smoothed probabilities, so that a weighted sum is a weighted product of experts.
Sums over the transition memory and the user's history are gathered by `models.candidates`; here they become features.

Letters: C items the arrays have room for, N candidates, F features, X length of a history, V rows of a model.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from models.gathers import columns_of, picked
from models.kernels import inlined, jit, padded
from models.lanes import (
    lanes,
    lanes_of,
    larger,
    log_lanes,
    positive,
    put,
    put_in,
    reciprocal,
    smaller,
    spread,
    sum_of,
)
from models.popularity import HALF_LIVES, LIVES
from models.transition_rows import ALL_NEXT
from models.vectors import LANES

FEATURES: Final = (
    "mixture", "next", "skip_5", "skip_10", "pair", "popular_100", "popular_1k", "popular_10k", "popular_100k",
    "back_5", "two_hops", "agreement", "own", "own_nearness", "own_log_count", "own_successor", "known_next", "is_last",
    "neural", "not_in_model",
)  # fmt: skip
(
    MIXTURE, F_NEXT, F_SKIP5, F_SKIP10, F_PAIR, F_POPULAR, _P1, _P2, _P3,
    F_BACK5, F_HOPS, F_AGREE, F_OWN, F_NEAR, F_COUNT, F_OWN_NEXT, F_KNOWN_NEXT, F_LAST,
    F_NEURAL, F_NO_ROW,
) = range(len(FEATURES))  # fmt: skip
# What is summed up per candidate, one row each. Names in 5 weigh the last items by 1/d, names in 10 all alike.
A_NEXT, A_SKIP5, A_SKIP10, A_AGE, A_COUNT, A_PAIR, A_OWN_NEXT, A_BACK5, A_HOPS, A_AGREE = range(10)
ACCUMULATORS: Final = 10
SMOOTHING: Final = np.float32(20.0)  # events of popularity mixed into a row: 2 to 20 do equally well
NEAR: Final = 5
_SHIFT: Final = np.float32(8.0)  # centres logarithms of probabilities near 0; cancels in the softmax
_FLOORS: Final = (0.01 / np.array(HALF_LIVES)).astype(np.float32)  # a share of popularity counts as at least so much
_LOG_FLOORS: Final = np.log(_FLOORS) + _SHIFT


@jit  # type: ignore[untyped-decorator]
def popularity_features(
    f: NDArray[np.float32],  # (F, N) out
    popular: NDArray[np.float32],  # (N,) out: mean share of all events
    items: NDArray[np.int32],  # (N,)
    popularity: NDArray[np.float32],  # (C, 2 L) weights and their logarithms
    scale: NDArray[np.float64],  # (L,)
    mass: NDArray[np.float64],  # (L,)
    n: int,
) -> None:
    """Popularity under each half-life. Columns past N hold finite leftovers, here and below, and are never chosen."""
    whole_0, whole_1 = max(scale[0] * mass[0], 1e-30), max(scale[1] * mass[1], 1e-30)
    whole_2, whole_3 = max(scale[2] * mass[2], 1e-30), max(scale[3] * mass[3], 1e-30)
    log_0, log_1, log_2, log_3 = np.log(whole_0), np.log(whole_1), np.log(whole_2), np.log(whole_3)
    for k in range(0, padded(n), LANES):
        w0, w1, w2, w3, l0, l1, l2, l3 = columns_of(popularity, items, k)
        share = _share(w0, whole_0, 0) + _share(w1, whole_1, 1) + _share(w2, whole_2, 2) + _share(w3, whole_3, 3)
        put_in(popular, k, np.float32(1.0 / LIVES) * share)
        put(f, F_POPULAR, k, _log_share(l0, log_0, 0))
        put(f, F_POPULAR + 1, k, _log_share(l1, log_1, 1))
        put(f, F_POPULAR + 2, k, _log_share(l2, log_2, 2))
        put(f, F_POPULAR + 3, k, _log_share(l3, log_3, 3))


@inlined  # type: ignore[untyped-decorator]
def _share(weights: Any, whole: float, life: int) -> Any:
    return smaller(larger(np.float32(1.0 / whole) * weights, spread(_FLOORS[life])), spread(1.0))


@inlined  # type: ignore[untyped-decorator]
def _log_share(logs: Any, log_whole: float, life: int) -> Any:
    return larger(logs - np.float32(log_whole - _SHIFT), spread(_LOG_FLOORS[life]))


@jit  # type: ignore[untyped-decorator]
def memory_features(
    f: NDArray[np.float32],  # (F, N) out
    sums: NDArray[np.float32],  # (10, N)
    popular: NDArray[np.float32],  # (N,)
    totals: NDArray[np.float32],  # (C, 3) of `Transitions`
    last: int,  # the user's last item
    n: int,
    length: int,  # of the history
    rows: int,  # of the memory that were read
    pair_total: np.float32,
) -> None:
    """What followed the user's last items, backed off to popularity."""
    back_off_next = SMOOTHING / (totals[last, ALL_NEXT] + SMOOTHING)
    distances = np.float32(0.0)
    for d in range(min(max(length, 1), NEAR)):
        distances += np.float32(1.0) / np.float32(d + 1)
    per_distance = np.float32(1.0) / distances
    per_row = np.float32(1.0) / np.float32(max(1, rows))
    per_pair = np.float32(1.0) / (pair_total + np.float32(1.0))
    shift = spread(_SHIFT)
    for k in range(0, padded(n), LANES):
        share = lanes_of(popular, k)
        faint = np.float32(0.05) * share
        followed = lanes(sums, A_NEXT, k)
        after_last = followed + back_off_next * share
        after_five = lanes(sums, A_SKIP5, k) * per_distance + faint
        after_ten = lanes(sums, A_SKIP10, k) * per_row + faint
        after_pair = (lanes(sums, A_PAIR, k) + after_last) * per_pair
        mixture = np.float32(0.3) * (after_last + after_five) + np.float32(0.2) * after_pair
        put(f, MIXTURE, k, log_lanes(mixture + np.float32(0.1) * after_ten) + shift)
        put(f, F_NEXT, k, log_lanes(after_last) + shift)
        put(f, F_SKIP5, k, log_lanes(after_five) + shift)
        put(f, F_SKIP10, k, log_lanes(after_ten) + shift)
        put(f, F_PAIR, k, log_lanes(after_pair) + shift)
        put(f, F_BACK5, k, log_lanes(lanes(sums, A_BACK5, k) * per_distance + faint) + shift)
        put(f, F_HOPS, k, log_lanes(lanes(sums, A_HOPS, k) + faint) + shift)
        put(f, F_KNOWN_NEXT, k, positive(followed))
        put(f, F_AGREE, k, lanes(sums, A_AGREE, k))


@jit  # type: ignore[untyped-decorator]
def own_features(f: NDArray[np.float32], sums: NDArray[np.float32], n: int) -> None:
    """How the user met a candidate before: all 0 where they have not."""
    one = spread(1.0)
    for k in range(0, padded(n), LANES):
        age = lanes(sums, A_AGE, k)
        own, nearness = positive(age), reciprocal(larger(age, one))
        put(f, F_OWN, k, own)
        put(f, F_NEAR, k, own * nearness)
        put(f, F_COUNT, k, own * log_lanes(larger(lanes(sums, A_COUNT, k), one)))
        put(f, F_OWN_NEXT, k, own * log_lanes(one + lanes(sums, A_OWN_NEXT, k)))
        put(f, F_LAST, k, own * positive(nearness - np.float32(0.75)))  # 1 for the last item, at most 1/2 for others


@jit  # type: ignore[untyped-decorator]
def neural_features(
    f: NDArray[np.float32],
    items: NDArray[np.int32],
    n: int,
    scores: NDArray[np.float32],  # (E, V), or (0, 0) without a model
    e: int,
    row_of: NDArray[np.int32],  # (C,) item number -> row, 0 = none
) -> None:
    """Scores less their mean over the candidates (a constant cancels in the softmax); unknown items get the mean."""
    m = padded(n)
    if e >= scores.shape[0]:
        for k in range(m):
            f[F_NEURAL, k] = 0
            f[F_NO_ROW, k] = 0
        return
    total, known = spread(0.0), spread(0.0)
    for k in range(0, m, LANES):
        found, there = picked(scores, e, row_of, items, k)
        put(f, F_NEURAL, k, found)
        put(f, F_NO_ROW, k, there)
    for k in range(n, m):  # what is left of earlier candidates
        f[F_NEURAL, k] = 0
        f[F_NO_ROW, k] = 0
    for k in range(0, m, LANES):
        total += lanes(f, F_NEURAL, k)
        known += lanes(f, F_NO_ROW, k)
    mean = sum_of(total) / max(sum_of(known), np.float32(1.0))
    for k in range(0, m, LANES):
        there = lanes(f, F_NO_ROW, k)
        put(f, F_NEURAL, k, lanes(f, F_NEURAL, k) - mean * there)
        put(f, F_NO_ROW, k, np.float32(1.0) - there)
