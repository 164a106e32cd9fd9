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
@pytest.mark.parametrize("items", [12, 400])
def test_popularity_is_tested_with_its_list_of_before_the_event_and_the_users_own_exclusions(exclude, items):
    """Whatever is blocked and let in again meanwhile; the list shown after the event is made of the same order."""
    stream, rng = Stream(k=4, exclude=exclude), np.random.default_rng(11)
    counts, history, ranks = defaultdict(int), defaultdict(lambda: deque(maxlen=50)), []
    blocked = {"i2"}
    stream.recommender.block("i2")
    for n, (user, item, kind, _) in enumerate(random_events(rng, 400, users=5, items=items)):
        for other in (f"i{number}" for number in rng.integers(0, items, items // 12 if n % 40 == 39 else 0)):
            out = bool(rng.random() < 0.6)
            stream.recommender.block(other, out)
            (blocked.add if out else blocked.discard)(other)
        stream.recommender.popularity._since_sort = 10**6  # sorted anew at every event, however many items there are
        order = sorted(counts, key=lambda other: (-counts[other], stream.recommender.items.number(other)))
        order = [other for other in order if other not in blocked]

        def shown(order=order, user=user):
            out = {i for i, k in history[user] if exclude == "seen" or (exclude == "purchased" and k == PURCHASE)}
            return [other for other in order if other not in out][:4]

        expected = shown().index(item) + 1 if item in shown() else 0
        advanced = stream.send((user, item, kind, T0))
        assert advanced.popularity_ranks.tolist() == [expected]
        counts[item] += 1
        history[user].append((item, kind))
        assert stream.lists(advanced)[0] == shown()
        ranks.append(expected)
    assert len(blocked) > items // 12
    assert max(ranks) == 4 or exclude == "seen" or items > 12
    assert min(ranks) == 0
