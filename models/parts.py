"""A batch of several partitions, split: each partition has an arena of its own, everything else is shared."""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from models.history import Part, take_fresh
from state.events import EventBatch
from state.store import UserStore


def fresh_parts(
    stores: Sequence[UserStore], batch: EventBatch, bounds: Sequence[int], state_size: int | None
) -> tuple[NDArray[np.int64], list[Part]]:
    """Which events of a batch are new to their users, and whose they are; their offsets are noted as applied.

    Args:
        stores: the users of each partition.
        batch: E events.
        bounds: partition p has the events `bounds[p]:bounds[p + 1]`.
        state_size: width the arenas' hidden vectors must have; None leaves them.

    Returns:
        Positions (F,) of the new events, ascending, and the parts that these F events fall into.
    """
    fresh, found = [], []
    for p, store in enumerate(stores):
        start, stop = bounds[p], bounds[p + 1]
        if start == stop:
            continue
        all_of_them = stop - start == len(batch)
        slots = store.slots(batch.users if all_of_them else batch.users[start:stop])
        arena = store.arena
        if state_size is not None and arena.state_size != state_size:
            arena.resize_state(state_size)
        new = take_fresh(arena, slots, batch.kinds[start:stop], batch.offsets[start:stop])
        if len(new):
            found.append((arena, slots if len(new) == len(slots) else slots[new]))
            fresh.append(new + start if start else new)
    ends = list(accumulate((len(slots) for _, slots in found), initial=0))
    parts = [Part(arena, slots, slice(a, b)) for (arena, slots), a, b in zip(found, ends, ends[1:], strict=False)]
    if len(fresh) == 1:
        return fresh[0], parts
    return (np.concatenate(fresh) if fresh else np.zeros(0, np.int64)), parts
