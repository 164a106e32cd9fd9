import numpy as np
import pytest

from models.popularity import HALF_LIVES, LISTED, LIVES, Popularity


def brute_force(items: np.ndarray, half_life: float) -> dict[int, float]:
    ages = len(items) - 1 - np.arange(len(items))
    weights = 0.5 ** (ages / half_life)
    return {int(item): float(weights[items == item].sum() / weights.sum()) for item in np.unique(items)}


@pytest.mark.parametrize("half_life", HALF_LIVES)
def test_shares_are_decayed_counts(half_life):
    items = np.random.default_rng(0).zipf(1.5, 20_000).clip(1, 400).astype(np.int32)
    popularity = Popularity(8)
    popularity.learn(items)
    expected = brute_force(items, half_life)
    numbers = np.array(list(expected), np.int32)
    # 20,000 events at a half-life of 100 pass the rescaling limit five times
    np.testing.assert_allclose(popularity.shares(numbers, half_life), list(expected.values()), rtol=2e-3, atol=1e-7)


def test_lists_hold_exactly_the_most_popular_items():
    rng = np.random.default_rng(1)
    popularity = Popularity(512)
    for part in range(40):  # tastes drift, so items enter and leave the lists
        popularity.learn((rng.integers(1, 60, 200) + 10 * part).clip(1, 500).astype(np.int32))
        for life, top in enumerate(popularity.arrays.top):
            weight = popularity.arrays.rows[:, life]
            listed = top[top > 0]
            assert len(set(listed.tolist())) == len(listed)
            assert weight[listed].min() >= np.sort(weight)[-LISTED]
            assert set(listed.tolist()) == set(np.flatnonzero(popularity.arrays.listed >> life & 1).tolist())


def test_counting_many_at_once_agrees_with_one_by_one_for_the_share_of_one_item():
    one, many = Popularity(), Popularity()
    one.learn(np.full(50, 7, np.int32))
    many.learn(np.array([7], np.int32), np.array([50], np.float32))
    assert many.shares(np.array([7], np.int32), 1e5)[0] == pytest.approx(1.0, abs=1e-2)
    assert one.shares(np.array([7], np.int32), 1e5)[0] == pytest.approx(1.0, abs=1e-6)


def test_growing_keeps_what_was_learnt_and_nothing_is_learnt_for_no_item():
    popularity = Popularity(4)
    popularity.learn(np.array([2, 2, 3, 0], np.int32))
    before = popularity.shares(np.array([2, 3], np.int32), 100.0)
    popularity.reserve(1000)
    np.testing.assert_array_equal(popularity.shares(np.array([2, 3], np.int32), 100.0), before)
    assert popularity.arrays.rows[0, :LIVES].max() == 0


def test_stored_state_continues_bit_for_bit():
    items = np.random.default_rng(2).integers(1, 300, 4000).astype(np.int32)
    straight, first, second = Popularity(), Popularity(), Popularity()
    straight.learn(items)
    first.learn(items[:2000])
    second.load_arrays(first.to_arrays())
    second.learn(items[2000:])
    for ours, theirs in zip(straight.arrays, second.arrays, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("times", [1_000.0, 13_000.0, 250_000.0])
def test_however_many_are_counted_at_once_shares_stay_what_they_are(times):
    """Another worker's busy second: 0.5 to the power of 130 is beyond a float32."""
    popularity = Popularity()
    popularity.learn(np.tile(np.array([1, 2, 3], np.int32), 200))
    popularity.learn(np.array([7], np.int32), np.array([times], np.float32))
    assert np.isfinite(popularity.arrays.rows[1:8]).all()
    for half_life in HALF_LIVES:
        mass = (1 - 0.5 ** (600 / half_life)) / (1 - 0.5 ** (1 / half_life))
        left = mass * 0.5 ** (times / half_life)
        share = popularity.shares(np.array([7], np.int32), half_life)[0]
        assert times / (times + left) - 0.02 <= share <= 1.01
