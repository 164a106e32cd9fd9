"""Split a batch of events into waves: the k-th event of every user, so that each wave steps distinct users at once."""

import numpy as np
from numpy.typing import NDArray


def waves(slots: NDArray[np.int32]) -> tuple[NDArray[np.int64], list[int], NDArray[np.int64]]:
    """Order the E events of a batch into waves of distinct users.

    Args:
        slots: (E,) non-negative user slot of each event, in the order the events are to be applied.

    Returns:
        order (E,), bounds and previous (E,): wave k is `order[bounds[k]:bounds[k + 1]]`, the k-th event of each user
        that has one, in the batch's order; `previous[e]` is the same user's event before e in this batch, or -1.

    >>> order, bounds, previous = waves(np.array([7, 3, 7, 7], np.int32))
    >>> [order[a:b].tolist() for a, b in zip(bounds, bounds[1:])], previous.tolist()
    ([[0, 1], [2], [3]], [-1, -1, 0, 2])
    """
    n_events = len(slots)
    position = np.arange(n_events, dtype=np.int64)
    previous = np.full(n_events, -1, np.int64)
    if n_events < 2:
        return position, [0, n_events][: n_events + 1], previous
    # Sorting (slot, position) packed in one integer is a stable sort at the speed of the vectorised unstable one.
    keys = (slots.astype(np.int64) << 32) | position
    keys.sort()
    event = keys & 0xFFFFFFFF  # (E,) grouped by user, in order within a user
    user = keys >> 32
    repeat = np.flatnonzero(user[1:] == user[:-1]) + 1
    if not repeat.size:
        return position, [0, n_events], previous
    previous[event[repeat]] = event[repeat - 1]
    first = position.copy()
    first[repeat] = 0
    np.maximum.accumulate(first, out=first)  # where the user's group starts
    rank = position - first  # the event is its user's rank-th of this batch
    keys = (rank << 32) | event
    keys.sort()
    sizes = np.bincount(rank)
    return keys & 0xFFFFFFFF, [0, *np.cumsum(sizes).tolist()], previous
