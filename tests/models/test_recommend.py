from collections import defaultdict, deque

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from models.recommend import POPULARITY
from state.events import CLICK, PURCHASE
from tests.models.recommending import T0, Stream, expected_list, random_events, rows_of, stepped


@pytest.mark.parametrize("exclude", ["none", "purchased", "seen"])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_every_event_is_answered_with_the_best_items_its_user_may_be_shown(exclude, cell, request):
    model = request.getfixturevalue(cell)
    stream, rng = Stream(model, exclude=exclude), np.random.default_rng(3)
    history = defaultdict(lambda: deque(maxlen=50))
    for user, item, kind, time_ms in random_events(rng, 250, users=3):
        history[user].append((item, kind))
        seen = {
            item for item, kind in history[user] if exclude == "seen" or (exclude == "purchased" and kind == PURCHASE)
        }
        advanced = stream.send((user, item, kind, time_ms))
        newest_first = [item for item, _ in reversed(history[user])]
        items, scores = expected_list(model, stream.hidden_of(user), newest_first, seen, 5)
        assert stream.lists(advanced) == [items]
        assert np.allclose(advanced.scores[0], scores, atol=1e-4)
        assert advanced.model_version == model.name


def test_events_of_one_batch_each_get_the_list_of_their_own_moment(gru):
    events = random_events(np.random.default_rng(4), 120)
    together, one_by_one = Stream(gru, exclude="seen"), Stream(gru, exclude="seen")
    whole = together.send(*events)
    for position, event in enumerate(events):
        single = one_by_one.send(event)
        assert together.lists(whole)[position] == one_by_one.lists(single)[0]
        assert np.allclose(whole.scores[position], single.scores[0], atol=1e-4)
        assert whole.ranks[position] == single.ranks[0]
    assert np.array_equal(whole.listed, np.arange(120))


def test_latest_only_answers_the_last_event_of_each_user_and_changes_no_state(gru):
    events = random_events(np.random.default_rng(5), 90)
    every, latest = Stream(gru, exclude="seen"), Stream(gru, exclude="seen", latest_only=True)
    for start in range(0, 90, 30):
        batch = events[start : start + 30]
        whole, short = every.send(*batch), latest.send(*batch)
        last = sorted({user: n for n, (user, *_) in enumerate(batch)}.values())
        assert short.listed.tolist() == last
        assert latest.lists(short) == [every.lists(whole)[n] for n in last]
    assert rows_of(every) == rows_of(latest)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@given(seed=st.integers(0, 10_000), cuts=st.sets(st.integers(1, 119), max_size=8))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_however_a_stream_is_cut_every_bit_of_state_is_the_same(request, cell, seed, cuts):
    model = request.getfixturevalue(cell)
    events = random_events(np.random.default_rng(seed), 120)
    whole, pieces = Stream(model), Stream(model)
    whole.send(*events)
    for start, stop in zip([0, *sorted(cuts)], [*sorted(cuts), 120], strict=True):
        pieces.send(*events[start:stop])
    assert rows_of(whole) == rows_of(pieces)


def test_items_outside_the_vocabulary_step_as_the_unknown_row(gru):
    stream = Stream(gru, k=10, exclude="seen")
    events = [("ann", f"new{n}", n % 3, T0 + 1000 * n) for n in range(2_500)]
    advanced = stream.send(*events)
    assert np.array_equal(stream.hidden_of("ann"), stepped(gru, [event[1:] for event in events]))
    assert all(len(items) == 10 and set(items) <= set(gru.vocabulary) for items in stream.lists(advanced))


def test_without_a_model_users_get_the_most_popular_items_they_have_not_seen():
    stream = Stream(k=3, exclude="seen")
    stream.send(*[(f"u{n}", f"i{m}", CLICK, T0) for m in range(6) for n in range(10 - m)])
    advanced = stream.send(("ann", "i1", CLICK, T0))
    assert advanced.model_version == POPULARITY
    assert stream.lists(advanced) == [["i0", "i2", "i3"]]
    total = 10 + 9 + 8 + 7 + 6 + 5
    assert np.allclose(advanced.scores[0], [10 / total, 8 / total, 7 / total], rtol=1e-3)
    assert stream.lists(stream.send(("ann", "i3", CLICK, T0))) == [["i0", "i2", "i4"]]


def test_the_very_first_event_without_a_model_gets_an_empty_list():
    stream = Stream(k=3)
    advanced = stream.send(("ann", "x", CLICK, T0))
    assert (stream.lists(advanced), advanced.ranks.tolist()) == ([[]], [-1])


def test_popularity_stays_exact_for_a_user_whose_50_items_are_the_50_most_popular():
    stream = Stream(k=3, exclude="seen")
    stream.send(*[(f"u{n}", f"i{m}", CLICK, T0) for m in range(60) for n in range(70 - m)])
    for m in range(50):
        advanced = stream.send(("ann", f"i{m}", CLICK, T0))
    assert stream.lists(advanced) == [["i50", "i51", "i52"]]


def test_an_empty_batch_does_nothing(gru):
    stream = Stream(gru)
    advanced = stream.send()
    assert (len(advanced.fresh), len(advanced.items), len(stream.arena)) == (0, 0, 0)


def test_a_batch_of_more_users_than_the_arena_had_room_for(gru):
    stream = Stream(gru, exclude="none")
    events = [(f"user{n}", f"i{n % 30}", CLICK, T0) for n in range(5_000)]
    advanced = stream.send(*events)
    assert len(stream.arena) == 5_000
    assert len(advanced.items) == 5_000
    assert np.array_equal(stream.hidden_of("user4321"), stepped(gru, [("i1", CLICK, T0)]))
