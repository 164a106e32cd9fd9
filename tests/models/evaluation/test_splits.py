import numpy as np
import pytest

from models.evaluation.splits import cold_items, leave_one_out, split_by, subset, thinned, time_split
from state.errors import RecstreamError
from tests.models.evaluation.walks import dataset, histories, ring


def test_leave_one_out_judges_the_last_and_chooses_by_the_one_before():
    source = histories([[1, 2, 3, 4], [1, 2], [5], [3, 2, 1]])
    split = leave_one_out(source)
    assert source.items[split.judged].tolist() == [4, 1]
    assert source.items[split.validation].tolist() == [3, 2]
    assert split.past(source).items.tolist() == [1, 2, 1, 2, 5, 3]
    assert split.past(source).starts.tolist() == [0, 2, 4, 5, 6]


def test_leave_one_out_needs_three_events_of_somebody():
    with pytest.raises(RecstreamError, match="no user has 3 events"):
        leave_one_out(histories([[1, 2], [3]]))


def test_a_time_split_judges_the_newest_tenth_and_nothing_newer_is_learnt():
    source = ring()
    split = time_split(dataset(source))
    assert split.judged.sum() == pytest.approx(0.1 * len(source), abs=2)
    assert split.validation.sum() == pytest.approx(0.09 * len(source), abs=2)
    assert source.times_ms[split.learnt].max() < source.times_ms[split.validation].min()
    assert source.times_ms[split.validation].max() < source.times_ms[split.judged].min()
    assert (split.learnt | split.validation | split.judged).all()


def test_without_times_the_newest_of_each_user_are_judged():
    split = time_split(dataset(ring(users=7, length=30), timed=False))
    assert split.judged.reshape(7, 30)[:, -3:].all() and split.judged.sum() == 21
    assert split.validation.reshape(7, 30)[:, -6:-3].all()


def test_cold_items_are_never_learnt_and_only_they_are_judged():
    source = ring(items=30)
    split = cold_items(dataset(source))
    cold = set(source.items[split.judged].tolist())
    assert 1 <= len(cold) <= 3
    assert not cold & set(source.items[split.learnt | split.validation].tolist())
    assert source.times_ms[split.learnt].max() < source.times_ms[split.judged].min()
    with pytest.raises(RecstreamError, match="no item to hold out"):
        cold_items(dataset(histories([[1, 2] * 20, [3]], [list(range(40)), [0]]), timed=True))


def test_ties_at_the_border_are_not_torn_apart():
    source = histories([list(range(1, 21))], [[0] * 10 + [1] * 9 + [2]])
    split = time_split(dataset(source))
    assert source.times_ms[split.judged].tolist() == [2000]
    with pytest.raises(RecstreamError, match="cannot be split"):
        time_split(dataset(histories([[1, 2, 3]], [[5, 5, 5]])))


def test_of_two_moments_the_older_is_learnt_and_none_is_for_validation():
    source = histories([[1, 2, 3], [2, 3, 1]], [[0, 5, 5], [0, 0, 5]])
    split, notes = split_by(dataset(source), "time-split")
    assert len(notes) == 1 and "share two moments" in notes[0]
    assert source.times_ms[split.judged].tolist() == [5000, 5000, 5000]
    assert source.times_ms[split.learnt].tolist() == [0, 0, 0]
    assert not split.validation.any()


def test_a_subset_keeps_users_and_gaps():
    source = histories([[1, 2, 3], [4]], [[0, 10, 30], [7]])
    part = subset(source, np.array([True, False, True, False]))
    assert part.items.tolist() == [1, 3] and part.starts.tolist() == [0, 2, 2]
    assert part.gaps_seconds.tolist() == [0, 20]


def test_thinning_keeps_whole_users_up_to_a_number_of_events():
    source = ring(users=30, length=20)
    events = np.arange(len(source)) % 20 >= 15  # the last five of each user, none of the first ten users
    events[: 10 * 20] = False
    kept = thinned(source, events, 23)
    assert kept.sum() == 20 and not (kept & ~events).any()
    assert set(np.add.reduceat(kept, source.starts[:-1])) == {0, 5}
    assert thinned(source, events, 3).sum() == 5  # at least one user's
    assert (thinned(source, events, 100) == events).all()


def test_test_then_learn_judges_the_newer_half_of_all_but_very_large_data():
    split, notes = split_by(dataset(ring(users=30, length=20)), "prequential", 25)
    assert split.judged.sum() == 300 and not notes
