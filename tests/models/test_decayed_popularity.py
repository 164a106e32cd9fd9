import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from models.decayed_popularity import DecayedPopularity

HOUR = 3_600_000


def naive(items, times_ms, half_life_ms):
    """Decayed weight of every item as of the newest event."""
    weights = {}
    newest = max(times_ms)
    for item, time_ms in zip(items, times_ms, strict=True):
        weights[item] = weights.get(item, 0.0) + 2.0 ** ((time_ms - newest) / half_life_ms)
    return weights


def learn(popularity, items, times_ms):
    popularity.learn(np.array(items, np.int32), np.array(times_ms, np.int64))


events = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 200 * HOUR)), min_size=1, max_size=60)


@given(events=events, cut=st.integers(0, 60), count=st.integers(1, 15))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_list_and_shares_are_those_of_counting_every_event_with_its_age(events, cut, count):
    """200 hours at a half-life of one: the landmark moves, events come in any order and in two batches."""
    popularity = DecayedPopularity(half_life_ms=HOUR)
    items, times_ms = [item for item, _ in events], [time_ms for _, time_ms in events]
    for part in (slice(0, cut), slice(cut, None)):
        if items[part]:
            learn(popularity, items[part], times_ms[part])
    weights = naive(items, times_ms, HOUR)
    top, shares = popularity.top(count)
    total = sum(weights.values())
    assert len(top) == len(set(top.tolist())) <= count
    expected = np.array([weights[item] / total for item in top.tolist()])
    assert np.allclose(shares, expected, rtol=1e-4, atol=1e-12)
    left = [weights[item] / total for item in weights if item not in top]
    assert all(share <= shares[-1] * (1 + 1e-4) + 1e-12 for share in left)
    assert (np.diff(shares) <= 0).all()
    if len(top) < count:  # everything with a weight is listed: an item of 2^-1074 and less has none
        assert all(share < 1e-15 for share in left)
    places = popularity.places(np.arange(14, dtype=np.int32))
    assert [int(places[item]) for item in top.tolist()] == list(range(len(top)))
    assert (np.delete(places, top) == np.iinfo(np.int32).max).all()


def test_equally_popular_items_stand_in_the_order_of_their_numbers():
    popularity = DecayedPopularity(half_life_ms=HOUR)
    learn(popularity, [5, 3, 4, 3, 5, 4], [0] * 6)
    assert popularity.top(10)[0].tolist() == [3, 4, 5]


def test_many_items_are_listed_as_few_are():
    rng = np.random.default_rng(0)
    items = rng.zipf(1.3, 30_000)
    items = items[items < 20_000].astype(np.int32)
    popularity = DecayedPopularity(half_life_ms=HOUR)
    popularity.learn(items, np.zeros(len(items), np.int64))
    counts = np.bincount(items)
    top, shares = popularity.top(20)
    assert sorted(counts[top].tolist()) == sorted(np.sort(counts)[-20:].tolist())
    assert np.allclose(shares, counts[top] / len(items))


def test_the_newest_favourite_overtakes_an_old_one_after_enough_half_lives():
    popularity = DecayedPopularity(half_life_ms=HOUR)
    learn(popularity, [1] * 1000, [0] * 1000)
    learn(popularity, [2], [9 * HOUR])
    assert popularity.top(2)[0].tolist() == [1, 2]
    learn(popularity, [2], [11 * HOUR])
    assert popularity.top(2)[0].tolist() == [2, 1]


def test_after_a_very_long_pause_only_what_is_new_counts():
    popularity = DecayedPopularity(half_life_ms=HOUR)
    learn(popularity, [1], [0])
    learn(popularity, [2], [10_000 * HOUR])
    top, shares = popularity.top(5)
    assert top.tolist() == [2]
    assert shares.tolist() == [1.0]
    learn(popularity, [3], [0])  # late by ten thousand half-lives: weighs nothing
    assert popularity.top(5)[0].tolist() == [2]


@pytest.mark.parametrize("number", [1022, 1023, 1024, 5000])
def test_item_numbers_beyond_the_arrays_are_known_to_be_unlisted(number):
    popularity = DecayedPopularity(half_life_ms=HOUR)
    assert popularity.places(np.array([number], np.int32)).tolist() == [np.iinfo(np.int32).max]
    learn(popularity, [number], [0])
    popularity.top(3)
    assert popularity.places(np.array([[number, number + 1, 10**6]], np.int32)).tolist() == [
        [0, np.iinfo(np.int32).max, np.iinfo(np.int32).max]
    ]


def test_before_any_event_the_list_is_empty():
    top, shares = DecayedPopularity(half_life_ms=HOUR).top(5)
    assert (len(top), len(shares)) == (0, 0)


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("learn"), st.lists(st.integers(1, 3_000), min_size=1, max_size=40)),
            st.tuples(st.sampled_from(["block", "allow"]), st.integers(1, 5_000)),
            st.tuples(st.sampled_from(["block", "allow"]), st.integers(1, 12)),
        ),
        max_size=40,
    ),
    count=st.integers(1, 15),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_blocked_items_are_counted_and_not_listed(steps, count):
    popularity, counts, blocked = DecayedPopularity(half_life_ms=HOUR), np.zeros(5_001), set()
    for what, of in steps:
        if what == "learn":
            learn(popularity, of, [0] * len(of))
            counts += np.bincount(of, minlength=5_001)
            continue
        popularity.block(of, what == "block")
        if (what == "block") == (of in blocked) or not counts.any():
            (blocked.add if what == "block" else blocked.discard)(of)
            continue  # nothing has changed: the list may be an older one
        (blocked.add if what == "block" else blocked.discard)(of)
        top, shares = popularity.top(count)
        left = [item for item in np.flatnonzero(counts).tolist() if item not in blocked]
        assert not blocked & set(top.tolist())
        assert counts[top].tolist() == sorted(counts[left], reverse=True)[:count]
        assert np.allclose(shares, counts[top] / counts.sum())
        assert popularity.places(top).tolist() == list(range(len(top)))
        assert (popularity.places(np.array(sorted(blocked), np.int32)) >= count).all()
    assert popularity.blocked.tolist() == sorted(blocked)
