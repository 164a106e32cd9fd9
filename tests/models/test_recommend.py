from collections import defaultdict, deque

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from models.fusion import Fusion
from models.recommend import POPULARITY, Recommender
from models.serving import ServingModel, gap_feature
from state.arena import Arena
from state.events import CLICK, PURCHASE, VIEW, EventBatch
from state.items import ItemIndex
from state.store import UserStore

T0 = 1_700_000_000_000


class Stream:
    """A recommender with one partition, fed (user, item, kind, time_ms) tuples; offsets are counted by kind."""

    def __init__(self, model=None, k=5, **options):
        self.recommender = Recommender(ItemIndex(), k=k, **options)
        if model is not None:
            self.recommender.swap(model)
        self.store = UserStore(Arena(self.recommender.state_size, k, capacity=2), self.recommender.items)
        self.next_offset = [0, 0, 0]

    @property
    def arena(self):
        return self.store.arena

    def send(self, *events):
        users, items, kinds, times = zip(*events, strict=True) if events else ([], [], [], [])
        offsets = []
        for kind in kinds:
            offsets.append(self.next_offset[kind])
            self.next_offset[kind] += 1
        return self.recommender.advance(
            self.store,
            EventBatch(
                list(users), list(items), np.array(kinds, np.uint8), np.array(times, np.int64),
                np.array(offsets, np.int64), np.array(times, np.int64) + 7,
            ),
        )  # fmt: skip

    def lists(self, advanced):
        ids = self.recommender.items.ids
        return [[ids[number] for number in row if number] for row in advanced.items.tolist()]

    def hidden_of(self, user):
        return self.arena.hidden[self.arena.find(user)]


def random_events(rng, n, users=4, items=12, kinds=3):
    times = T0 + rng.integers(0, 10**9, n)
    return [
        (f"u{u}", f"i{i}", int(k), int(t))
        for u, i, k, t in zip(
            rng.integers(0, users, n), rng.integers(0, items, n), rng.integers(0, kinds, n), times, strict=True
        )
    ]


@pytest.fixture(scope="module")
def gru(build_version):
    return ServingModel.from_version(build_version()[1])


@pytest.fixture(scope="module")
def lstm(build_version):
    return ServingModel.from_version(build_version("lstm", 6, 4, fingerprint=78)[1])


def expected_list(model, hidden, history, left_out, k):
    """The definition of a list: every item's score, the excluded ones out, best first."""
    output = hidden[None, : len(model.projection)].astype(np.float32)  # an LSTM's state is h, then c
    recent = np.zeros((1, len(model.repeats)), np.int32)
    recent[0, : len(history)] = [model.vocabulary.index(item) if item in model.vocabulary else 0 for item in history]
    scores = dict(zip(model.vocabulary[1:], model.scores(output, recent)[0, 1:].tolist(), strict=True))
    kept = sorted((item for item in scores if item not in left_out), key=lambda item: -scores[item])[:k]
    return kept, [scores[item] for item in kept]


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
    assert not stream.recommender._blocked[stream.recommender.items.number(before[0])]


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


def rows_of(stream):
    users = sorted(user for user in stream.arena.users if user)
    slots = stream.arena.slots(users)
    rows = stream.arena.to_rows(slots, stream.recommender.items)
    return {user: row.tobytes() for user, row in zip(users, rows, strict=True)}


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


