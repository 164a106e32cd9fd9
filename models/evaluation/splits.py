"""Splits of a log into what is learnt from, what choices are made by, and what is judged.

Letters: N events, U users.

In every split a user's learnt events come before their validation events, and those before the judged ones.
"""

from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from models.evaluation.dataset import Dataset
from models.sequences import Histories
from state.errors import RecstreamError

Protocol = Literal["leave-one-out", "time-split", "prequential", "cold-items"]
PROTOCOLS: Final[tuple[Protocol, ...]] = ("leave-one-out", "time-split", "prequential", "cold-items")
JUDGED: Final = 25_000  # most judged events by default; whole users are drawn where there are more
PREQUENTIAL_SHARE: Final = 0.5  # newest share of the events, which test-then-learn judges
_CELLS: Final = 2 * 10**10  # scores that test-then-learn ranks for one model: about 5 minutes
TEST_SHARE: Final = 0.1  # newest share of a time split
COLD_SHARE: Final = 0.1  # of the items, held out where cold items are judged
FEWEST_EVENTS: Final = 3  # of a user in leave-one-out: one to learn from, one to choose by, one to judge


@dataclass(frozen=True, slots=True)
class Split:
    """Which events play which part, all (N,) bool.

    Attributes:
        learnt: Fitted to.
        validation: Choices are made by them; models see them as history when later events are judged.
        judged: Ranked; never seen by a fit.
    """

    learnt: NDArray[np.bool_]
    validation: NDArray[np.bool_]
    judged: NDArray[np.bool_]

    def past(self, source: Histories) -> Histories:
        """The learnt events alone, users with the same numbers."""
        return subset(source, self.learnt)


def split_by(data: Dataset, protocol: Protocol, most: int = JUDGED) -> tuple[Split, list[str]]:
    """The split of a protocol and what there is to say of it.

    Args:
        data: The events.
        protocol: One of `PROTOCOLS`.
        most: Most judged events; users are drawn at random where there are more. Test-then-learn judges all but of
            very large data.

    Raises:
        RecstreamError: The log is too short for the protocol.
    """
    source, notes = data.source, list[str]()
    if protocol == "prequential":
        when = np.empty(len(source), np.int64)
        when[data.order()] = np.arange(len(source))
        newer = when >= int(len(source) * (1 - PREQUENTIAL_SHARE))
        split, most = Split(~newer, np.zeros_like(newer), newer), max(most, _CELLS // data.items)
    elif protocol == "leave-one-out":
        split = leave_one_out(source)
    else:
        split = time_split(data) if protocol == "time-split" else cold_items(data)
        if not data.timed:
            notes.append("time split without times: the newest tenth of each user's own events is judged")
    if protocol != "prequential" and not split.validation.any():
        notes.append("nothing is left for validation, as the events share two moments: fits end with their last epoch")
    total = int(split.judged.sum())
    if total > most:
        split = replace(split, judged=thinned(source, split.judged, most))
        notes.append(
            f"{split.judged.sum():,} of {total:,} events that could be are judged: those of users drawn at random"
        )
    return split, notes


def thinned(source: Histories, events: NDArray[np.bool_], most: int) -> NDArray[np.bool_]:
    """At most about so many of the events (N,) bool: all events of users drawn at random, at least one user's."""
    users = np.repeat(np.arange(source.users), np.diff(source.starts))
    order = np.random.default_rng(0).permutation(source.users)
    number = np.bincount(users[events], minlength=source.users)
    order = order[number[order] > 0]
    chosen = order[: max(1, int(np.searchsorted(np.cumsum(number[order]), most, side="right")))]
    return events & np.isin(users, chosen)


def subset(source: Histories, keep: NDArray[np.bool_]) -> Histories:
    """The kept events; gaps stay those of the full log, users keep their numbers."""
    kept = np.concatenate(([0], np.cumsum(keep)))
    items, kinds, gaps = source.items[keep], source.kinds[keep], source.gaps_seconds[keep]
    return Histories(items, kinds, gaps, source.times_ms[keep], kept[source.starts])


def leave_one_out(source: Histories) -> Split:
    """Each user's last event is judged, the one before is for validation; users of fewer than 3 events are learnt from.

    Raises:
        RecstreamError: No user has 3 events.
    """
    long = np.flatnonzero(np.diff(source.starts) >= FEWEST_EVENTS)
    if not len(long):
        what, why = "There is nothing to judge by leave-one-out", f"no user has {FEWEST_EVENTS} events"
        raise RecstreamError(what, why, "Give a longer log, or use --protocol prequential")
    last = source.starts[1:][long] - 1
    judged, validation = np.zeros(len(source), np.bool_), np.zeros(len(source), np.bool_)
    judged[last], validation[last - 1] = True, True
    return Split(~(judged | validation), validation, judged)


def time_split(data: Dataset) -> Split:
    """The newest tenth of the events is judged, the newest tenth of the rest is for validation.

    Events at one time stay together; where that leaves two parts, none is for validation. Without times the newest
    tenth of each user's own events stands for it.

    Raises:
        RecstreamError: The log is too short to split.
    """
    source = data.source
    order = source.times_ms.astype(np.float64)
    if not data.timed:
        number = np.diff(source.starts)
        place = np.arange(len(source)) - np.repeat(source.starts[:-1], number)
        order = (place + 1) / np.repeat(np.maximum(number, 1), number)  # 1 for everybody's last event
    judged = _newest(order, np.ones(len(source), np.bool_))
    validation = _newest(order, ~judged) if not judged.all() else np.zeros_like(judged)
    if (judged | validation).all():  # two moments alone: the older is learnt, and nothing is left to choose by
        validation = np.zeros_like(judged)
    learnt = ~(judged | validation)
    if not judged.any() or not learnt.any():
        what, why = "The log cannot be split by time", f"it has {len(source)} events, most of them at one moment"
        raise RecstreamError(what, why, "Give a longer log, or use --protocol leave-one-out")
    return Split(learnt, validation, judged)


def cold_items(data: Dataset) -> Split:
    """A time split in which a tenth of the items, drawn at random, is never learnt; only they are judged.

    Raises:
        RecstreamError: The log is too short to split, or no such item occurs in its newest tenth.
    """
    split = time_split(data)
    cold = np.zeros(data.items, np.bool_)
    number = max(1, round(COLD_SHARE * (data.items - 1)))
    cold[np.random.default_rng(0).permutation(data.items - 1)[:number] + 1] = True
    of_cold = cold[data.source.items]
    judged = split.judged & of_cold
    if not judged.any() or not (split.learnt & ~of_cold).any():
        what, why = "There is no item to hold out", f"none of {number} drawn items occurs in the newest events"
        raise RecstreamError(what, why, "Give a longer log, or use --protocol time-split")
    return Split(split.learnt & ~of_cold, split.validation & ~of_cold, judged)


def _newest(order: NDArray[np.float64], among: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The newest tenth (about: moments are not torn apart) of the events in ``among``."""
    moments = np.sort(order[among])
    after = moments[min(int(len(moments) * (1 - TEST_SHARE)), len(moments) - 1)]
    newest: NDArray[np.bool_] = among & (order >= after)
    if newest.sum() > 2 * TEST_SHARE * len(moments) + 1:  # a large tie at the border falls to the older side
        newer: NDArray[np.bool_] = among & (order > after)
        newest = newer if newer.any() else newest
    return newest
