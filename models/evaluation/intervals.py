"""How sure a figure is: bootstrap intervals over users, and figures of groups of users and items.

Letters: K judged events, U users among them, R resamples.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.evaluation.metrics import Background, gains
from models.sequences import Histories

RESAMPLES: Final = 1000
LEVEL: Final = 0.95
_AT: Final = 10
_CELLS: Final = 2**22  # resampled users at a time
_COLD_EVENTS: Final = 5  # a user with at most this many events before is cold


def bootstrap(values: NDArray[np.float64], users: NDArray[np.int64], seed: int = 0) -> tuple[float, float]:
    """95% interval of the mean of values (K,), resampling users (K,): events of one user are not independent.

    References:
        Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 1979 (percentile interval);
        Davison and Hinkley, "Bootstrap methods and their application", 1997 (resampling clusters).

    Example:
        >>> low, high = bootstrap(np.array([0.0, 1.0] * 50), np.arange(100))
        >>> 0.35 < low < 0.5 < high < 0.65
        True
    """
    _, owner = np.unique(users, return_inverse=True)
    sums, sizes = np.bincount(owner, values), np.bincount(owner).astype(np.float64)
    if len(sums) < 2:
        mean = float(values.mean()) if len(values) else 0.0
        return mean, mean
    rng = np.random.default_rng(seed)
    means: list[NDArray[np.float64]] = []
    rows = max(1, _CELLS // len(sums))
    for begin in range(0, RESAMPLES, rows):
        drawn = rng.integers(0, len(sums), (min(rows, RESAMPLES - begin), len(sums)))
        means.append(sums[drawn].sum(1) / sizes[drawn].sum(1))
    low, high = np.quantile(np.concatenate(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def intervals(ranks: NDArray[np.float64], users: NDArray[np.int64]) -> dict[str, list[float]]:
    """95% intervals of HR@10, NDCG@10 and MRR@10: ``{"ndcg@10": [low, high], ...}``."""
    found = {}
    for name, gain in gains(ranks, _AT).items():
        low, high = bootstrap(gain, users)
        found[f"{name}@{_AT}"] = [round(low, 6), round(high, 6)]
    return found


def segments(
    ranks: NDArray[np.float64],
    events: NDArray[np.int64],
    source: Histories,
    background: Background,
) -> dict[str, dict[str, float]]:
    """HR@10 and NDCG@10 of cold and warm users, and of head, tail and never-learnt items.

    A user is cold with at most five events before the judged one; the head is the most popular fifth of learnt items.

    Args:
        ranks: (K,).
        events: (K,) places of the judged events.
        source: The histories.
        background: From the learnt events.
    """
    user = np.searchsorted(source.starts, events, side="right") - 1
    before = events - source.starts[:-1][user]
    items = source.items[events]
    learnt, head = background.counts[items] > 0, background.head[items]
    parts = {
        "new users": before == 0,
        "cold users": (before > 0) & (before <= _COLD_EVENTS),
        "warm users": before > _COLD_EVENTS,
        "head items": learnt & head,
        "tail items": learnt & ~head,
        "new items": ~learnt,
    }
    found = {}
    for name, part in parts.items():
        if part.any():
            gain = gains(ranks[part], _AT)
            figures = {f"{metric}@{_AT}": round(float(gain[metric].mean()), 6) for metric in ("hr", "ndcg")}
            found[name] = {**figures, "events": int(part.sum())}
    return found
