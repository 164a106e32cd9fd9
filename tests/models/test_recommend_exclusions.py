import time

import numpy as np
import pytest

from models.fusion import Fusion
from state.events import CLICK, VIEW
from tests.models.recommending import T0, Stream, expected_list, random_events


def test_auto_leaves_seen_items_out_until_one_event_in_a_hundred_repeats(gru):
    stream = Stream(gru, exclude="auto")
    for n in range(30):
        shown = stream.lists(stream.send(("ann", f"i{n % 20}", VIEW, T0 + n))) if n < 20 else []
        assert all(f"i{m}" not in items for items in shown for m in range(n + 1))
    assert stream.recommender.exclusion.repeat_share == 0.0
    advanced = stream.send(*[("ann", "i3", VIEW, T0 + 100 + n) for n in range(5)])
    assert stream.recommender.exclusion.repeat_share == pytest.approx(5 / 25)
    advanced = stream.send(("ann", "i3", VIEW, T0 + 200))
    everything, _ = expected_list(
        gru, stream.hidden_of("ann"), ["i3"] * 6 + [f"i{n}" for n in range(19, -1, -1)], set(), 5
    )
    assert stream.lists(advanced) == [everything]


def test_auto_forgets_repeats_that_were_long_ago(gru):
    stream = Stream(exclude="auto", latest_only=True)
    stream.send(("ann", "x", VIEW, T0), ("ann", "x", VIEW, T0))
    for start in range(0, 60_000, 6_000):
        stream.send(*[(f"u{n}", "x", VIEW, T0) for n in range(start, start + 6_000)])
    assert stream.recommender.exclusion.repeat_share < 0.01


@pytest.mark.parametrize("with_model", [True, False])
def test_blocked_items_are_never_shown_and_come_back_when_unblocked(gru, with_model):
    stream = Stream(gru if with_model else None, k=4, exclude="none")
    crowd = [(f"u{n}", f"i{m}", CLICK, T0) for m in range(8) for n in range(20 - m)]
    stream.send(*crowd)
    before = stream.lists(stream.send(("ann", "i20", CLICK, T0)))[0]
    stream.recommender.block(before[0])
    stream.recommender.block(before[2])
    after = stream.lists(stream.send(("ann", "i20", CLICK, T0)))[0]
    assert not {before[0], before[2]} & set(after)
    assert len(after) == 4
    stream.recommender.block(before[0], blocked=False)
    assert before[2] not in stream.lists(stream.send(("ann", "i20", CLICK, T0)))[0]
    assert stream.recommender.popularity.blocked.tolist() == [stream.recommender.items.number(before[2])]


def test_a_model_alone_leaves_out_any_number_of_blocked_items(gru):
    stream, rng, blocked = Stream(gru, k=4, exclude="none"), np.random.default_rng(3), set()
    for n in range(40):
        for item in (f"i{number}" for number in rng.integers(0, 32, 6)):  # i30 and i31 are in no vocabulary
            out = bool(rng.random() < 0.6)
            stream.recommender.block(item, out)
            (blocked.add if out else blocked.discard)(item)
        if n == 20:
            stream.recommender.swap(gru)
        shown = stream.send(("ann", f"i{n % 30}", CLICK, T0 + n))
        history = [f"i{m % 30}" for m in range(n, -1, -1)]
        assert stream.lists(shown)[0] == expected_list(gru, stream.hidden_of("ann"), history, blocked, 4)[0]


def test_items_blocked_before_a_model_is_swapped_in_stay_blocked(gru):
    stream = Stream(exclude="none")
    for n in range(2_000):  # numbers beyond every array's first size
        stream.recommender.items.number(f"other{n}")
    for n in range(25):
        stream.recommender.block(f"i{n}")
    stream.recommender.swap(gru)
    assert sorted(stream.lists(stream.send(("ann", "i1", CLICK, T0)))[0]) == [f"i{n}" for n in range(25, 30)]
    stream.recommender.block("never seen by any model")
    assert len(stream.lists(stream.send(("ann", "i1", CLICK, T0 + 1)))[0]) == 5


