"""Lists from everything that is known: the transition memory, popularity, the user's own items and the neural scores.

`models.fusion` does the work event by event; this brings it the neural scores a block at a time, so that a block's
score matrices stay in the L2 cache between the product and the kernel that reads them.

Letters: E events, H hidden width, V rows of the model, K recommendations, T neural candidates.
"""

from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from models.fusion import Fused, Fusion, Histories, NeuralScores
from models.history import EXCLUDE_NONE, EXCLUDE_PURCHASED, EXCLUDE_SEEN
from models.serving import ServingModel
from models.topk import top_k

NEURAL_CANDIDATES: Final = 10  # T: as many as are listed by default; finding 16 takes twice the time
_BLOCK_SCORES: Final = 1 << 18  # two matrices of so many scores at once: 1 MiB
_NAMES: Final = {EXCLUDE_NONE: "none", EXCLUDE_SEEN: "seen", EXCLUDE_PURCHASED: "purchased"}
_NOTHING_EXCLUDED: Final = np.zeros((2 * _BLOCK_SCORES, 0), np.int32)  # no bytes: rows without entries


class Rows(Protocol):
    """An array, or what makes rows of one when they are asked for."""

    def __getitem__(self, rows: NDArray[np.int64], /) -> NDArray[np.float32]:
        """Rows (S, H)."""
        ...


def rank_fused(
    fusion: Fusion,
    model: ServingModel | None,
    items: NDArray[np.int32],
    kinds: NDArray[np.uint8],
    seconds: NDArray[np.int64],
    histories: Histories,
    before: Rows,
    after: NDArray[np.float32],
    k: int,
    exclude: int,
    test_all: bool = False,
) -> Fused:
    """Test, learn and recommend for each event in order.

    Args:
        fusion: learns; `set_model` must have named the model.
        model: None before there is one.
        items: (E,) item numbers of the events.
        kinds: (E,)
        seconds: (E,) event times.
        histories: what the users did before each event.
        before: (E, H) hidden vectors before each event; only some are asked for, none without a model.
        after: (E, H) after each event.
        k: K.
        exclude: `models.history.EXCLUDE_*`.
        test_all: rank every event, not only those the weights learn from.
    """
    n = len(items)
    if model is None:
        return fusion.process(items, kinds, seconds, histories, top_k=k, exclude=_NAMES[exclude], test_all=test_all)
    parts = []
    rows = max(2, _BLOCK_SCORES // len(model.vocabulary))
    for start in range(0, n, rows):
        at = slice(start, start + rows)
        tested = np.ones(len(items[at]), np.bool_) if test_all else fusion.tests(len(items[at]))
        count = len(items[at])
        # One product and one pass for both: small batches pay for calls, not for arithmetic.
        scores = model.scores(np.concatenate([after[at], before[start + np.flatnonzero(tested)]]))
        best, _ = top_k(scores, _NOTHING_EXCLUDED[: len(scores)], NEURAL_CANDIDATES)
        neural = NeuralScores(scores[:count], best[:count], scores[count:], best[count:])
        past = Histories(histories.items[at], histories.kinds[at], histories.seconds[at], histories.lengths[at])
        parts.append(
            fusion.process(
                items[at], kinds[at], seconds[at], past, top_k=k, neural=neural, exclude=_NAMES[exclude],
                test_all=test_all,
            )
        )  # fmt: skip
    if len(parts) == 1:
        return parts[0]
    return Fused(
        np.concatenate([part.items for part in parts]) if parts else np.zeros((0, k), np.int32),
        np.concatenate([part.scores for part in parts]) if parts else np.zeros((0, k), np.float32),
        np.concatenate([part.ranks for part in parts]) if parts else np.zeros(0, np.float32),
    )
