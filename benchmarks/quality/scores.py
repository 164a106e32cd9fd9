"""Prequential figures from ranks: every event is ranked before it is learnt, the last 50% of the events count."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

K: Final = 10
BUCKETS: Final = 50  # points of a curve over the whole log


def gains(ranks: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Hit and reciprocal rank (N,) at 10 of ranks (N,): from 1, `inf` for a miss.

    >>> gains(np.array([1.0, 4.0, 11.0, np.inf]))[1].tolist()
    [1.0, 0.25, 0.0, 0.0]
    """
    hit = (ranks <= K).astype(np.float64)
    return hit, np.divide(hit, ranks, out=np.zeros(len(hit)), where=hit > 0)


def figures(ranks: NDArray[Any], start: int) -> tuple[float, float]:
    """HR@10 and MRR@10 over the events from `start` on."""
    hit, reciprocal = gains(ranks[start:])
    return (round(float(hit.mean()), 5), round(float(reciprocal.mean()), 5)) if len(hit) else (0.0, 0.0)


def curve(ranks: NDArray[Any], buckets: int = BUCKETS) -> list[float]:
    """HR@10 of equal stretches of the log, in order."""
    return [round(float(part.mean()), 4) for part in np.array_split(gains(ranks)[0], buckets) if len(part)]


def ends(events: int, buckets: int = BUCKETS) -> list[int]:
    """How many events lie behind each point of `curve`."""
    sizes = [len(part) for part in np.array_split(np.zeros(events), buckets) if len(part)]
    return np.cumsum(sizes).tolist()
