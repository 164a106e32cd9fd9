"""Prequential evaluation: every event of the newer half is predicted from what came before it, then learnt.

Candidates are the items seen so far; an item's first event ever is a miss. Models that count learn every event at
once, in slices of a few events. Models that are fitted are fitted anew on everything so far, a given number of times;
for them items first seen since then are no candidates.

Letters: N events, K judged events, V item rows.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from models.evaluation.dataset import Dataset
from models.evaluation.judging import Judgement, Ranking, rank_events
from models.evaluation.splits import PREQUENTIAL_SHARE, subset
from models.family.asking import queries_before
from models.family.interface import Lesson, SequenceModel
from state.errors import RecstreamError

REFITS: Final = 2  # of fitted models: at the start and in the middle of what is judged
_SLICE: Final = 8  # events scored between two lessons of a counting model
_VALIDATION: Final = 0.1  # newest share of the events learnt from, to choose the best epoch by
Fit = Callable[[Lesson, float, float], SequenceModel]


def prequential(
    data: Dataset,
    fit: Fit,
    online: bool,
    seed: int,
    effort: float,
    report: Callable[[float, str], object],
    refits: int = REFITS,
    judged: NDArray[np.bool_] | None = None,
) -> tuple[SequenceModel, Judgement]:
    """Judge a model by test-then-learn over the newer half of the events, in order of time.

    Args:
        data: The events.
        fit: Makes and fits a model; given the lesson and the shares of the work it begins and ends at.
        online: Whether that model learns event by event.
        seed: Randomness of fits.
        effort: Factor on the budget of all fits together.
        report: Called with the share done and a note.
        refits: Times a model that does not learn event by event is fitted.
        judged: (N,) which events of the newer half are ranked, all when None; every one is learnt.

    Returns:
        The model as it is in the end, and the judgement of the newer half.

    Raises:
        RecstreamError: There are too few events.
    """
    source = data.source
    order = data.order()
    first = int(len(order) * (1 - PREQUENTIAL_SHARE))
    if first < 1 or len(order) - first < 1:
        what = "There is nothing to judge by test-then-learn"
        raise RecstreamError(what, f"the log has {len(order)} events", "Give a longer log")
    when = np.empty(len(order), np.int64)
    when[order] = np.arange(len(order))
    model = fit(_lesson(data, when, first, seed, effort / (1 if online else refits), online), 0.0, 0.3)
    seen = torch.zeros(data.items, dtype=torch.bool)
    seen[torch.from_numpy(source.items[order[:first]].astype(np.int64))] = True
    parts: list[Judgement] = []
    ranked = np.ones(len(source), np.bool_) if judged is None else judged
    if online:
        parts.append(_slices(model, data, order[first:], ranked, seen, report))
    else:
        bounds = np.linspace(first, len(order), refits + 1).astype(int)
        for number, (begin, end) in enumerate(pairwise(bounds.tolist())):
            at = 0.3 + 0.7 * number / refits
            if number:
                lesson = _lesson(data, when, begin, seed, effort / refits, online)
                model = fit(lesson, at, at + 0.5 / refits)
            places = np.sort(order[begin:end])
            parts.append(_block(model, data, places[ranked[places]], seen))
            seen[torch.from_numpy(source.items[order[begin:end]].astype(np.int64))] = True
            report(at + 0.7 / refits, "")
    return model, _together(parts)


def _lesson(data: Dataset, when: NDArray[np.int64], before: int, seed: int, effort: float, online: bool) -> Lesson:
    """Everything before the given number of events in order of time.

    The newest tenth is held out for choices, but not from models that count: an event not learnt would be lost to them.
    """
    held = before if online else int(before * (1 - _VALIDATION))
    keep = when < before
    return Lesson(
        past=subset(data.source, when < held),
        source=subset(data.source, keep),
        judged=(when >= held)[keep],
        catalogue=data.catalogue,
        seed=seed,
        effort=effort,
        timed=data.timed,
    )


def _slices(
    model: SequenceModel,
    data: Dataset,
    places: NDArray[np.int64],
    ranked: NDArray[np.bool_],
    seen: torch.Tensor,
    report: Callable[[float, str], object],
) -> Judgement:
    """A model that learns at once: rank a slice of events, then learn it."""
    source, parts = data.source, list[Judgement]()
    asked = queries_before(model, source, np.sort(places))[torch.from_numpy(np.argsort(np.argsort(places)))]
    users = np.searchsorted(source.starts, places, side="right") - 1
    for begin in range(0, len(places), _SLICE):
        part = slice(begin, begin + _SLICE)
        rows = source.items[places[part]].astype(np.int64)
        mine = np.flatnonzero(ranked[places[part]]) + begin
        if len(mine):
            parts.append(rank_events(model, source, places[mine], asked[mine], candidates=seen))
        model.learn(asked[part], users[part], rows, source.gaps_seconds[places[part]])
        seen[torch.from_numpy(rows)] = True
        if begin // _SLICE % 128 == 0:
            report(0.3 + 0.7 * begin / len(places), f"{begin:,} events")
    return _together(parts)


def _block(
    model: SequenceModel,
    data: Dataset,
    places: NDArray[np.int64],
    seen: torch.Tensor,
) -> Judgement:
    """A fitted model: rank a block of events."""
    return rank_events(model, data.source, places, queries_before(model, data.source, places), candidates=seen)


def _together(parts: list[Judgement]) -> Judgement:
    def joined(rankings: list[Ranking]) -> Ranking:
        columns = ([getattr(ranking, name) for ranking in rankings] for name in ("ranks", "lists", "scores"))
        return Ranking(*(np.concatenate(column) for column in columns))

    return Judgement(
        np.concatenate([part.events for part in parts]),
        joined([part.unmasked for part in parts]),
        joined([part.masked for part in parts]),
    )
