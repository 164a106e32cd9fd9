"""How well ratings are told from a model's scores: RMSE and MAE of a linear reading of them.

These scores were not trained on ratings (the heads of `models.family.heads` are). The rating of an event is read from
the user's mean rating, the item's mean rating and the model's score of the item, by least squares on the validation
events, and judged on the test events; beside it stands the same reading without the score, so that the model's own part
shows.

Letters: K events, N events of the histories, V item rows.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.evaluation.judging import Judgement
from models.evaluation.splits import Split
from models.sequences import Histories

_PRIOR: Final = 5.0  # ratings at the mean that every user and item starts with
_RIDGE: Final = 1e-3


def rating_errors(
    ratings: NDArray[np.float32], source: Histories, split: Split, validation: Judgement, judged: Judgement
) -> dict[str, float]:
    """RMSE and MAE of ratings read from a model's scores, and of means alone (``means_rmse``, ``means_mae``).

    Args:
        ratings: (N,) NaN where there is none.
        source: The histories.
        split: What was learnt from.
        validation: The model's scores of the validation events.
        judged: The model's scores of the judged events.
    """
    means = Means(ratings, source, split.learnt)
    fit, test = (_known(ratings, side) for side in (validation, judged))
    if len(fit) < 10 or not len(test):
        return {}
    scores = np.concatenate((validation.unmasked.scores[fit], judged.unmasked.scores[test]))
    centre, spread = float(scores[: len(fit)].mean()), float(scores[: len(fit)].std()) or 1.0
    found = {}
    for name, with_score in (("", True), ("means_", False)):
        sides = []
        for side, chosen in ((validation, fit), (judged, test)):
            score = (side.unmasked.scores[chosen] - centre) / spread
            user, item = means.of(source, side.events[chosen])
            columns = [np.ones(len(chosen)), user, item] + ([np.clip(score, -5, 5)] if with_score else [])
            sides.append(np.stack(columns, axis=1))
        wanted = ratings[validation.events[fit]].astype(np.float64)
        normal = sides[0].T @ sides[0] + _RIDGE * len(fit) * np.diag([0.0] + [1.0] * (sides[0].shape[1] - 1))
        weights = np.linalg.solve(normal, sides[0].T @ wanted)
        read = np.clip(sides[1] @ weights, np.nanmin(ratings), np.nanmax(ratings))
        errors = read - ratings[judged.events[test]]
        found[f"{name}rmse"] = round(float(np.sqrt((errors**2).mean())), 6)
        found[f"{name}mae"] = round(float(np.abs(errors).mean()), 6)
    return found


def _known(ratings: NDArray[np.float32], side: Judgement) -> NDArray[np.int64]:
    return np.flatnonzero(np.isfinite(ratings[side.events]) & np.isfinite(side.unmasked.scores))


class Means:
    """Mean ratings of users and items over learnt events, drawn to the overall mean where there are few.

    Args:
        ratings: (N,) NaN where there is none.
        source: The histories.
        learnt: (N,) which events to take means over.

    Attributes:
        mean: Over all learnt ratings.
    """

    def __init__(self, ratings: NDArray[np.float32], source: Histories, learnt: NDArray[np.bool_]) -> None:
        rated = learnt & np.isfinite(ratings)
        users = np.repeat(np.arange(source.users), np.diff(source.starts))
        self.mean = float(ratings[rated].mean()) if rated.any() else float(np.nanmean(ratings))
        apart = np.where(rated, ratings - self.mean, 0).astype(np.float64)
        self._users = np.bincount(users, apart) / (np.bincount(users, rated) + _PRIOR)
        self._items = np.bincount(source.items, apart) / (np.bincount(source.items, rated) + _PRIOR)

    def of(self, source: Histories, events: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Deviations of the users and of the items (K,) of events (K,) from the mean."""
        user = np.searchsorted(source.starts, events, side="right") - 1
        return self._users[user], self._items[source.items[events]]