def test_items_of_restored_histories_are_not_shown_before_something_names_them():
    """A record holds hashes; a worker that restored it knows no ids of them, and the fused lists look at histories."""
    before = Stream(exclude="none", fusion=Fusion())
    before.send(*[("ann", f"i{n % 6}", VIEW, T0 + 1000 * n) for n in range(30)])
    after = Stream(exclude="none", fusion=Fusion())
    rows = before.arena.to_rows(before.arena.slots(["ann"]), before.recommender.items)
    after.arena.load_rows(["ann"], rows, after.recommender.items)
    assert after.recommender.items.ids[1] is None
    after.next_offset = [0, 30, 0]
    advanced = after.send(("ann", "new", VIEW, T0 + 10**6))
    assert after.lists(advanced) == [["new"]]
    assert advanced.scores[0, 1:].tolist() == [-np.inf] * 4
    for named in ("i4", "i0", "i1"):  # by the catalogue; i2 and i5 stay unnamed
        after.recommender.items.number(named)
    advanced = after.send(("bob", "i3", VIEW, T0 + 10**6), ("ann", "new", VIEW, T0 + 2 * 10**6))
    shown = after.lists(advanced)[1]
    assert None not in shown
    assert set(shown) <= {"new", "i0", "i1", "i3", "i4"}
    assert len(shown) >= 3  # five of the seven candidates have a name


def test_an_event_takes_no_longer_because_many_items_are_blocked():
    """20,000 blocked ones used to take 40 times as long as none."""
    seconds = {}
    for blocked in (0, 20_000):
        stream = Stream(k=10, exclude="seen")
        stream.recommender.items.numbers([f"i{n}" for n in range(40_000)])
        for n in range(blocked):
            stream.recommender.block(f"i{n}")
        events = [(f"u{n % 50}", f"i{n * 7919 % 40_000}", CLICK, T0 + n) for n in range(1_000)]
        times = []
        for _ in range(8):
            began = time.perf_counter()
            stream.send(*events)
            times.append(time.perf_counter() - began)
        seconds[blocked] = min(times[1:])  # at the first nothing is popular yet
    assert seconds[20_000] < 4 * seconds[0]


def withdrawn(model, k, blocked):
    """The list of a new user of a stream whose most popular items are blocked, and how many others there are."""
    stream, items = Stream(model, k=k, exclude="seen", fusion=Fusion()), 200
    stream.send(*[(f"u{n % 40}", f"i{n % items}", VIEW, T0 + n) for n in range(2 * items)])
    stream.send(*[(f"w{n % 40}", f"i{n % blocked}", VIEW, T0 + 1000 + n) for n in range(400)])
    for n in range(blocked):
        stream.recommender.block(f"i{n}")
    advanced = stream.send(("ann", "brand new", VIEW, T0 + 5000))
    assert (np.diff(advanced.scores[0]) <= 0).all()
    return stream.lists(advanced)[0]


@pytest.mark.parametrize("with_model", [True, False])
def test_lists_are_as_long_as_asked_for_although_all_popular_items_are_blocked(gru, with_model):
    """What the memories put forward for a new user are the ten most popular items and the model's ten best."""
    shown = withdrawn(gru if with_model else None, k=10, blocked=25)
    assert len(set(shown)) == 10
    assert not {f"i{n}" for n in range(25)} & set(shown)


@pytest.mark.parametrize("with_model", [True, False])
def test_long_lists_are_filled_up(gru, with_model):
    shown = withdrawn(gru if with_model else None, k=60, blocked=3)
    assert len(set(shown)) == 60
    assert not {"i0", "i1", "i2", "brand new"} & set(shown)
    if with_model:  # the whole vocabulary stands before items that are popular only
        assert {f"i{n}" for n in range(3, 30)} <= set(shown)


@pytest.mark.parametrize("exclude", ["none", "seen"])
def test_filled_lists_hold_no_item_twice_and_those_answered_alone_are_the_same(gru, exclude):
    events = random_events(np.random.default_rng(6), 120, users=5, items=25)
    every = Stream(gru, k=20, exclude=exclude, fusion=Fusion())
    latest = Stream(gru, k=20, exclude=exclude, fusion=Fusion(), latest_only=True)
    for start in range(0, 120, 30):
        whole, few = every.send(*events[start : start + 30]), latest.send(*events[start : start + 30])
        lists = every.lists(whole)
        assert all(len(items) == len(set(items)) for items in lists)
        assert exclude == "seen" or all(len(items) == 20 for items in lists)
        assert latest.lists(few) == [lists[n] for n in few.listed]
