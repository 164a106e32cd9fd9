"""Exact top-K over dense score rows, with exclusions, in two vectorised passes and no sort.

The row is folded into L lanes (lane i holds scores i, i+L, i+2L, ...) by an element-wise maximum. The K-th largest lane
maximum is a lower bound of the K-th best score, so only the lanes that reach it, about K of them, are read again. 1,683
scores take 0.7 us a row; `torch.topk` takes 2.6-4.3 us, and a single pass with a running threshold 2.3 us (a random row
beats the threshold about K (1 + ln(V / K)) = 61 times, which spoils nearly every block).
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.kernels import jit
from models.lanes import LANES, below, highest, lanes, lanes_of, larger, put_in, spread

_MIN_LANES: Final = 128
_NEG_INF: Final = np.float32(-np.inf)


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


@jit  # type: ignore[untyped-decorator]
def _fold(scores: NDArray[np.float32], e: int, lane_max: NDArray[np.float32]) -> None:
    """The maximum of every lane of a row (V,): (L,)."""
    full = scores.shape[1] // lane_max.shape[0] * lane_max.shape[0]
    for i in range(0, lane_max.shape[0], LANES):
        most = spread(_NEG_INF)
        for start in range(i, full, lane_max.shape[0]):
            most = larger(lanes(scores, e, start), most)
        put_in(lane_max, i, most)
    for i in range(full, scores.shape[1]):
        lane_max[i - full] = max(lane_max[i - full], scores[e, i])


@jit  # type: ignore[untyped-decorator]
def _floor(lane_max: NDArray[np.float32], k: int) -> np.float32:
    """The K-th largest of the values that differ, -inf when there are fewer: no more than the K-th largest."""
    floor = np.float32(np.inf)
    for _ in range(k):
        most = spread(_NEG_INF)
        for i in range(0, lane_max.shape[0], LANES):
            most = larger(below(lanes_of(lane_max, i), floor, _NEG_INF), most)
        floor = highest(most)
    return floor


@jit  # type: ignore[untyped-decorator]
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
        _fold(scores, e, lane_max)
        floor = _floor(lane_max, k)

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
