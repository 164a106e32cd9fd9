"""How well the heads beside the next item foretell: types, items of each type, items further ahead, ratings.

Every figure stands beside what needs no model: the most frequent type and the user's last one, popularity, means. Items
are ranked in full and unmasked. An item further ahead is judged on the same events as the next item, each asked for
before the events in between are known.

Letters: K judged events, V item rows.
"""

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from models.evaluation.dataset import Dataset
from models.evaluation.metrics import gains
from models.evaluation.ratings import Means
from models.evaluation.splits import Split
from models.family.asking import queries_before, ranks_of
from models.family.heads import Answers, head_scores, item_heads, ratings_of, type_odds
from models.family.interface import SequenceModel, Tasks
from models.network import UNKNOWN_ROW
from state.events import KINDS

_AT: Final = 10
_SCORES: Final = 2**22  # of one slice of events, 16 MB


@torch.inference_mode()
def task_figures(model: SequenceModel, data: Dataset, split: Split) -> dict[str, Any]:
    """Figures of every head of a model, by head; none where it has no heads.

    Args:
        model: A fitted model.
        data: The data set.
        split: What is judged, and what was learnt from, for popularity, frequencies and means.
    """
    heads = model.task_heads
    if heads is None:
        return {}
    source = data.source
    events = np.flatnonzero(split.judged & (source.items != UNKNOWN_ROW))
    answers = Answers.of(source, heads.tasks, data.ratings)
    found: dict[str, Any] = {}
    for name, which in item_heads(heads.tasks).items():
        counts = split.past(source).counts(data.items)
        if which >= 0:  # the user's next event of that type
            asked, wanted = events, answers.places[name][events]
            kept = wanted >= 0
            asked, wanted = asked[kept], wanted[kept]
        else:
            asked, wanted = events + which + 1, events  # this event, before the ones right before it are known
            start = source.starts[np.searchsorted(source.starts, events, side="right") - 1]
            kept = asked >= start
            asked, wanted = asked[kept], wanted[kept]
        if len(asked):
            if which >= 0:
                counts = np.bincount(source.items[split.learnt & (source.kinds == which)], minlength=data.items)
            found[name] = _ranked(model, name, source.items[wanted].astype(np.int64), asked, data, counts)
    queries = queries_before(model, source, events) if {"type", "rating"} & set(heads.tasks.heads) else None
    if heads.kind is not None and queries is not None:
        found["type"] = _types(type_odds(model, queries).numpy(), answers.kinds[events], data, split, events)
    if heads.rating is not None and queries is not None and data.ratings is not None:
        rows = torch.from_numpy(answers.items[events])
        found["rating"] = _ratings(ratings_of(model, queries, rows).numpy(), data, split, events)
    return {name: figures for name, figures in found.items() if figures}


