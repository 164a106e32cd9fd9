"""Popularity of items under several exponential decays, learnt from every event at once.

Each event adds one to its item; all other items fade. Instead of touching every item at every event, the weight of one
event grows: an event at position n adds ``2 ** (n / half_life)``, and only ratios are ever read. When that number
becomes large everything is divided by it. Since fading multiplies all items alike, only the item of the event can enter
a list of the most popular ones, so the lists are exact at every moment and cost a few nanoseconds to keep.

Letters: C items the arrays have room for, L half-lives, T length of a list of the most popular items.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.kernels import grown, jit

HALF_LIVES: Final = (100.0, 1_000.0, 10_000.0, 100_000.0)  # events: a spread of three decades, the weights are learnt
LIVES: Final = len(HALF_LIVES)
LISTED: Final = 10  # 16 listed 30 more candidates and found no more
_RESCALE_AT: Final = 1e12  # leaves float32 26 decades above its smallest number for items not seen for long
_NOTHING: Final = -1e30  # log of no weight at all: finite, so that differences stay numbers
_FORGOTTEN: Final = np.float32(1e-30)
# Events counted in one step: what their weight grows by, 2^10, and `_RESCALE_AT` fit a float32.
_AT_ONCE: Final = 1024.0


class PopularityArrays(NamedTuple):
    """What the kernels see."""

    rows: NDArray[np.float32]  # (C, 2 L) weights in units that grow with time, then their logarithms: read together
    scale: NDArray[np.float64]  # (L,) weight of one event now
    mass: NDArray[np.float64]  # (L,) decayed number of events
    decay: NDArray[np.float64]  # (L,) per event
    listed: NDArray[np.uint8]  # (C,) bit l: the item stands in list l
    top: NDArray[np.int32]  # (L, T) most popular items, unordered, 0 = empty
    least: NDArray[np.float32]  # (L,) no item in the list weighs less: weights only grow


@jit  # type: ignore[untyped-decorator]
def note(arrays: PopularityArrays, item: np.int32, times: float) -> None:
    """Count ``times`` events of one item."""
    for life in range(arrays.scale.shape[0]):
        decay = arrays.decay[life] if times == 1.0 else arrays.decay[life] ** times
        arrays.scale[life] /= decay
        arrays.mass[life] = arrays.mass[life] * decay + times
        arrays.rows[item, life] += np.float32(times * arrays.scale[life])
        if arrays.scale[life] > _RESCALE_AT:
            _rescale(arrays, life)
        arrays.rows[item, LIVES + life] = np.float32(np.log(arrays.rows[item, life]))
        if not (arrays.listed[item] >> life) & 1 and arrays.rows[item, life] > arrays.least[life]:
            _enter(arrays, life, item)


@jit  # type: ignore[untyped-decorator]
def _enter(arrays: PopularityArrays, life: int, item: np.int32) -> None:
    """Put the item into the list in place of the weakest, if it is stronger."""
    top = arrays.top[life]
    weakest, least = 0, np.float32(np.inf)
    for place in range(top.shape[0]):
        weight = arrays.rows[top[place], life]  # item 0 weighs nothing: empty places are the weakest
        if weight < least:
            weakest, least = place, weight
    arrays.least[life] = least
    if arrays.rows[item, life] > least:
        arrays.listed[top[weakest]] &= ~np.uint8(1 << life)
        top[weakest] = item
        arrays.listed[item] |= np.uint8(1 << life)


@jit  # type: ignore[untyped-decorator]
def _rescale(arrays: PopularityArrays, life: int) -> None:
    factor = np.float32(1.0 / arrays.scale[life])
    shift = np.float32(np.log(arrays.scale[life]))
    for item in range(arrays.rows.shape[0]):
        weight = arrays.rows[item, life] * factor
        if weight > _FORGOTTEN:
            arrays.rows[item, life] = weight
            arrays.rows[item, LIVES + life] -= shift
        else:
            arrays.rows[item, life] = 0
            arrays.rows[item, LIVES + life] = _NOTHING
    arrays.scale[life] = 1.0
    arrays.least[life] = 0


@jit  # type: ignore[untyped-decorator]
def _note_many(arrays: PopularityArrays, items: NDArray[np.int32], times: NDArray[np.float32]) -> None:
    for i in range(items.shape[0]):
        if items[i] > 0:
            left = float(times[i])
            while left > _AT_ONCE:
                note(arrays, items[i], _AT_ONCE)
                left -= _AT_ONCE
            note(arrays, items[i], left)


class Popularity:
    """Decayed event counts of items, by item number, at several half-lives.

    Example:
        >>> popularity = Popularity()
        >>> popularity.learn(np.array([3, 1, 3], np.int32))
        >>> popularity.shares(np.array([3, 1, 2], np.int32), 1_000.0).round(2).tolist()
        [0.67, 0.33, 0.0]
    """

    def __init__(self, capacity: int = 1024) -> None:
        self.arrays = PopularityArrays(
            rows=_blank(capacity),
            scale=np.ones(LIVES),
            mass=np.zeros(LIVES),
            decay=0.5 ** (1.0 / np.array(HALF_LIVES)),
            listed=np.zeros(capacity, np.uint8),
            top=np.zeros((LIVES, LISTED), np.int32),
            least=np.zeros(LIVES, np.float32),
        )

    def reserve(self, capacity: int) -> None:
        """Make room for item numbers below ``capacity``."""
        arrays = self.arrays
        if capacity > len(arrays.rows):
            rows = _blank(capacity)
            rows[: len(arrays.rows)] = arrays.rows
            self.arrays = arrays._replace(rows=rows, listed=grown(arrays.listed, capacity))

    def learn(self, items: NDArray[np.int32], times: NDArray[np.float32] | None = None) -> None:
        """Count events of items (N,) in order, each ``times`` (N,) often (once when None); item 0 is skipped."""
        if not len(items):
            return
        if int(items.max()) >= len(self.arrays.rows):
            self.reserve(1 << int(items.max()).bit_length())
        _note_many(self.arrays, items, np.ones(len(items), np.float32) if times is None else times)

    def shares(self, items: NDArray[np.int32], half_life: float) -> NDArray[np.float64]:
        """Share of the decayed events that were of each item (N,), for one of the half-lives."""
        life = HALF_LIVES.index(half_life)
        arrays = self.arrays
        whole = max(arrays.scale[life] * arrays.mass[life], 1e-300)
        shares: NDArray[np.float64] = arrays.rows[items, life].astype(np.float64) / whole
        return shares

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """Everything learnt, as arrays to store."""
        return {name: value.copy() for name, value in self.arrays._asdict().items()}

    def load_arrays(self, stored: dict[str, NDArray[np.generic]]) -> None:
        """Continue from what `to_arrays` gave."""
        self.arrays = PopularityArrays(**{name: stored[name].copy() for name in PopularityArrays._fields})  # type: ignore[arg-type]


def _blank(capacity: int) -> NDArray[np.float32]:
    rows = np.zeros((capacity, 2 * LIVES), np.float32)
    rows[:, LIVES:] = _NOTHING
    return rows
