"""Two catalogues with shared users: what the events of one tell of what comes next in the other.

The logs are merged by user and time. The target's events are split and judged exactly as without the other domain, and
only the target's items compete, so the two evaluations rank the same items for the same events and their difference is
the lift.

Letters: N events of both, A events of the target, B of the other domain, V item rows of both, K judged events.

References:
    Cantador et al., "Cross-domain recommender systems", Recommender Systems Handbook 2015 (shared users); Ma et al.,
    "pi-Net: a parallel information-sharing network for shared-account cross-domain sequential recommendations",
    SIGIR 2019 (sequences merged by time).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from models.evaluation.dataset import Dataset
from models.evaluation.intervals import bootstrap
from models.evaluation.judging import Judgement
from models.evaluation.metrics import gains
from models.evaluation.run import Report, Settings, evaluate
from models.evaluation.splits import Split, split_by
from models.family.catalogue import Catalogue
from models.sequences import Histories
from state.errors import RecstreamError

_AT: Final = 10


@dataclass(frozen=True, slots=True)
class Merged:
    """Two data sets as one.

    Attributes:
        data: Both logs; the target's users and items come first, in their order.
        place: (A,) where each of the target's events stands in it.
        shared: Number of users of both.
    """

    data: Dataset
    place: NDArray[np.int64]
    shared: int

    def split(self, target: Split, by_time: bool) -> Split:
        """The target's split in the merged log, the other domain's events learnt where they came first.

        An event of the other domain is learnt when it comes before everything its user has held out and, in splits by
        time, before everything anybody has. Later ones are only history when what follows them is judged.

        Args:
            target: (A,) split of the target's events.
            by_time: Whether that split is one by time.
        """
        source = self.data.source
        size = len(source)
        parts = {name: np.zeros(size, np.bool_) for name in Split.__slots__}
        for name, part in parts.items():
            part[self.place] = getattr(target, name)
        ours = np.zeros(size, np.bool_)
        ours[self.place] = True
        held_out = ours & ~parts["learnt"]
        number = np.diff(source.starts)
        user = np.repeat(np.arange(source.users), number)
        first = np.full(source.users, size)
        np.minimum.at(first, user[held_out], np.flatnonzero(held_out))
        before = np.arange(size) < first[user]
        if by_time and held_out.any():
            before &= source.times_ms < source.times_ms[held_out].min()
        return Split(parts["learnt"] | (~ours & before), parts["validation"], parts["judged"])


def merge(target: Dataset, other: Dataset) -> Merged:
    """Merge two logs by user and time; of events at one moment the other domain's come first.

    Raises:
        RecstreamError: One of them has no times, or they share no user.
    """
    for data in (target, other):
        if not data.timed:
            what = f"{data.name} cannot be merged with another log by time"
            raise RecstreamError(what, "it has no times", "Give both logs a column timestamp")
    number = {name: row for row, name in enumerate(target.users)}
    shared = sum(name in number for name in other.users)
    if not shared:
        what = f"{target.name} and {other.name} cannot be evaluated together"
        why = f"none of {len(other.users):,} users of {other.name} is one of {target.name}'s"
        raise RecstreamError(what, why, "Give logs of the same users under the same ids")
    users = [*target.users, *(name for name in other.users if name not in number)]
    for name in users[len(target.users) :]:
        number[name] = len(number)
    theirs = np.array([number[name] for name in other.users], np.int64)
    owner = np.concatenate(
        (
            np.repeat(np.arange(len(target.users)), np.diff(target.source.starts)),
            theirs[np.repeat(np.arange(len(other.users)), np.diff(other.source.starts))],
        )
    )
    times = np.concatenate((target.source.times_ms, other.source.times_ms))
    ours = np.arange(len(times)) < len(target.source)
    order = np.lexsort((np.arange(len(times)), ours, times, owner))
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    starts = np.concatenate(([0], np.cumsum(np.bincount(owner, minlength=len(users)))))
    items = np.concatenate((target.source.items, _moved(other.source.items, target.items - 1)))
    kinds = np.concatenate((target.source.kinds, other.source.kinds))[order]
    unknown = np.concatenate((target.source.gaps_seconds, other.source.gaps_seconds))[order] < 0
    gaps = np.diff(times[order] // 1000, prepend=0)
    gaps[starts[:-1][np.diff(starts) > 0]] = 0
    gaps[unknown] = -1
    source = Histories(items[order], kinds, gaps, times[order], starts.astype(np.int64))
    catalogue = Catalogue(
        [*target.catalogue.texts, *other.catalogue.texts[1:]],
        [*target.catalogue.attributes, *other.catalogue.attributes[1:]],
    )
    vocabulary = [*target.vocabulary, *(f"{other.name}/{item}" for item in other.vocabulary[1:])]
    ratings = None
    if target.ratings is not None:
        rest = np.full(len(other.source), np.nan, np.float32) if other.ratings is None else other.ratings
        ratings = np.concatenate((target.ratings, rest))[order]
    candidates = np.arange(len(vocabulary)) < target.items
    candidates[0] = False
    name = f"{target.name} with {other.name}"
    data = Dataset(name, source, vocabulary, catalogue, ratings, True, target.notes, users, candidates)
    return Merged(data, place[: len(target.source)], shared)


def evaluate_together(
    target: Dataset, other: Dataset, names: list[str], settings: Settings, report: Report
) -> dict[str, Any]:
    """Evaluate models on one data set with another one's events at hand, and by itself.

    Args:
        target: What is judged.
        other: A log of another catalogue, of some of the same users.
        names: As for `models.evaluation.run.evaluate`.
        settings: How.
        report: As there; names of the evaluation by itself end in `` alone``.

    Returns:
        The result of the evaluation with the other domain; each model's figures also hold ``lift`` and, under
        ``alone``, unmasked and masked accuracy of the target by itself.

    Raises:
        RecstreamError: The logs cannot be merged, or as `models.evaluation.run.evaluate`.
    """
    if settings.protocol == "prequential":
        what = "Two domains are not evaluated by test-then-learn"
        raise RecstreamError(what, "one split is to serve both logs", "Use --protocol leave-one-out or time-split")
    merged = merge(target, other)
    split, notes = split_by(target, settings.protocol, settings.judged)
    both = merged.split(split, by_time=settings.protocol != "leave-one-out")
    kept: list[dict[str, list[Judgement]]] = [{}, {}]

    def keep(into: dict[str, list[Judgement]]) -> Callable[[str, int, Judgement], object]:
        return lambda name, seed, judgement: into.setdefault(name, []).append(judgement)

    def alone_report(name: str, share: float, note: str) -> object:
        return report(f"{name} alone", share, note)

    alone = evaluate(target, names, settings, alone_report, keep(kept[0]), split)
    body = evaluate(merged.data, list(alone["models"]), settings, report, keep(kept[1]), both)
    if "interrupted" in alone:
        body.setdefault("interrupted", alone["interrupted"])
    for name, figures in body["models"].items():
        events = kept[0][name][0].events
        users = np.searchsorted(target.source.starts, events, side="right") - 1
        figures["lift"] = lift(kept[0][name], kept[1][name], users)
        figures["alone"] = {side: alone["models"][name][side] for side in ("unmasked", "masked")}
    learnt = int(both.learnt.sum() - split.learnt.sum())
    said = f"{merged.shared:,} users are in both logs; {learnt:,} events of {other.name} are learnt"
    body["data"]["notes"] += [*notes, said, f"only the {target.items - 1:,} items of {target.name} compete"]
    return body


def lift(alone: list[Judgement], together: list[Judgement], users: NDArray[np.int64]) -> dict[str, Any]:
    """How much better the same events are ranked with the other domain, unmasked and masked.

    Args:
        alone: One judgement per seed, of the target by itself.
        together: The same events, with the other domain.
        users: (K,) whose events.

    Returns:
        Per side and metric the mean without and with, their difference with its 95% interval (resampling users, both
        evaluations together), and the difference as a share of what there was without.
    """
    found: dict[str, Any] = {}
    for side in ("unmasked", "masked"):
        gain = [
            {
                metric: np.mean([gains(getattr(one, side).ranks, _AT)[metric] for one in judgements], axis=0)
                for metric in ("hr", "ndcg", "mrr")
            }
            for judgements in (alone, together)
        ]
        found[side] = {}
        for metric in ("hr", "ndcg", "mrr"):
            without, with_ = gain[0][metric], gain[1][metric]
            low, high = bootstrap(with_ - without, users)
            before, after = float(without.mean()), float(with_.mean())
            found[side][f"{metric}@{_AT}"] = {
                "without": round(before, 6),
                "with": round(after, 6),
                "difference": round(after - before, 6),
                "interval": [round(low, 6), round(high, 6)],
                "relative": round(after / before - 1, 4) if before else None,
            }
    return found


def _moved(items: NDArray[np.int32], by: int) -> NDArray[np.int32]:
    return np.where(items > 0, items + by, 0).astype(np.int32)