def mean_of(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures by head, averaged over fits."""
    if not seeds or not seeds[0]:
        return {}
    found: dict[str, Any] = {}
    for head, figures in seeds[0].items():
        found[head] = {name: round(float(np.mean([one[head][name] for one in seeds])), 6) for name in figures}
        found[head]["events"] = int(figures["events"])
    return found


def head_notes(tasks: Tasks, data: Dataset) -> list[str]:
    """What of the tasks a data set cannot teach."""
    notes = []
    missing = [
        kind for number, kind in enumerate(KINDS) if kind in tasks.heads and not (data.source.kinds == number).any()
    ]
    if missing:
        notes.append(f"no head for {', '.join(missing)}: the log has no such event")
    if "rating" in tasks.heads and data.ratings is None:
        notes.append("no head for ratings: the log has none")
    return notes


def teachable(tasks: Tasks, data: Dataset) -> Tasks:
    """The tasks that a data set can teach."""
    without = {*KINDS} - _types_of(data) | ({"rating"} if data.ratings is None else set())
    return Tasks(tuple(head for head in tasks.heads if head not in without), tasks.horizon)


def _types_of(data: Dataset) -> set[str]:
    return {kind for number, kind in enumerate(KINDS) if (data.source.kinds == number).any()}


def _ranked(
    model: SequenceModel,
    name: str,
    rows: NDArray[np.int64],
    asked: NDArray[np.int64],
    data: Dataset,
    counts: NDArray[np.int64],
) -> dict[str, float]:
    """HR@10 and NDCG@10 of a head asked before events (K,) for items (K,), of the next-item head, of counts (V,)."""
    queries = queries_before(model, data.source, asked)
    targets = torch.from_numpy(rows)
    popularity = torch.from_numpy(counts.astype(np.float32))
    popularity[UNKNOWN_ROW] = -torch.inf
    ranks: dict[str, list[NDArray[np.float64]]] = {"": [], "next_": [], "popularity_": []}
    step = max(1, _SCORES // data.items)
    for begin in range(0, len(asked), step):
        part = slice(begin, begin + step)
        ranks[""].append(ranks_of(head_scores(model, name, queries[part]), targets[part])[0].numpy())
        ranks["next_"].append(ranks_of(model.item_scores(queries[part]), targets[part])[0].numpy())
        plain = popularity.expand(len(targets[part]), -1)
        ranks["popularity_"].append(ranks_of(plain, targets[part])[0].numpy())
    found: dict[str, float] = {"events": len(asked)}
    for by, parts in ranks.items():
        gain = gains(np.concatenate(parts), _AT)
        found |= {f"{by}{metric}@{_AT}": round(float(gain[metric].mean()), 6) for metric in ("hr", "ndcg")}
    return found


def _types(
    odds: NDArray[np.float32], kinds: NDArray[np.int64], data: Dataset, split: Split, events: NDArray[np.int64]
) -> dict[str, float]:
    """Accuracy and log loss of types (K, 3), beside those of frequencies and of repeating the user's last type."""
    known = kinds >= 0
    if not known.any():
        return {}
    odds, kinds, events = odds[known], kinds[known], events[known]
    learnt = data.source.kinds[split.learnt]
    counts = np.bincount(learnt[learnt < len(KINDS)], minlength=len(KINDS)) + 1.0
    first = np.isin(events, data.source.starts[:-1])
    last = np.where(first, counts.argmax(), data.source.kinds[np.maximum(events - 1, 0)])
    return {
        "events": len(kinds),
        "accuracy": round(float((odds.argmax(1) == kinds).mean()), 6),
        "majority_accuracy": round(float((counts.argmax() == kinds).mean()), 6),
        "last_accuracy": round(float((last == kinds).mean()), 6),
        "log_loss": round(float(-odds[np.arange(len(kinds)), kinds].mean()), 6),
        "frequency_log_loss": round(float(-np.log(counts / counts.sum())[kinds].mean()), 6),
    }


def _ratings(read: NDArray[np.float32], data: Dataset, split: Split, events: NDArray[np.int64]) -> dict[str, float]:
    """RMSE and MAE of foretold ratings (K,), of the overall mean, and of the means of users and items."""
    assert data.ratings is not None
    ratings = data.ratings[events].astype(np.float64)
    known = np.isfinite(ratings)
    if not known.any():
        return {}
    means = Means(data.ratings, data.source, split.learnt)
    user, item = means.of(data.source, events)
    least, most = np.nanmin(data.ratings), np.nanmax(data.ratings)
    found: dict[str, float] = {"events": int(known.sum())}
    guesses = {"": read, "mean_": np.full(len(events), means.mean), "means_": means.mean + user + item}
    for by, guess in guesses.items():
        errors = (np.clip(guess, least, most) - ratings)[known]
        found[f"{by}rmse"] = round(float(np.sqrt((errors**2).mean())), 6)
        found[f"{by}mae"] = round(float(np.abs(errors).mean()), 6)
    return found