def stepped(model, events):
    """The state after (item, kind, time_ms) events from zero, by the model alone."""
    row_of = {item: row for row, item in enumerate(model.vocabulary) if row}
    seconds = np.array([time_ms // 1000 for _, _, time_ms in events])
    gaps = np.diff(seconds, prepend=seconds[0])
    state = np.zeros((1, model.state_size), np.float32)
    model.steps(
        state,
        np.zeros(len(events), np.int32),
        np.array([row_of.get(item, 0) for item, _, _ in events], np.int32),
        np.array([kind for _, kind, _ in events], np.uint8),
        gap_feature(gaps),
    )
    return state[0].astype(np.float16)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("n", [1, 49, 50, 51, 137])
def test_rehydration_is_stepping_the_last_50_events_from_zero(request, cell, n):
    model, stream = request.getfixturevalue(cell), Stream()
    events = random_events(np.random.default_rng(n), n, users=1)
    stream.send(*events)
    stream.recommender.swap(model)
    advanced = stream.send(("u0", "i5", VIEW, T0 + 2 * 10**9))
    assert advanced.rehydrated == 1
    history = [event[1:] for event in events][-50:]
    assert np.array_equal(stream.hidden_of("u0"), stepped(model, [*history, ("i5", VIEW, T0 + 2 * 10**9)]))
    assert stream.arena.model[stream.arena.find("u0")] == model.fingerprint
    assert stream.send(("u0", "i6", VIEW, T0 + 3 * 10**9)).rehydrated == 0


def test_rehydrating_many_users_in_the_background_gives_the_same_vectors(gru):
    stream = Stream()
    events = random_events(np.random.default_rng(8), 300, users=9)
    stream.send(*events)
    stream.recommender.swap(gru)
    stream.arena.resize_state(gru.state_size)
    stream.recommender.rehydrate(stream.arena, stream.arena.slots([f"u{n}" for n in range(9)]))
    for n in range(9):
        mine = [event[1:] for event in events if event[0] == f"u{n}"][-50:]
        assert np.array_equal(stream.hidden_of(f"u{n}"), stepped(gru, mine))


def test_a_swap_to_another_vocabulary_width_and_cell_serves_it_at_once(gru, build_version):
    stream = Stream(gru, exclude="none")
    events = random_events(np.random.default_rng(9), 40, users=2)
    stream.send(*events)
    words = ["", *(f"j{n}" for n in range(10)), "i3"]
    other = ServingModel.from_version(build_version("lstm", 11, 3, words, seed=5, fingerprint=99)[1])
    stream.recommender.swap(other)
    advanced = stream.send(("u0", "i3", CLICK, T0 + 10**10), ("new", "j1", CLICK, T0))
    assert (advanced.model_version, advanced.rehydrated) == (other.name, 1)
    assert stream.arena.hidden.shape[1] == 22
    mine = [event[1:] for event in events if event[0] == "u0"]
    assert np.array_equal(stream.hidden_of("u0"), stepped(other, [*mine, ("i3", CLICK, T0 + 10**10)]))
    assert np.array_equal(stream.hidden_of("new"), stepped(other, [("j1", CLICK, T0)]))
    assert all(set(items) <= set(words) for items in stream.lists(advanced))
    assert stream.arena.model[stream.arena.find("u1")] == 0  # another width: rebuilt at that user's next event
    assert stream.send(("u1", "j1", CLICK, T0 + 10**10)).rehydrated == 1


def test_a_swap_between_versions_of_one_shape_rebuilds_only_users_with_events(gru, build_version):
    stream = Stream(gru)
    stream.send(("a", "i1", CLICK, T0), ("b", "i2", CLICK, T0))
    kept = stream.hidden_of("b").copy()
    newer = ServingModel.from_version(build_version(seed=6, fingerprint=100)[1])
    stream.recommender.swap(newer)
    assert stream.send(("a", "i2", CLICK, T0 + 5000)).rehydrated == 1
    assert np.array_equal(stream.hidden_of("a"), stepped(newer, [("i1", CLICK, T0), ("i2", CLICK, T0 + 5000)]))
    assert np.array_equal(stream.hidden_of("b"), kept)
    assert stream.arena.model[stream.arena.find("b")] == gru.fingerprint


def test_a_duplicate_does_not_rehydrate_or_answer(gru, build_version):
    stream = Stream(gru)
    stream.send(("a", "i1", CLICK, T0))
    before = rows_of(stream)
    stream.recommender.swap(ServingModel.from_version(build_version(seed=6, fingerprint=100)[1]))
    stream.next_offset = [0, 0, 0]
    advanced = stream.send(("a", "i1", CLICK, T0))
    assert (len(advanced.fresh), len(advanced.items), advanced.rehydrated) == (0, 0, 0)
    assert rows_of(stream) == before


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
