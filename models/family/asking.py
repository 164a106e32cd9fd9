"""Asking a model: what each user's query was just before an event, and where the event's item then stood.

Letters: K events, W windows, T steps, Q query width, V item rows.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.family.interface import SequenceModel, clock_of, gather
from models.sequences import Histories, grouped

_STEPS: Final = 2**13  # of one batch of windows, padding included
_LONGEST: Final = 256  # events of one user asked about in one window: attention costs the square of its length
_SCORES: Final = 2**22  # of one slice of events, 16 MB
Report = Callable[[float], object]


@torch.inference_mode()
def queries_before(
    model: SequenceModel, source: Histories, events: NDArray[np.int64], report: Report | None = None
) -> Tensor:
    """The query (K, Q) each user had just before each of the events (K,), given in ascending order.

    Args:
        model: The model.
        source: The histories.
        events: (K,) places in the histories; before a user's first event only its hour is known.
        report: Called with the share done.
    """
    user = np.searchsorted(source.starts, events, side="right") - 1
    start = source.starts[:-1][user]
    found = model.greeting(torch.from_numpy(clock_of(source.times_ms[events])))
    begin = np.maximum(start, events - model.context)
    unit = user
    if not model.pointwise:  # one window reaches over many events of a user, but not over a robot's 100,000
        apart = events - events[np.searchsorted(user, user)]
        unit = np.cumsum(np.diff(user * len(source) + apart // max(_LONGEST, 2 * model.context), prepend=-1) > 0)
        begin = begin[np.searchsorted(unit, unit)]
    windows = np.stack((begin, events - begin), axis=1)  # (K, 2) each event's own
    after = np.flatnonzero(events > start)
    if model.pointwise:
        _each(model, source, windows, after, found, report)
    else:
        _along(model, source, windows, after, unit, found, report)
    return found


def _each(
    model: SequenceModel,
    source: Histories,
    windows: NDArray[np.int64],
    after: NDArray[np.int64],
    found: Tensor,
    report: Report | None,
) -> None:
    order = after[np.argsort(windows[after, 1], kind="stable")]
    done = 0
    for part in grouped(windows[order], _STEPS):
        numbers = order[done : done + len(part)]
        found[torch.from_numpy(numbers)] = model.last(gather(source, part), torch.from_numpy(part[:, 1].copy()))
        done += len(part)
        if report:
            report(done / len(order))


def _along(
    model: SequenceModel,
    source: Histories,
    windows: NDArray[np.int64],
    after: NDArray[np.int64],
    unit: NDArray[np.int64],  # (K,) number of the window that an event is asked in
    found: Tensor,
    report: Report | None,
) -> None:
    if not len(after):
        return
    final = after[np.append(np.diff(unit[after]) > 0, True)]  # the last event of each window
    single = len(final) == len(after)
    final = final[np.argsort(windows[final, 1], kind="stable")]
    done = 0
    for part in grouped(windows[final], _STEPS):
        chosen = final[done : done + len(part)]
        done += len(part)
        batch = gather(source, part)
        if single:
            found[torch.from_numpy(chosen)] = model.last(batch, torch.from_numpy(part[:, 1].copy()))
        else:
            row = np.full(unit.max() + 1, -1)
            row[unit[chosen]] = np.arange(len(chosen))
            mine = after[row[unit[after]] >= 0]
            place = (torch.from_numpy(row[unit[mine]]), torch.from_numpy(windows[mine, 1] - 1))
            found[torch.from_numpy(mine)] = model.sequence(batch)[place]
        if report:
            report(done / len(final))


@torch.inference_mode()
def target_ranks(model: SequenceModel, asked: Tensor, targets: NDArray[np.int32]) -> NDArray[np.float64]:
    """Ranks (K,) of target rows (K,) among all items for queries (K, Q); nothing is excluded."""
    rows = max(1, _SCORES // model.items)
    wanted = torch.from_numpy(targets.astype(np.int64))
    # Written into one array: small results kept between large scores would scatter the heap, to gigabytes.
    found = np.zeros(len(targets))
    for begin in range(0, len(targets), rows):
        part = slice(begin, begin + rows)
        found[part] = ranks_of(model.item_scores(asked[part]), wanted[part])[0].numpy()
    return found


def ranks_of(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Ranks (K,), 1 + better + ties / 2, of targets (K,) by scores (K, V), and their scores (K,).

    A target that scores minus infinity, or nothing comparable, has the rank infinity.
    """
    score = scores.gather(1, targets[:, None])
    # "Not at most" instead of "greater": a model that has diverged to NaN ranks last, not first.
    better, ties = (~(scores <= score)).sum(1), ((scores == score).sum(1) - 1).clamp(min=0)
    ranks = (1 + better + ties / 2).double().masked_fill(~(score[:, 0] > -torch.inf), torch.inf)
    return ranks, score[:, 0]


def had_before(source: Histories, events: NDArray[np.int64], items: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What the users of events (K,) had before them, each item once: numbers of the events, and item rows.

    An item counts from its first event on, so that a robot's 100,000 events weigh no more than its different items.

    Args:
        source: The histories.
        events: (K,) places in the histories, in any order.
        items: V.
    """
    users, owner = np.unique(np.searchsorted(source.starts, events, side="right") - 1, return_inverse=True)
    begin, end = source.starts[:-1][users], np.zeros(len(users), np.int64)
    np.maximum.at(end, owner, events)
    length = end - begin
    place = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length) + np.repeat(begin, length)
    rows = source.items[place].astype(np.int64)
    first = np.sort(np.unique(np.repeat(np.arange(len(users)), length) * items + rows, return_index=True)[1])
    place, rows = place[first], rows[first]  # ascending, as users and their events are
    low = np.searchsorted(place, begin)[owner]
    number = np.searchsorted(place, events) - low
    each = np.arange(number.sum()) - np.repeat(np.cumsum(number) - number, number) + np.repeat(low, number)
    return np.repeat(np.arange(len(events)), number), rows[each]
