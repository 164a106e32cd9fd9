"""What is measured of a ranking: accuracy at several cut-offs, and what lies beyond accuracy.

Letters: K judged events, V item rows, L length of lists, U users.

One item is right for each judged event (the one that came next), so recall at k is the hit rate and precision at k a
k-th of it. Accuracy is the mean over judged events.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.evaluation.judging import Ranking
from models.sequences import Histories

CUTOFFS: Final = (1, 5, 10, 20)
BEYOND_AT: Final = 10
_SIGNS: Final = 256  # width of the sketch of who had an item; similarities are right to about 1 / 16
_LISTS: Final = 2000  # most lists whose items are compared pair by pair
_HEAD_SHARE: Final = 0.2  # of the items: the head of the popularity distribution
_GROUPS: Final = (0.2, 0.8)  # shares of items up to which popularity groups reach: head, middle, tail


def gains(ranks: NDArray[np.float64], k: int) -> dict[str, NDArray[np.float64]]:
    """HR, NDCG and MRR at k of every rank (K,).

    Example:
        >>> {name: gain.round(2).tolist() for name, gain in gains(np.array([1.0, 3.0, 11.0]), 10).items()}
        {'hr': [1.0, 1.0, 0.0], 'ndcg': [1.0, 0.5, 0.0], 'mrr': [1.0, 0.33, 0.0]}
    """
    hit = (ranks <= k).astype(np.float64)
    discount: NDArray[np.float64] = np.log2(ranks + 1)
    found = {"hr": hit, "ndcg": hit / discount, "mrr": hit / ranks}
    return found


def accuracy(ranks: NDArray[np.float64], items: int) -> dict[str, float]:
    """HR, NDCG, MRR, recall, precision, F1 and AUC at every cut-off, and the AUC of the whole ranking.

    AUC at k is the limited AUC: below position k the ranking counts as random.

    Args:
        ranks: (K,) of one right item among all.
        items: Number of items ranked.

    References:
        Schröder et al., "Setting goals and choosing metrics for recommender system evaluations", UCERSTI 2011.
    """
    if not len(ranks):
        return {}
    others = max(items - 1, 1)
    found: dict[str, float] = {}
    for k in CUTOFFS:
        for name, gain in gains(ranks, k).items():
            found[f"{name}@{k}"] = float(gain.mean())
        recall = found[f"hr@{k}"]
        found[f"recall@{k}"], found[f"precision@{k}"] = recall, recall / k
        found[f"f1@{k}"] = 2 * recall / (k + 1)  # 2 p r / (p + r) with p = r / k
        inside = 1 - (np.minimum(ranks, items) - 1) / others
        outside = max(1 - min(k / others, 1.0), 0.0) / 2
        found[f"auc@{k}"] = float(np.where(ranks <= k, inside, outside).mean())
    found["auc"] = float(np.clip(1 - (np.minimum(ranks, items) - 1) / others, 0, 1).mean())
    found["mrr"] = float((1 / ranks).mean())
    found["events"] = float(len(ranks))
    return found


@dataclass(frozen=True, slots=True)
class Background:
    """What lists are compared with: the learnt events.

    Attributes:
        counts: (V,) how often each item was learnt from.
        sketch: (V, 256) signs of the users who had each item: cosines of rows estimate how alike audiences are.
        user_counts: (U, 3) each user's learnt events in the head, the middle and the tail of popularity.
        group: (V,) 0 head, 1 middle, 2 tail.
    """

    counts: NDArray[np.int64]
    sketch: NDArray[np.float32]
    user_counts: NDArray[np.float64]
    group: NDArray[np.int64]

    @classmethod
    def of(cls, past: Histories, items: int) -> "Background":
        """From the learnt events."""
        counts = past.counts(items)
        counts[0] = 0
        sketch = np.zeros((items, _SIGNS), np.float32)
        users = np.repeat(np.arange(past.users), np.diff(past.starts))
        for begin in range(0, len(past), 2**16):
            part = slice(begin, begin + 2**16)
            np.add.at(sketch, past.items[part], _signs(users[part]))
        group = np.full(items, 2)
        order = np.argsort(-counts[1:], kind="stable") + 1
        reach = np.cumsum(counts[order])
        total = max(int(reach[-1]) if len(reach) else 0, 1)
        group[order[reach <= _GROUPS[1] * total]] = 1
        group[order[reach <= _GROUPS[0] * total]] = 0
        group[counts > _GROUPS[0] * total] = 0  # more than the head's share by itself
        user_counts = np.zeros((past.users, 3))
        np.add.at(user_counts, (users, group[past.items]), 1.0)
        return cls(counts, sketch, user_counts, group)

    @property
    def head(self) -> NDArray[np.bool_]:
        """(V,) the most popular fifth of the items that were learnt from."""
        known = int((self.counts > 0).sum())
        head = np.zeros(len(self.counts), np.bool_)
        head[np.argsort(-self.counts, kind="stable")[: int(np.ceil(_HEAD_SHARE * known))]] = True
        return head


def _signs(users: NDArray[np.int64]) -> NDArray[np.float32]:
    """Signs (N, 256) that depend on the user only: bits of a multiplicative hash."""
    word = np.arange(_SIGNS // 64, dtype=np.uint64)[None]
    mixed = (users[:, None].astype(np.uint64) * np.uint64(4) + word + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(31)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    bits = np.unpackbits(mixed.view(np.uint8), axis=1)
    return bits.astype(np.float32) * 2 - 1


def beyond(ranking: Ranking, users: NDArray[np.int64], background: Background) -> dict[str, float]:
    """Coverage, novelty, diversity, popularity bias and calibration of the lists shown.

    - ``coverage@10``: share of all items that stand in any list. ``gini@10``: inequality of how often items are shown.
    - ``novelty@10``: mean -log2 of an item's share of the learnt events, in bits.
    - ``diversity@10``: 1 - mean cosine of the audiences of two items of a list.
    - ``personalisation@10``: 1 - mean overlap of two users' lists.
    - ``popularity_bias@10``: mean popularity of what is shown over that of what users had; 1 is no bias.
    - ``calibration@10``: Jensen-Shannon divergence (bits) between the shares of head, middle and tail items in a user's
      history and list; 0 is perfect.

    Args:
        ranking: Lists (K, L).
        users: (K,) whose lists.
        background: From the learnt events.

    References:
        Steck, "Calibrated recommendations", RecSys 2018; Abdollahpouri et al., "The connection between popularity bias,
        calibration, and fairness in recommendation", RecSys 2020.
    """
    lists = ranking.lists[:, :BEYOND_AT]
    if not len(lists):
        return {}
    shown = np.bincount(lists[lists > 0].ravel(), minlength=len(background.counts))[1:]
    total = max(int(background.counts.sum()), 1)
    share = (background.counts + 1) / (total + len(background.counts))
    real = lists > 0
    novelty = -np.log2(share)[lists]
    history = (background.counts[1:] ** 2).sum() / total  # popularity of an event's item, averaged over events
    popularity = background.counts[lists][real].mean() if real.any() else 0.0
    at = f"@{BEYOND_AT}"
    return {
        f"coverage{at}": float((shown > 0).mean()),
        f"gini{at}": _gini(shown),
        f"novelty{at}": float(novelty[real].mean()) if real.any() else 0.0,
        f"diversity{at}": _diversity(lists, background.sketch),
        f"personalisation{at}": _personalisation(lists),
        f"popularity_bias{at}": float(popularity / max(history, 1e-9)),
        f"calibration{at}": _calibration(lists, users, background),
    }


def _gini(shown: NDArray[np.int64]) -> float:
    ordered = np.sort(shown).astype(np.float64)
    if not ordered.sum():
        return 0.0
    place = np.arange(1, len(ordered) + 1)
    return float((2 * (place * ordered).sum() / ordered.sum() - len(ordered) - 1) / len(ordered))


def _some(count: int) -> NDArray[np.int64]:
    rng = np.random.default_rng(0)
    return np.arange(count) if count <= _LISTS else rng.choice(count, _LISTS, replace=False)


def _diversity(lists: NDArray[np.int32], sketch: NDArray[np.float32]) -> float:
    chosen = lists[_some(len(lists))]
    length = (chosen > 0).sum(1)
    chosen, length = chosen[length > 1], length[length > 1]
    if not len(chosen):
        return 0.0
    vectors = sketch[chosen]  # (S, L, 256), zeros in blank places
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=2, keepdims=True), 1e-9)
    alike = vectors @ vectors.transpose(0, 2, 1)  # (S, L, L)
    mean = (alike.sum((1, 2)) - np.trace(alike, axis1=1, axis2=2)) / (length * (length - 1))
    return float(np.clip(1 - mean.mean(), 0, 1))  # a sketch is a little off


def _personalisation(lists: NDArray[np.int32]) -> float:
    chosen = lists[_some(len(lists))]
    length = float((chosen > 0).sum(1).mean())
    if len(chosen) < 2 or not length:
        return 0.0
    times = np.bincount(chosen[chosen > 0].ravel()).astype(np.float64)
    pairs = len(chosen) * (len(chosen) - 1)
    return float(1 - (times * (times - 1)).sum() / pairs / length)


def _calibration(lists: NDArray[np.int32], users: NDArray[np.int64], background: Background) -> float:
    had = background.user_counts[users]  # (K, 3)
    known = (had.sum(1) > 0) & (lists > 0).any(1)
    if not known.any():
        return 0.0
    had = had[known] / had[known].sum(1, keepdims=True)
    groups = np.where(lists[known] > 0, background.group[lists[known]], -1)  # (K, L), blank places in none
    got = np.stack([(groups == number).sum(1) for number in range(3)], axis=1) / (groups >= 0).sum(1, keepdims=True)
    middle = (had + got) / 2

    def divergence(p: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(p > 0, p * np.log2(np.maximum(p, 1e-12) / np.maximum(middle, 1e-12)), 0).sum(1)

    return float(((divergence(had) + divergence(got)) / 2).mean())


def rounded(values: Mapping[str, float]) -> dict[str, float]:
    """Figures to six places; a number of events as a whole number."""
    return {name: int(value) if name == "events" else round(value, 6) for name, value in values.items()}
