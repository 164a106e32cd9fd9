"""Exact top-K over dense score rows, with exclusions, in two vectorised passes and no sort.

The row is folded into L lanes (lane i holds scores i, i+L, i+2L, ...) by an element-wise maximum, which the compiler
turns into vector instructions. The K-th largest lane maximum is a lower bound of the K-th best score, so only the
lanes that reach it, about K of them, are read again. 1,682 scores and 50 exclusions take 0.6 us a row; `torch.topk`
takes 2.6-4.3 us, and a single pass with a running threshold 2.3 us (a random row beats the threshold about
K (1 + ln(V / K)) = 61 times, which spoils nearly every block).
"""

from typing import Final

import numba as nb
import numpy as np
from numpy.typing import NDArray

_MIN_LANES: Final = 128
_NEG_INF: Final = np.float32(-np.inf)
_jit = nb.njit(cache=True, nogil=True, error_model="numpy")


def top_k(
    scores: NDArray[np.float32], excluded: NDArray[np.int32], k: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The K best rows of each score row: best first, ties to the lower row, row 0 (unknown item) never.

    Args:
        scores: (E, V); excluded entries are overwritten with -inf.
        excluded: (E, X) rows not to recommend; 0 is no entry.
        k: how many.

    Returns:
        rows (E, K) int32, 0 where fewer than K candidates are left, and their scores (E, K) float32 (-inf there).

    >>> rows, values = top_k(np.array([[9, 1, 5, 3]], np.float32), np.array([[3]], np.int32), 2)
    >>> rows.tolist(), values.tolist()
    ([[2, 1]], [[5.0, 1.0]])
    """
    rows = np.zeros((len(scores), k), np.int32)
    values = np.full((len(scores), k), _NEG_INF, np.float32)
    lanes = max(_MIN_LANES, 1 << (2 * k - 1).bit_length())
    _top_k(scores, excluded, np.empty(lanes, np.float32), rows, values)
    return rows, values


@_jit  # type: ignore[untyped-decorator]
def _fold(score: NDArray[np.float32], lane_max: NDArray[np.float32]) -> None:
    """The maximum of every lane of a row (V,): (L,)."""
    lanes = lane_max.shape[0]
    full = score.shape[0] // lanes * lanes
    lane_max[:] = _NEG_INF
    for start in range(0, full, lanes):
        block = score[start : start + lanes]
        for i in range(lanes):
            lane_max[i] = block[i] if block[i] > lane_max[i] else lane_max[i]
    for i in range(full, score.shape[0]):
        lane_max[i - full] = max(lane_max[i - full], score[i])


@_jit  # type: ignore[untyped-decorator]
def _last_of_best(values: NDArray[np.float32], best: NDArray[np.float32]) -> np.float32:
    """Put the K largest values into `best` (K,), which holds -inf, and return the smallest of them."""
    last = best.shape[0] - 1
    for value in values:
        if value > best[last]:
            j = last
            while j > 0 and best[j - 1] < value:
                best[j] = best[j - 1]
                j -= 1
            best[j] = value
    return best[last]


@_jit  # type: ignore[untyped-decorator]
def _top_k(
    scores: NDArray[np.float32],
    excluded: NDArray[np.int32],
    lane_max: NDArray[np.float32],
    rows: NDArray[np.int32],
    values: NDArray[np.float32],
) -> None:
    n_events, n_rows = scores.shape
    k = rows.shape[1]
    lanes = lane_max.shape[0]
    for e in range(n_events):
        score = scores[e]
        score[0] = _NEG_INF
        for x in range(excluded.shape[1]):
            score[excluded[e, x]] = _NEG_INF
        best = values[e]
        best_rows = rows[e]

        _fold(score, lane_max)
        floor = _last_of_best(lane_max, best)
        best[:] = _NEG_INF

        for lane in range(lanes):
            if lane_max[lane] < floor or lane_max[lane] == _NEG_INF:
                continue
            for i in range(lane, n_rows, lanes):
                value = score[i]
                if value < floor or value == _NEG_INF:
                    continue
                last = k - 1
                if value > best[last] or (value == best[last] and i < best_rows[last]):
                    j = last
                    while j > 0 and (best[j - 1] < value or (best[j - 1] == value and best_rows[j - 1] > i)):
                        best[j] = best[j - 1]
                        best_rows[j] = best_rows[j - 1]
                        j -= 1
                    best[j] = value
                    best_rows[j] = i
