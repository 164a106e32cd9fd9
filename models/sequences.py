"""Users' histories as flat arrays, and the training windows cut out of them.

Letters: N events, U users, W windows of a batch, T steps.

A window of T steps holds T + 1 neighbouring events of one user: the first T are inputs, the last T are targets, so
every step of a window is a training example and one pass over the windows is one pass over the events.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from models.network import UNKNOWN_ROW
from models.tables import Events

_MILLISECONDS: Final = 1000


@dataclass(frozen=True, slots=True)
class Histories:
    """Events grouped by user, each user's in time order, users end to end.

    Attributes:
        items: Item rows (N,), int32; 0 for items outside the vocabulary.
        kinds: (N,) uint8.
        gaps_seconds: (N,) int64, whole seconds since the user's previous event, 0 for the first.
        times_ms: (N,) int64.
        starts: (U + 1,) int64: user u owns events ``starts[u]`` to ``starts[u + 1]``.
    """

    items: NDArray[np.int32]
    kinds: NDArray[np.uint8]
    gaps_seconds: NDArray[np.int64]
    times_ms: NDArray[np.int64]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def users(self) -> int:
        """U."""
        return len(self.starts) - 1

    def before(self, time_ms: int) -> "Histories":
        """Every user's events before a time; users keep their numbers."""
        keep = self.times_ms < time_ms
        kept = np.concatenate(([0], np.cumsum(keep)))
        return Histories(
            self.items[keep], self.kinds[keep], self.gaps_seconds[keep], self.times_ms[keep], kept[self.starts]
        )

    def counts(self, rows: int) -> NDArray[np.int64]:
        """How often each of ``rows`` item rows occurs (rows,)."""
        return np.bincount(self.items, minlength=rows)


@dataclass(frozen=True, slots=True)
class Batch:
    """Windows side by side, zero padded on the right.

    Attributes:
        items, kinds, gaps_seconds: Inputs (W, T), int64, uint8 as int64, float32.
        targets: Rows of the next items (W, T), int64; 0 where there is nothing to learn (padding, unknown items).
    """

    items: NDArray[np.int64]
    kinds: NDArray[np.int64]
    gaps_seconds: NDArray[np.float32]
    targets: NDArray[np.int64]


def vocabulary_of(events: Events, limit: int | None = None) -> list[str]:
    """The item ids of a vocabulary: ``""`` in row 0, then items by falling count, ties by first appearance.

    Args:
        events: The events.
        limit: Most items to keep, None for all.
    """
    counted = events.items.rename("item").value_counts(sort=False, name="count")
    first = (
        pl.DataFrame({"item": events.items, "row": np.arange(len(events))}).group_by("item").agg(pl.col("row").min())
    )
    ranked = counted.join(first, on="item").sort(["count", "row"], descending=[True, False])["item"]
    return ["", *ranked.head(len(ranked) if limit is None else limit).to_list()]


def histories(events: Events, vocabulary: list[str]) -> Histories:
    """Group events by user, in time order; events of one user at one time keep their order in ``events``."""
    ordered = events.time_ordered()
    items = ordered.items.replace_strict(
        vocabulary[1:], np.arange(1, len(vocabulary)), default=UNKNOWN_ROW, return_dtype=pl.Int32
    ).to_numpy()
    names = ordered.users.unique(maintain_order=True)
    users = ordered.users.replace_strict(names, np.arange(len(names)), return_dtype=pl.Int64).to_numpy()
    by_user = np.argsort(users, kind="stable")
    times = ordered.times_ms[by_user]
    starts = np.concatenate(([0], np.cumsum(np.bincount(users, minlength=len(names))))).astype(np.int64)
    gaps = np.diff(times // _MILLISECONDS, prepend=0)
    gaps[starts[:-1]] = 0
    return Histories(items[by_user].astype(np.int32), ordered.kinds[by_user], gaps, times, starts)


def cut(starts: NDArray[np.int64], length: int, rng: np.random.Generator | None, grain: int = 1) -> NDArray[np.int64]:
    """Cut every history of two events or more into windows of at most ``length`` steps.

    Args:
        starts: (U + 1,) as in `Histories`.
        length: T, most steps of a window.
        rng: Shifts each user's cuts, so that from epoch to epoch other events open a window; None cuts from the start.
        grain: Cuts are shifted by multiples of this.

    Returns:
        First event and number of steps of each window (windows, 2).
    """
    steps = np.diff(starts) - 1  # transitions of each user
    users = np.flatnonzero(steps > 0)
    phase = np.zeros(len(users), np.int64) if rng is None else rng.integers(0, -(-length // grain), len(users)) * grain
    phase = np.where(steps[users] > length, phase, 0)  # a history that fits into one window is never cut
    number = (steps[users] + phase + length - 1) // length  # windows of each user, the first one shortened by phase
    user = np.repeat(np.arange(len(users)), number)
    nth = np.arange(len(user)) - np.repeat(np.cumsum(number) - number, number)
    begin = np.maximum(nth * length - phase[user], 0)
    end = np.minimum((nth + 1) * length - phase[user], steps[users][user])
    return np.stack((starts[:-1][users][user] + begin, end - begin), axis=1)


def grouped(windows: NDArray[np.int64], steps: int) -> list[NDArray[np.int64]]:
    """Split windows (W, 2), in their order, into runs of at most ``steps`` steps when padded to the longest."""
    bounds, widest = [0], 0
    for number, wide in enumerate(windows[:, 1].tolist()):
        widest = max(widest, wide)
        if number > bounds[-1] and widest * (number + 1 - bounds[-1]) > steps:
            bounds.append(number)
            widest = wide
    return np.split(windows, bounds[1:]) if len(windows) else []


def batch(source: Histories, windows: NDArray[np.int64], wanted: NDArray[np.bool_] | None = None) -> Batch:
    """The events of windows (W, 2), side by side; ``wanted`` (N,) tells which events are targets, None all."""
    begin, steps = windows[:, :1], windows[:, 1:]
    column = np.arange(int(steps.max()))[None, :]  # (1, T)
    real = column < steps  # (W, T)
    where = np.where(real, begin + column, begin)
    targets = source.items[where + 1] * real
    if wanted is not None:
        targets *= wanted[where + 1]
    return Batch(
        (source.items[where] * real).astype(np.int64),
        (source.kinds[where] * real).astype(np.int64),
        (source.gaps_seconds[where] * real).astype(np.float32),
        targets.astype(np.int64),
    )


def recent_items(source: Histories, events: NDArray[np.int64], number: int) -> NDArray[np.int64]:
    """Item rows of the events before each of some events of their user, newest first, 0 beyond the first.

    Args:
        source: The histories.
        events: (N,).
        number: R.

    Returns:
        (N, R).
    """
    start = source.starts[np.searchsorted(source.starts, events, side="right") - 1]
    where = events[:, None] - 1 - np.arange(number)
    return np.where(where >= start[:, None], source.items[np.maximum(where, 0)], 0).astype(np.int64)
