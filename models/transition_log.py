"""What a worker learnt since its last export, for the others: a log of transitions, added up when it is exported.

The log bounds what a second may cost. Its first eighth takes every transition; past that, as with more than 5,000
events between two exports, far transitions are drawn. It then holds those of 99,000 events instead of 44,000.

Letters: L entries of the log.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.kernels import inlined, jit

REACH_BACK: Final = 5  # distances learnt backwards as well
_LOG_WHOLE: Final = 8  # 1 / share of the log that takes every transition


@inlined  # type: ignore[untyped-decorator]
def pair_place(places: int, before: np.int32, last: np.int32) -> tuple[np.int64, np.uint32]:
    """Where the pair (before, last) is counted, and the tag that says the place is its own (splitmix64's mixer)."""
    h = (np.uint64(before) << np.uint64(32)) | np.uint64(last)
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    h ^= h >> np.uint64(31)
    place = np.int64(h & np.uint64(places - 1))
    return place, np.uint32(h >> np.uint64(32)) | np.uint32(1)


@inlined  # type: ignore[untyped-decorator]
def one_in(draws: NDArray[np.uint32], number: int) -> np.bool_:
    """True once in ``number`` draws. The draws are a Weyl sequence, more even than random ones."""
    draws[0] += np.uint32(0x9E3779B1)
    return np.uint64(draws[0]) * np.uint64(number) < np.uint64(1 << 32)


@inlined  # type: ignore[untyped-decorator]
def note_transition(
    log: NDArray[np.int32],
    logged: NDArray[np.int64],
    draws: NDArray[np.uint32],
    before: np.int32,
    item: np.int32,
    distance: int,
) -> None:
    """Note a transition for the next export; of far ones of a busy second one in ``distance``, counted as 1."""
    place, size = logged[0], log.shape[0]
    if size > 0 and (distance == 1 or place < size // _LOG_WHOLE or one_in(draws, distance)):
        if place < size:
            log[place, 0], log[place, 1] = before, item
            log[place, 2] = distance if distance == 1 or place < size // _LOG_WHOLE else -distance
            logged[0] += 1
        else:
            logged[1] += 1


@jit  # type: ignore[untyped-decorator]
def add_up(
    log: NDArray[np.int32],
    logged: int,
    places: NDArray[np.int32],  # (power of two > logged,) hash table of pair numbers, -1 = free
    before: NDArray[np.int32],  # (logged,) out
    after: NDArray[np.int32],  # (logged,) out
    weights: NDArray[np.float32],  # (logged, 3) out, zeros
) -> int:
    """Each pair of the log once, with its weights; returns how many. Sorting the log takes ten times as long."""
    pairs = 0
    for i in range(logged):
        place, _ = pair_place(places.shape[0], log[i, 0], log[i, 1])
        pair = places[place]
        while pair >= 0 and not (before[pair] == log[i, 0] and after[pair] == log[i, 1]):
            place = (place + 1) & (places.shape[0] - 1)
            pair = places[place]
        if pair < 0:
            pair = pairs
            places[place], before[pair], after[pair] = pair, log[i, 0], log[i, 1]
            pairs += 1
        distance = abs(log[i, 2])
        share = np.float32(1.0) / np.float32(max(log[i, 2], 1))
        weights[pair, 0] += share
        weights[pair, 1] += np.float32(distance == 1)
        weights[pair, 2] += share if distance <= REACH_BACK else np.float32(0.0)
    return pairs
