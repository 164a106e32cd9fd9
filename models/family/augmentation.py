"""Varied training histories: in every epoch some are cropped, masked, reordered, inserted into or cut short.

Each operation is an edit of whole histories at once, in numpy: which event of the original stands at each place
(`Edit.origin`), and which item is seen there. Places keep the times of the original wherever they can, so a history
stays in order of time.

Letters: N events of the histories, M events after an edit, U users, V item rows.

References:
    Xie et al., "Contrastive learning for sequential recommendation" (CL4SRec), ICDE 2022 (crop, mask, reorder);
    Liu et al., "Contrastive self-supervised sequential recommendation with robust augmentation" (CoSeRec), 2021
    (insert correlated items); Tan et al., "Improved recurrent neural networks for session-based recommendations",
    DLRS 2016 (prefixes). There they make two views to be told from others; here what is learnt from.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.family.interface import Lesson
from models.network import UNKNOWN_ROW
from models.sequences import Histories
from state.errors import RecstreamError

VARIED: Final = 0.5  # share of the users varied in an epoch; the others are learnt as they are
CROPPED: Final = 0.6  # share of a history that a crop keeps: CL4SRec's eta
MASKED: Final = 0.3  # share of the events whose item is hidden: its gamma
REORDERED: Final = 0.2  # share of a history that is shuffled: its beta
INSERTED: Final = 0.2  # share of the events before which an item is put in
PREFIXES: Final = 2  # added per history
_ALIKE: Final = 5  # most correlated items an inserted one is drawn from
_PAIRS: Final = 2**21  # most pairs of neighbouring events that correlations are counted from


@dataclass(frozen=True, slots=True)
class Edit:
    """Histories after an edit.

    Attributes:
        origin: (M,) which event each is, or for an inserted one which it was put in front of.
        items: (M,) item rows.
        inserted: (M,) bool, events that no user had.
        starts: (U' + 1,) as of `Histories`; prefixes add users.
    """

    origin: NDArray[np.int64]
    items: NDArray[np.int32]
    inserted: NDArray[np.bool_]
    starts: NDArray[np.int64]


Operation = Callable[[Histories, NDArray[np.bool_], np.random.Generator, NDArray[np.int32]], Edit]


def crop(source: Histories, chosen: NDArray[np.bool_], rng: np.random.Generator, alike: NDArray[np.int32]) -> Edit:
    """Keep a run of 60% of each chosen user's events, at a random place, two events at least.

    Args:
        source: The histories.
        chosen: (U,) users that are varied.
        rng: Randomness.
        alike: (V, 5) not used.
    """
    del alike
    number = np.diff(source.starts)
    kept = np.where(chosen, np.maximum(np.ceil(CROPPED * number).astype(np.int64), np.minimum(2, number)), number)
    return _runs(source, source.starts[:-1] + rng.integers(0, number - kept + 1), kept)


def mask(source: Histories, chosen: NDArray[np.bool_], rng: np.random.Generator, alike: NDArray[np.int32]) -> Edit:
    """Hide the item of 30% of the chosen users' events, behind the unknown item."""
    del alike
    hidden = _events(source, chosen) & (rng.random(len(source)) < MASKED)
    items = np.where(hidden, np.int32(UNKNOWN_ROW), source.items)
    return Edit(np.arange(len(source)), items, np.zeros(len(source), np.bool_), source.starts)


def reorder(source: Histories, chosen: NDArray[np.bool_], rng: np.random.Generator, alike: NDArray[np.int32]) -> Edit:
    """Shuffle a run of 20% of each chosen user's events, at a random place, two events at least."""
    del alike
    number = np.diff(source.starts)
    span = np.where(chosen, np.maximum(np.ceil(REORDERED * number).astype(np.int64), np.minimum(2, number)), 0)
    begin = source.starts[:-1] + rng.integers(0, number - span + 1)
    place = np.arange(len(source))
    inside = (place >= np.repeat(begin, number)) & (place < np.repeat(begin + span, number))
    key = np.where(inside, rng.random(len(source)), 0.0)
    # Sorted by user, then by part of the history (before, inside, after the run), then at random inside it.
    part = inside + 2 * (place >= np.repeat(begin + span, number))
    origin = np.lexsort((place, key, part, np.repeat(np.arange(source.users), number)))
    return Edit(origin, source.items[origin], np.zeros(len(source), np.bool_), source.starts)


def insert(source: Histories, chosen: NDArray[np.bool_], rng: np.random.Generator, alike: NDArray[np.int32]) -> Edit:
    """Before 20% of the chosen users' events put one of the five items most correlated with that event's."""
    drawn = alike[source.items, rng.integers(0, alike.shape[1], len(source))]  # (N,)
    put = _events(source, chosen) & (rng.random(len(source)) < INSERTED) & (drawn != UNKNOWN_ROW)
    origin = np.repeat(np.arange(len(source)), 1 + put)
    inserted = np.append(origin[1:] == origin[:-1], False)[: len(origin)]  # the first of two is the new one
    items = np.where(inserted, drawn[origin], source.items[origin])
    added = np.concatenate(([0], np.cumsum(put)))
    return Edit(origin, items, inserted, source.starts + added[source.starts])


def prefix(source: Histories, chosen: NDArray[np.bool_], rng: np.random.Generator, alike: NDArray[np.int32]) -> Edit:
    """Add two beginnings of each chosen user's history, of two events at least, as histories of their own."""
    del alike
    number = np.diff(source.starts)
    long = np.flatnonzero(chosen & (number > 2))
    short = np.repeat(long, PREFIXES)
    begin = np.concatenate((source.starts[:-1], source.starts[:-1][short]))
    return _runs(source, begin, np.concatenate((number, rng.integers(2, number[short]))))


OPERATIONS: Final[Mapping[str, Operation]] = {
    "crop": crop, "mask": mask, "reorder": reorder, "insert": insert, "prefix": prefix,
}  # fmt: skip


def parse_augmentation(text: str | None) -> tuple[str, ...]:
    """Operations from ``crop,mask``; ``all`` stands for every one.

    Raises:
        RecstreamError: One is unknown.
    """
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    unknown = [name for name in names if name not in (*OPERATIONS, "all")]
    if unknown:
        what = f"Training histories cannot be varied by {unknown[0]!r}"
        raise RecstreamError(what, f"there are {', '.join(OPERATIONS)}", "Choose among them: --augment crop,reorder")
    return tuple(OPERATIONS) if "all" in names else tuple(name for name in OPERATIONS if name in names)


def correlated(source: Histories, items: int) -> NDArray[np.int32]:
    """The up to five items (V, 5) that most often stand beside each item, over the root of how often they occur.

    Rows are filled by repeating what there is; an item without neighbours has none (0).
    """
    place = np.arange(1, len(source))
    pairs = place[~np.isin(place, source.starts)]
    pairs = pairs[-_PAIRS:]
    one, other = source.items[pairs - 1].astype(np.int64), source.items[pairs].astype(np.int64)
    real = (one != other) & (one != UNKNOWN_ROW) & (other != UNKNOWN_ROW)
    one, other = one[real], other[real]
    keys, times = np.unique(np.concatenate((one * items + other, other * items + one)), return_counts=True)
    left, right = keys // items, keys % items
    weight = times / np.sqrt(np.maximum(source.counts(items)[right], 1))
    order = np.lexsort((right, -weight, left))
    left, right = left[order], right[order]
    first = np.searchsorted(left, np.arange(items))
    size = np.minimum(np.searchsorted(left, np.arange(items), side="right") - first, _ALIKE)  # (V,)
    within = np.arange(_ALIKE)[None] % np.maximum(size, 1)[:, None]
    found = right[np.minimum(first[:, None] + within, max(len(right) - 1, 0))] if len(right) else within
    return np.where(size[:, None] > 0, found, UNKNOWN_ROW).astype(np.int32)


def apply(source: Histories, edit: Edit) -> Histories:
    """The histories after an edit.

    A place has the time of the event that stood there before (`reorder`), or of the event it is or was put in front of.
    """
    origin, size = edit.origin, len(edit.origin)
    slots = np.sort(origin) if np.array_equal(edit.starts, source.starts) and size == len(source) else origin
    times = source.times_ms[slots]
    gaps = source.gaps_seconds[slots].copy()
    # A gap is the one of the log where the event before is the one before in the log; else what the times say.
    before = np.append(-2, slots[:-1])
    moved = (before != slots - 1) & (gaps >= 0)
    seconds = times // 1000
    gaps[moved] = np.maximum(np.diff(seconds, prepend=0)[moved], 0)
    opens = edit.starts[:-1][np.diff(edit.starts) > 0]
    gaps[opens] = np.minimum(gaps[opens], 0)
    if not source.gaps_seconds.any():  # without times, gaps say nothing
        gaps[:] = 0
    return Histories(edit.items, source.kinds[origin], gaps, times, edit.starts)


class Variety:
    """The histories of one fit, another variation of them at each asking.

    Args:
        lesson: What is learnt; its seed is that of the variations.
    """

    def __init__(self, lesson: Lesson) -> None:
        self._past, self._ratings, self._names = lesson.past, lesson.ratings, lesson.augment
        self._rng = np.random.default_rng([lesson.seed, 5077])  # not that of the windows
        # V of a lesson is that of its catalogue; items beyond never stand in the past.
        rows = max(len(lesson.catalogue), int(lesson.past.items.max(initial=0)) + 1)
        wanted = "insert" in self._names and len(lesson.past) > 0
        self._alike = correlated(lesson.past, rows) if wanted else np.zeros((rows, _ALIKE), np.int32)

    def histories(self) -> tuple[Histories, NDArray[np.float32] | None]:
        """Histories for one epoch and the ratings of their events; the log as it is where nothing is to be varied."""
        source, ratings = self._past, self._ratings
        if not self._names or not len(source):
            return source, ratings
        # Each varied user is varied in one way.
        which = self._rng.integers(0, len(self._names), source.users)
        varied = self._rng.random(source.users) < VARIED
        for name in (name for name in OPERATIONS if name in self._names):  # prefixes come last: they add users
            chosen = varied & (which == self._names.index(name))
            edit = OPERATIONS[name](source, chosen, self._rng, self._alike)
            source = apply(source, edit)
            if ratings is not None:
                ratings = np.where(edit.inserted, np.float32(np.nan), ratings[edit.origin])
        return source, ratings


def _events(source: Histories, chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The events (N,) of chosen users (U,)."""
    return np.repeat(chosen, np.diff(source.starts))


def _runs(source: Histories, begin: NDArray[np.int64], kept: NDArray[np.int64]) -> Edit:
    """Runs of events, one history each: first event and number (U',)."""
    starts = np.concatenate(([0], np.cumsum(kept)))
    origin = np.repeat(begin - starts[:-1], kept) + np.arange(starts[-1])
    return Edit(origin, source.items[origin], np.zeros(len(origin), np.bool_), starts)
