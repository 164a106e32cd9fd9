"""Each kernel against the same method written plainly with dictionaries."""

from collections import Counter, defaultdict, deque

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.quality import baselines
from benchmarks.quality.log import Log
from tests.benchmarks.logs import random_log

LOG = random_log(1500, 40, 60)


def rank(scores: dict[int, float], seen: int, item: int) -> float:
    wanted = scores.get(item, 0.0)
    others = [scores.get(other, 0.0) for other in range(seen) if other != item]
    return 1 + sum(score > wanted for score in others) + sum(score == wanted for score in others) / 2


def plain_markov(log: Log, learnt: int, read: int) -> NDArray[np.float64]:
    follows: dict[int, dict[int, np.float32]] = defaultdict(lambda: defaultdict(np.float32))
    past: dict[int, deque[int]] = defaultdict(lambda: deque(maxlen=learnt))
    ranks = np.full(len(log), np.inf)
    for e, (user, item) in enumerate(zip(log.users.tolist(), log.items.tolist(), strict=True)):
        window = log.items[max(0, e - baselines.BACK_OFF_WINDOW) : e].tolist()
        share = baselines.BACK_OFF / max(len(window), 1)
        scores: dict[int, float] = {other: share * n for other, n in Counter(window).items()}
        for d, before in enumerate(list(past[user])[:read], 1):
            for other, weight in follows[before].items():
                scores[other] = scores.get(other, 0.0) + float(weight) / d
        if item < log.seen[e]:
            ranks[e] = rank(scores, int(log.seen[e]), item)
        for d, before in enumerate(past[user], 1):
            follows[before][item] += np.float32(1 / d)
        past[user].appendleft(item)
    return ranks


def test_popularity_counts_the_newest_events_only() -> None:
    found = baselines.popularity(LOG, (100, 0))
    for window, ranks in found.items():
        for e in (3, 99, 100, 101, 700, 1499):
            counted = Counter(LOG.items[(max(0, e - window) if window else 0) : e].tolist())
            item = int(LOG.items[e])
            expected = rank(dict(counted), int(LOG.seen[e]), item) if item < LOG.seen[e] else np.inf
            assert ranks[e] == expected, (window, e)


@pytest.mark.parametrize(("learnt", "read"), [(1, 1), (10, 5)])
def test_skip_markov_sums_weighted_transitions(learnt: int, read: int) -> None:
    found = baselines.skip_markov(LOG, learnt, read)
    expected = plain_markov(LOG, learnt, read)
    # Sums in another order differ in the last bit, which may part or join a tie: half a place.
    assert np.isinf(found).tolist() == np.isinf(expected).tolist()
    here = np.isfinite(found)
    assert (np.abs(found[here] - expected[here]) <= 1).mean() > 0.99
    assert (found[here] == expected[here]).mean() > 0.95


def test_markov_is_the_first_order_chain() -> None:
    assert np.array_equal(baselines.markov(LOG), baselines.skip_markov(LOG, 1, 1))


def test_a_first_event_ever_is_a_miss() -> None:
    first = LOG.items == LOG.seen
    for ranks in (baselines.markov(LOG), baselines.own_recent(LOG), baselines.popularity(LOG, (0,))[0]):
        assert np.isinf(ranks[first]).all()
        assert np.isfinite(ranks[~first]).all()


def test_own_items_rank_by_recency_then_the_popular_ones() -> None:
    past: dict[int, list[int]] = defaultdict(list)
    for e, (user, item, found) in enumerate(
        zip(LOG.users.tolist(), LOG.items.tolist(), baselines.own_recent(LOG).tolist(), strict=True)
    ):
        own = past[user][: baselines.OWN_ITEMS]
        if item in own:
            assert found == own.index(item) + 1
        elif item < LOG.seen[e]:
            assert found > len(own)
        past[user] = [item, *(other for other in past[user] if other != item)]


def test_the_walks_are_foretold_by_transitions_not_by_popularity() -> None:
    last = LOG.half
    assert (baselines.markov(LOG)[last:] <= 3).mean() > 0.3
    assert (baselines.popularity(LOG, (0,))[0][last:] <= 3).mean() < 0.2
