"""Exact top-K over dense score rows, with exclusions, in two vectorised passes and no sort.

The row is folded into L lanes (lane i holds scores i, i+L, i+2L, ...) by an element-wise maximum. The K-th largest lane
maximum is a lower bound of the K-th best score, so a second pass looks at those scores only, about K, that reach it.
1,683 scores take 0.5 us a row; `torch.topk` takes 2.6-4.3 us, and a single pass with a running threshold 2.3 us (a
random row beats the threshold about K (1 + ln(V / K)) = 61 times, which spoils nearly every block).
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.kernels import inlined, jit
from models.lanes import below, highest, lanes, lanes_of, larger, lowest_bit, no_less, put_in, spread
from models.vectors import LANES

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
    width = max(_MIN_LANES, 1 << (2 * k - 1).bit_length())
    _top_k(scores, excluded, np.empty(width, np.float32), rows, values)
    return rows, values


def fill_up(items: NDArray[np.int32], more: NDArray[np.int32]) -> NDArray[np.int32]:
    """Lists (E, K) whose free places, 0 at their ends, are taken by the first of others (E, K) that they do not hold.

    >>> fill_up(np.array([[7, 0, 0], [8, 9, 0]], np.int32), np.array([[3, 0, 0], [4, 5, 6]], np.int32)).tolist()
    [[7, 3, 0], [8, 9, 4]]
    """
    both = np.concatenate([items, more], axis=1)
    order = np.argsort(both == 0, axis=1, kind="stable")[:, : items.shape[1]]
    return np.take_along_axis(both, order, axis=1)


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


@inlined  # type: ignore[untyped-decorator]
def _insert(values: NDArray[np.float32], rows: NDArray[np.int32], e: int, value: np.float32, row: int) -> None:
    """Put a row among the best so far; rows come in ascending order, so that of equals the lower one stays in front."""
    j = values.shape[1] - 1
    if value <= values[e, j]:  # -inf is never more than what a list begins with
        return
    while j > 0 and values[e, j - 1] < value:
        values[e, j], rows[e, j] = values[e, j - 1], rows[e, j - 1]
        j -= 1
    values[e, j], rows[e, j] = value, row


@jit  # type: ignore[untyped-decorator]
def _top_k(
    scores: NDArray[np.float32],
    excluded: NDArray[np.int32],
    lane_max: NDArray[np.float32],
    rows: NDArray[np.int32],
    values: NDArray[np.float32],
) -> None:
    n_events, n_rows = scores.shape
    for e in range(n_events):
        score = scores[e]
        score[0] = _NEG_INF
        for x in range(excluded.shape[1]):
            score[excluded[e, x]] = _NEG_INF
        _fold(scores, e, lane_max)
        floor = _floor(lane_max, rows.shape[1])
        for start in range(0, n_rows - n_rows % LANES, LANES):
            bits = no_less(lanes(scores, e, start), floor)
            while bits:
                _insert(values, rows, e, scores[e, start + lowest_bit(bits)], start + lowest_bit(bits))
                bits &= bits - np.int32(1)
        for i in range(n_rows - n_rows % LANES, n_rows):
            if scores[e, i] >= floor:
                _insert(values, rows, e, scores[e, i], i)
