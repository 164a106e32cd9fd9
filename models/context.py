"""What each event's user had done before it, events earlier in the same batch included, newest first.

Letters: E events, R = 50 entries of a user's ring.
"""

from collections.abc import Sequence

import numba as nb
import numpy as np
from numpy.typing import NDArray

from models.batches import Histories
from models.history import Part
from state.record import RING


def histories_before(
    parts: Sequence[Part],
    items: NDArray[np.int32],
    kinds: NDArray[np.uint8],
    seconds: NDArray[np.int64],
    scratch: NDArray[np.int32],
) -> tuple[Histories, NDArray[np.int32]]:
    """Histories as they stand right before each event of a batch that is not applied yet.

    Args:
        parts: whose rings they are, and which events (E in all).
        items: (E,) item numbers.
        kinds: (E,)
        seconds: (E,) event times.
        scratch: zeros, one for each slot that may occur; zeros again afterwards.

    Returns:
        The histories, and for each event the user's event before it in this batch, -1 for none (E,).
    """
    n = len(items)
    histories = Histories(
        np.zeros((n, RING), np.int32), np.zeros((n, RING), np.uint8), np.zeros((n, 2), np.int64), np.zeros(n, np.int32)
    )
    previous = np.empty(n, np.int32)
    for part in parts:
        arena, at = part.arena, part.at
        _collect(
            part.slots, at.start, items[at], kinds[at], seconds[at], arena.items, arena.kinds, arena.times, arena.count,
            scratch, histories.items[at], histories.kinds[at], histories.seconds[at], histories.lengths[at],
            previous[at],
        )  # fmt: skip
    return histories, previous


@nb.njit(cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _collect(
    slots: NDArray[np.int32],
    start: int,  # what `previous` counts from
    items: NDArray[np.int32],
    kinds: NDArray[np.uint8],
    seconds: NDArray[np.int64],
    ring_items: NDArray[np.int32],
    ring_kinds: NDArray[np.uint8],
    ring_times: NDArray[np.uint32],
    count: NDArray[np.uint32],
    scratch: NDArray[np.int32],
    out_items: NDArray[np.int32],
    out_kinds: NDArray[np.uint8],
    out_seconds: NDArray[np.int64],
    lengths: NDArray[np.int32],
    previous: NDArray[np.int32],
) -> None:
    size = ring_items.shape[1]
    for e in range(slots.shape[0]):
        s = slots[e]
        before = scratch[s] - 1
        previous[e] = before
        scratch[s] = e + 1
        n = 0
        while before >= 0 and n < size:
            out_items[e, n] = items[before]
            out_kinds[e, n] = kinds[before]
            if n < 2:
                out_seconds[e, n] = seconds[before]
            before = previous[before]
            n += 1
        applied = np.int64(count[s])
        stored = min(applied, size)
        for i in range(min(stored, size - n)):
            at = (applied - 1 - i) % size
            out_items[e, n] = ring_items[s, at]
            out_kinds[e, n] = ring_kinds[s, at]
            if n < 2:
                out_seconds[e, n] = ring_times[s, at]
            n += 1
        lengths[e] = n
    for e in range(slots.shape[0]):
        scratch[slots[e]] = 0
        if previous[e] >= 0:
            previous[e] += start
