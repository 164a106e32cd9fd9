"""What goes into the fusion and what comes out of it, a batch at a time (`models.fusion`).

Letters: E events, S tested events, K recommendations, X length of a history, V rows of a model, T neural candidates.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Events(NamedTuple):
    """A batch as the kernels see it."""

    items: NDArray[np.int32]  # (E,)
    kinds: NDArray[np.uint8]  # (E,)
    seconds: NDArray[np.int64]  # (E,)
    histories: NDArray[np.int32]  # (E, X) before the event, newest first
    history_kinds: NDArray[np.uint8]  # (E, X)
    history_seconds: NDArray[np.int64]  # (E, 2) of the last two events
    lengths: NDArray[np.int32]  # (E,)


@dataclass(frozen=True, slots=True)
class NeuralScores:
    """Dense scores of one model version for some events. Before-scores are wanted for the tested ones, in their order.

    Attributes:
        after: (E, V) scores from the state after each event.
        after_top: (E, T) the best rows of each, to be considered as candidates.
        before: (S, V) scores from the state before each tested event.
        before_top: (S, T).
    """

    after: NDArray[np.float32]
    after_top: NDArray[np.int32]
    before: NDArray[np.float32]
    before_top: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Histories:
    """What users did before each event of a batch, newest first, 0 beyond the length.

    Attributes:
        items: (E, X) item numbers.
        kinds: (E, X) event kinds.
        seconds: (E, X) times of the events; only the first two are read.
        lengths: (E,).
    """

    items: NDArray[np.int32]
    kinds: NDArray[np.uint8]
    seconds: NDArray[np.int64]
    lengths: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Fused:
    """What a batch gave.

    Attributes:
        items: (E, K) recommended item numbers after each event, best first, 0 where there are no more.
        scores: (E, K) their probabilities among the candidates, 0 where there are no more.
        ranks: (E,) rank of the event's item before it: 1 + better + ties / 2, inf when it was no candidate,
            0 for events that were not tested.
    """

    items: NDArray[np.int32]
    scores: NDArray[np.float32]
    ranks: NDArray[np.float32]


@dataclass(slots=True)
class Batch:
    """A batch under way.

    Attributes:
        events: with their histories.
        tested: (E,) which are ranked: before-scores are wanted for these.
        adapted: (E,) from which the weights learn.
        exclude: what is not recommended again.
        fused: what it gives.
        done: how many events are processed.
    """

    events: Events
    tested: NDArray[np.bool_]
    adapted: NDArray[np.bool_]
    exclude: int
    fused: Fused
    done: int = 0
