"""Full ranking of what came next, for any model: rank of the target and the list each user would have been shown.

Every item competes in every ranking. Unmasked, items the user already has compete as well; masked, they do not. A
target that the user already has can never be recommended when masked, so it counts as a miss there.

Letters: K judged events, W windows, T steps, Q query width, V item rows, L length of lists.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.family.asking import had_before, queries_before, ranks_of
from models.family.interface import SequenceModel
from models.network import UNKNOWN_ROW
from models.sequences import Histories

LISTED: Final = 10
_SCORES: Final = 2**22  # of one slice of judged events, 16 MB
Report = Callable[[float], object]


@dataclass(frozen=True, slots=True)
class Ranking:
    """Where each judged event's item stood, and what was recommended instead.

    Attributes:
        ranks: (K,) 1 + better + ties / 2; infinity where the item cannot be recommended.
        lists: (K, L) item rows recommended, best first; 0 where there are fewer.
        scores: (K,) score of the target.
    """

    ranks: NDArray[np.float64]
    lists: NDArray[np.int32]
    scores: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Judgement:
    """Both rankings of the same events.

    Attributes:
        events: (K,) places of the judged events in the histories.
        unmasked: Every item competes.
        masked: Items the user had before do not.
    """

    events: NDArray[np.int64]
    unmasked: Ranking
    masked: Ranking


@torch.inference_mode()
def judge(
    model: SequenceModel,
    source: Histories,
    judged: NDArray[np.bool_],
    report: Report | None = None,
    candidates: Tensor | None = None,
) -> Judgement:
    """Rank every item for every judged event.

    Args:
        model: A fitted model.
        source: The histories; each judged event is ranked knowing what its user did before it, and nothing else.
        judged: (N,) which events.
        report: Called with the share done.
        candidates: (V,) bool, items that compete; all but row 0 when None.
    """
    events = np.flatnonzero(judged & (source.items != UNKNOWN_ROW))
    share = report or (lambda share: None)
    asked = queries_before(model, source, events, lambda done: share(0.3 * done))
    return rank_events(model, source, events, asked, lambda done: share(0.3 + 0.7 * done), candidates)


@torch.inference_mode()
def rank_events(
    model: SequenceModel,
    source: Histories,
    events: NDArray[np.int64],
    asked: Tensor,
    report: Report | None = None,
    candidates: Tensor | None = None,
) -> Judgement:
    """Rank every item for events (K,) with these queries (K, Q).

    Args:
        model: A fitted model.
        source: The histories.
        events: (K,) ascending.
        asked: Queries (K, Q) from `models.family.asking.queries_before`.
        report: Called with the share done.
        candidates: (V,) bool, items that compete; all but row 0 when None. A target outside is a miss.
    """
    targets = torch.from_numpy(source.items[events].astype(np.int64))
    length = min(LISTED, model.items - 1)
    # Written into arrays made once: small results kept between large scores would scatter the heap, to gigabytes.
    unmasked, masked = _empty(len(events), length), _empty(len(events), length)
    rows = max(1, _SCORES // model.items)
    for begin in range(0, len(events), rows):
        part = slice(begin, begin + rows)
        scores = model.item_scores(asked[part])  # (rows, V)
        if candidates is not None:
            scores.masked_fill_(~candidates, -torch.inf)
        _rank(scores, targets[part], unmasked, part)
        row, had = (torch.from_numpy(side) for side in had_before(source, events[part], model.items))
        scores[row, had] = -torch.inf
        _rank(scores, targets[part], masked, part)
        if report:
            report(min(1.0, (begin + rows) / len(events)))
    return Judgement(events, unmasked, masked)


def _empty(events: int, length: int) -> Ranking:
    return Ranking(np.zeros(events), np.zeros((events, length), np.int32), np.zeros(events, np.float32))


def _rank(scores: Tensor, targets: Tensor, into: Ranking, part: slice) -> None:
    """Ranks and lists by scores (k, V) of targets (k,), written into a part of a ranking."""
    ranks, score = ranks_of(scores, targets)
    best, lists = scores.nan_to_num(nan=-torch.inf, neginf=-torch.inf).topk(into.lists.shape[1], dim=1)
    into.ranks[part], into.scores[part] = ranks.numpy(), score.float().numpy()
    into.lists[part] = lists.masked_fill(best == -torch.inf, UNKNOWN_ROW).numpy()
