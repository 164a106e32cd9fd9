from collections import defaultdict, deque

import numpy as np
import pytest

from state.events import PURCHASE
from tests.models.recommending import T0, Stream, random_events


@pytest.mark.parametrize("with_model", [True, False])
@pytest.mark.parametrize("exclude", ["none", "purchased", "seen"])
def test_ranks_are_places_in_the_list_the_user_was_shown_before_the_event(gru, with_model, exclude):
    stream = Stream(gru if with_model else None, exclude=exclude)
    rng, shown, tested, hits = np.random.default_rng(10), {}, 0, 0
    for _ in range(12):
        batch = random_events(rng, 25, users=6, items=29)
        advanced = stream.send(*batch)
        for (user, item, *_), rank, model, items in zip(
            batch, advanced.ranks.tolist(), advanced.rank_models.tolist(), stream.lists(advanced), strict=True
        ):
            before = shown.get(user)
            assert rank == (before.index(item) + 1 if before and item in before else 0 if before else -1)
            assert model == (gru.fingerprint if with_model and user in shown else 0)
            tested, hits = tested + (rank >= 0), hits + (rank > 0)
            shown[user] = items
    assert tested > 150
    assert hits > 0


@pytest.mark.parametrize("exclude", ["none", "purchased", "seen"])
def test_popularity_is_tested_with_its_list_of_before_the_event_and_the_users_own_exclusions(exclude):
    stream, rng = Stream(k=4, exclude=exclude), np.random.default_rng(11)
    stream.recommender.block("i2")
    counts, history, ranks = defaultdict(int), defaultdict(lambda: deque(maxlen=50)), []
    for user, item, kind, _ in random_events(rng, 400, users=5):
        order = sorted(counts, key=lambda other: (-counts[other], stream.recommender.items.number(other)))
        out = {i for i, k in history[user] if exclude == "seen" or (exclude == "purchased" and k == PURCHASE)} | {"i2"}
        allowed = [other for other in order if other not in out][:4]
        expected = allowed.index(item) + 1 if item in allowed else 0
        assert stream.send((user, item, kind, T0)).popularity_ranks.tolist() == [expected]
        counts[item] += 1
        history[user].append((item, kind))
        ranks.append(expected)
    assert max(ranks) == 4 or exclude == "seen"
    assert min(ranks) == 0
