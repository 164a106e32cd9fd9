"""Lists from everything that is known: the transition memory, popularity, the user's own items and the neural scores.

`models.fusion` does the work event by event; this brings it the neural scores a block at a time, so that a block's
score matrices stay in the L2 cache between the product and the kernel that reads them.

Letters: E events, H hidden width, V rows of the model, K recommendations, T neural candidates, R latest events.
"""

from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from models.batches import Fused, Histories, NeuralScores
from models.fusion import Fusion
from models.history import EXCLUDE_NONE, EXCLUDE_PURCHASED, EXCLUDE_SEEN
from models.repeats import LastItems
from models.serving import ServingModel
from models.staging import ItemRows
from models.topk import top_k

NEURAL_CANDIDATES: Final = 10  # T: as many as are listed by default; finding 16 takes 1.7 times as long
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
    known: ItemRows,
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
        known: Its rows of item numbers.
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
    batch = fusion.begin(items, kinds, seconds, histories, top_k=k, exclude=_NAMES[exclude], test_all=test_all)
    if model is None:
        fusion.advance(batch, len(items))
        return batch.fused
    tested = np.flatnonzero(batch.tested)
    before_tested = before[tested]
    events, no_event, row_of = np.arange(len(items)), np.full(len(tested), -1, np.int32), known.row_of
    rows = max(2, _BLOCK_SCORES // len(model.vocabulary))
    for start in range(0, len(items), rows):
        stop = min(start + rows, len(items))
        tests = slice(*np.searchsorted(tested, (start, stop)))
        # One product and one pass for both: small batches pay for calls, not for arithmetic.
        hidden = np.concatenate([after[start:stop], before_tested[tests]])
        at = np.concatenate([events[start:stop], tested[tests]])
        newest = np.concatenate([items[start:stop], no_event[tests]])
        scores = model.scores(hidden, LastItems(histories.items, histories.lengths, at, newest, row_of))
        best, _ = top_k(scores, _NOTHING_EXCLUDED[: len(scores)], NEURAL_CANDIDATES)
        count = stop - start
        fusion.advance(batch, stop, NeuralScores(scores[:count], best[:count], scores[count:], best[count:]))
    return batch.fused
