from collections import deque
from itertools import pairwise

import hypothesis.strategies as st
import numpy as np
from hypothesis import given, settings

from models.history import (
    EXCLUDE_NONE,
    EXCLUDE_PURCHASED,
    EXCLUDE_SEEN,
    Part,
    PopularList,
    append_events,
    distinct,
    rank_in_last,
    take_fresh,
)
from state.arena import Arena

RING = 50
UNLISTED = np.iinfo(np.int32).max
MAX_SECONDS = 2**32 - 1

events = st.lists(
    st.tuples(
        st.integers(0, 3),  # slot
        st.integers(1, 9),  # item
        st.integers(0, 2),  # kind
        st.one_of(st.integers(-5, 10_000_000), st.integers(0, 2**43)),  # time
    ),
    min_size=1,
    max_size=150,
)


def arena_of(users=4, top_k=3):
    arena = Arena(state_size=2, top_k=top_k, capacity=2)
    arena.slots([f"u{n}" for n in range(users)])
    return arena


class Naive:
    """One user, in plain Python."""

    def __init__(self):
        self.ring = deque(maxlen=RING)
        self.all, self.last_ms = [], None

    def excluded(self, policy):
        if policy == EXCLUDE_NONE:
            return set()
        return {item for item, kind, _ in self.ring if policy == EXCLUDE_SEEN or kind == 2}

    def append(self, item, kind, time_ms, policy, ranked, k):
        time_ms = min(max(time_ms, 0), 1000 * MAX_SECONDS)
        gap = 0 if self.last_ms is None else max(time_ms // 1000 - self.last_ms // 1000, 0)
        repeat = item in {seen for seen, _, _ in self.ring}
        shown = [other for other in ranked if other not in self.excluded(policy)][:k]
        rank = shown.index(item) + 1 if item in shown else 0
        self.ring.append((item, kind, time_ms // 1000))
        self.all.append((item, kind))
        self.last_ms = time_ms
        return gap, repeat, self.excluded(policy), rank


@given(
    events=events,
    policy=st.sampled_from([EXCLUDE_NONE, EXCLUDE_PURCHASED, EXCLUDE_SEEN]),
    cuts=st.sets(st.integers(0, 150), max_size=4),
    ranked=st.lists(st.integers(1, 9), unique=True, max_size=9),
    k=st.integers(1, 6),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_histories_gaps_repeats_exclusions_and_popular_ranks_are_those_of_plain_python(events, policy, cuts, ranked, k):
    arena, users = arena_of(), [Naive() for _ in range(4)]
    place_of = np.full(8, UNLISTED, np.int32)  # items 8 and 9 lie beyond it, so they must not be in the list
    ranked = [item for item in ranked if item < 7]
    place_of[ranked] = np.arange(len(ranked))
    popular = PopularList(place_of, len(ranked), k)
    expected = [users[slot].append(item, kind, time, policy, ranked, k) for slot, item, kind, time in events]
    bounds = sorted({0, len(events)} | {cut for cut in cuts if cut < len(events)})
    got = []
    for start, stop in pairwise(bounds):
        slots, items, kinds, times = map(np.array, zip(*events[start:stop], strict=True))
        part = Part(arena, slots.astype(np.int32), slice(0, len(slots)))
        done = append_events(
            [part], items.astype(np.int32), kinds.astype(np.uint8), times.astype(np.int64), np.arange(start, stop),
            policy, popular,
        )  # fmt: skip
        exclusions = [set(row.tolist()) - {0} for row in done.excluded]
        got += zip(done.gaps.tolist(), done.repeats.tolist(), exclusions, done.popular_ranks.tolist(), strict=True)
    assert got == expected

    items, kinds, seconds, length = arena.recent(np.arange(4, dtype=np.int32))
    for slot, user in enumerate(users):
        n = len(user.ring)
        assert length[slot] == n
        assert list(zip(items[slot, :n], kinds[slot, :n], seconds[slot, :n], strict=True)) == list(user.ring)
        assert arena.count[slot] == len(user.all)
        assert arena.kind_counts[slot].tolist() == [sum(kind == k for _, kind in user.all) for k in range(3)]
        assert arena.last_ms[slot] == (-1 if user.last_ms is None else user.last_ms)
        assert arena.dirty[slot] == bool(user.all)
        touched = [n for n, event in enumerate(events) if event[0] == slot]
        assert arena.touched_ms[slot] == (touched[-1] if touched else -1)


def test_a_user_who_bought_one_item_often_is_not_counted_as_having_many():
    """Popularity's rank leaves out distinct items: three purchases of the best one move the second up by one place."""
    arena = arena_of(users=1)
    place_of = np.array([UNLISTED, 0, 1, 2, UNLISTED], np.int32)
    popular = PopularList(place_of, 3, k=2)
    items = np.array([1, 1, 1, 3, 1], np.int32)
    zeros = np.zeros(5, np.int64)
    done = append_events(
        [Part(arena, zeros.astype(np.int32), slice(0, 5))],
        items,
        np.full(5, 2, np.uint8),
        zeros,
        zeros,
        EXCLUDE_PURCHASED,
        popular,
    )
    assert done.popular_ranks.tolist() == [1, 0, 0, 2, 0]


@given(
    events=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 12)), max_size=60),
    cuts=st.sets(st.integers(0, 60), max_size=4),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_an_event_is_fresh_once_however_often_and_in_whatever_batches_it_comes(events, cuts):
    arena, last, expected = arena_of(), {}, []
    for slot, kind, offset in events:
        expected.append(offset > last.get((slot, kind), -1))
        last[slot, kind] = max(offset, last.get((slot, kind), -1))
    bounds = sorted({0, len(events)} | {cut for cut in cuts if cut < len(events)})
    got = []
    for start, stop in pairwise(bounds):
        slots, kinds, offsets = map(np.array, zip(*events[start:stop], strict=True))
        fresh = take_fresh(arena, slots.astype(np.int32), kinds.astype(np.uint8), offsets.astype(np.int64))
        assert (np.diff(fresh) > 0).all()
        got += [i in fresh for i in range(stop - start)]
    assert got == expected
    assert {(s, k): int(arena.offsets[s, k]) for s, k in last} == last


@given(st.lists(st.integers(0, 40), max_size=80))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_distinct_slots_come_in_order_of_appearance_and_the_scratch_is_left_clean(slots):
    scratch = np.zeros(41, np.int32)
    users, user = distinct(np.array(slots, np.int32), scratch)
    assert users.tolist() == list(dict.fromkeys(slots))
    assert users[user].tolist() == slots
    assert not scratch.any()


@given(
    events=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 6), st.booleans(), st.integers(0, 2**31)), max_size=60),
    seed=st.integers(0, 1000),
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_an_event_is_ranked_in_the_list_its_user_was_shown_before_it(events, seed):
    arena, rng = arena_of(users=3), np.random.default_rng(seed)
    lists = np.array([rng.choice(np.arange(1, 7), 3, replace=False) for _ in events], np.int32).reshape(len(events), 3)
    lists[rng.random(lists.shape) < 0.1] = 0
    shown = {}
    for start in range(0, len(events), 7):  # in batches, each of a model of its own
        batch = events[start : start + 7]
        listed = np.array([i for i, (_, _, answered, _) in enumerate(batch) if answered], np.int64)
        slots, items = (np.array([event[field] for event in batch], np.int32) for field in (0, 1))
        ranks, models = rank_in_last(
            [Part(arena, slots, slice(0, len(slots)))], items, lists[start + listed], listed, batch[0][3]
        )
        for i, (slot, item, answered, _) in enumerate(batch):
            before, model = shown.get(slot, ([0, 0, 0], 0))
            rank = before.index(item) + 1 if item in before else (-1 if before[0] == 0 else 0)
            assert (ranks[i], models[i]) == (rank, model)
            if answered:
                shown[slot] = lists[start + i].tolist(), batch[0][3]
