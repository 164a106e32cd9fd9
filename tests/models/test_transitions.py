from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.transition_log import REACH_BACK, pair_place
from models.transition_rows import BACK, HOT, NEXT, REACH, SKIP
from models.transitions import Deltas, Transitions

X = 12


def events(users: np.ndarray, items: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Histories before each event (E, X), newest first, their lengths, and the items."""
    past: dict[int, list[int]] = defaultdict(list)
    histories, lengths = np.zeros((len(items), X), np.int32), np.zeros(len(items), np.int32)
    for e, (user, item) in enumerate(zip(users.tolist(), items.tolist(), strict=True)):
        recent = past[user][::-1][:X]
        histories[e, : len(recent)], lengths[e] = recent, len(recent)
        past[user].append(item)
    return histories, lengths, items.astype(np.int32)


def random_events(n: int, users: int, items: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return events(rng.integers(0, users, n), rng.integers(1, items + 1, n))


def counted(log: tuple[np.ndarray, np.ndarray, np.ndarray]) -> dict[tuple[int, int], np.ndarray]:
    """The plain definition: (from, to) -> next, skip, back."""
    counts: dict[tuple[int, int], np.ndarray] = defaultdict(lambda: np.zeros(3))
    for history, length, item in zip(*log, strict=True):
        if length == 0:
            counts[0, int(item)] += (1, 1, 0)
        for d in range(1, min(int(length), REACH) + 1):
            before = int(history[d - 1])
            counts[before, int(item)] += (d == 1, 1 / d, 0)
            if d <= REACH_BACK:
                counts[int(item), before] += (0, 0, 1 / d)
    return counts


def remembered(memory: Transitions) -> dict[tuple[int, int], np.ndarray]:
    arrays = memory.arrays
    return {
        (row, int(arrays.items[row, s])): arrays.counts[row, s, [NEXT, SKIP, BACK]]
        for row in range(memory.capacity)
        for s in range(arrays.used[row])
    }


def assert_invariants(memory: Transitions) -> None:
    arrays = memory.arrays
    width = arrays.items.shape[1]
    for row in range(memory.capacity):
        used = int(arrays.used[row])
        assert 0 <= used <= width
        items = arrays.items[row]
        assert (items[:used] > 0).all() and (items[used:] == 0).all()
        assert len(set(items[:used].tolist())) == used
        hot = arrays.strength[row, : min(HOT, used)]
        assert (np.diff(hot) <= 0).all()
        strength = arrays.counts[row, :used, SKIP] + arrays.counts[row, :used, BACK] / 2
        np.testing.assert_allclose(arrays.strength[row, :used], strength, rtol=1e-3, atol=1e-4)


def test_counts_what_the_definition_counts_while_rows_have_room():
    log = random_events(3000, 40, 60)
    memory = Transitions(64)
    memory.learn(*log)
    expected, got = counted(log), remembered(memory)
    assert set(got) == set(expected)
    limit = memory.arrays.totals[:, 1].max()
    assert limit < 1000  # below the limit nothing has been halved
    for pair, values in expected.items():
        np.testing.assert_allclose(got[pair], values, rtol=1e-4, err_msg=str(pair))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 90)), min_size=1, max_size=300))
def test_rows_stay_consistent_when_full(pairs):
    log = events(np.array([u for u, _ in pairs]), np.array([i for _, i in pairs]))
    memory = Transitions(128, slots=128 * 48)  # 32 slots a row
    memory.learn(*log)
    assert_invariants(memory)


def test_a_full_row_keeps_its_strong_successors_and_admits_new_ones():
    rng = np.random.default_rng(3)
    memory = Transitions(4096, slots=4096 * 64)
    assert memory.arrays.items.shape[1] == 64
    noise = rng.integers(100, 4000, 6000)
    strong = np.arange(10, 30)
    for start in range(0, 6000, 100):
        batch = np.concatenate([noise[start : start + 100], strong, [4001] if start >= 5000 else []]).astype(np.int32)
        rng.shuffle(batch)
        memory.learn(np.full((len(batch), 1), 5, np.int32), np.ones(len(batch), np.int32), batch)
    kept = memory.successors(5)
    assert len(kept) <= 64
    assert set(strong.tolist()) <= set(kept)
    assert 4001 in kept  # ten events of it, against one each of thousands of others
    hot = set(memory.arrays.items[5, :HOT].tolist())
    assert set(strong.tolist()) <= hot
    assert_invariants(memory)


def test_a_rich_row_counts_far_distances_by_sampling_and_on_average_the_same():
    memory = Transitions(64)
    history = np.array([[1, 2, 3, 4, 5, 6]], np.int32)
    rounds = 390  # 390 adjacent ones stay below the limit at which a row is halved
    for _ in range(rounds):
        memory.learn(history, np.array([6], np.int32), np.array([9], np.int32))
    for distance in range(1, 7):
        counted = memory.successors(distance)[9]
        assert abs(counted - rounds / distance) <= 2, distance
    assert int(memory.arrays.draws[0]) != 0


def test_counts_are_bounded_and_old_habits_fade():
    memory = Transitions(16)
    history, one = np.array([[3]], np.int32), np.ones(1, np.int32)
    for item in (4, 5):
        n = 5000
        memory.learn(np.repeat(history, n, 0), np.repeat(one, n), np.full(n, item, np.int32))
    row = memory.successors(3)
    assert row[5] > 50 * row[4]
    assert memory.arrays.totals[3, :3].max() <= 1001
    assert np.isfinite(memory.arrays.counts).all()


def test_pairs_of_items_are_counted_in_their_order():
    memory = Transitions(16)
    log = events(np.zeros(300, np.int64), np.tile([1, 2, 3, 2, 1, 4], 50))
    memory.learn(*log)
    arrays = memory.arrays

    def after(before: int, last: int) -> set[int]:
        place, tag = pair_place(len(arrays.pair_tag), np.int32(before), np.int32(last))
        assert arrays.pair_tag[place] == tag
        return set(arrays.pair_items[place].tolist()) - {0}

    assert after(1, 2) == {3}
    assert after(3, 2) == {1}
    assert after(2, 1) == {4}


def test_a_pair_place_taken_by_another_pair_is_worn_down_first():
    memory = Transitions(16, pair_places=1)  # every pair collides
    ones, twos = np.array([[1, 2]], np.int32), np.array([[3, 4]], np.int32)
    length = np.array([2], np.int32)
    for _ in range(8):
        memory.learn(ones, length, np.array([5], np.int32))
    memory.learn(twos, length, np.array([6], np.int32))
    assert memory.arrays.pair_items[0, 0] == 5
    for _ in range(6):
        memory.learn(twos, length, np.array([6], np.int32))
    assert memory.arrays.pair_items[0, 0] == 6


def test_merging_an_export_teaches_what_the_events_taught():
    log = random_events(2000, 30, 50, seed=4)
    source, other = Transitions(64), Transitions(64)
    source.learn(*log)
    deltas = source.export()
    assert len(np.unique(np.stack([deltas.before, deltas.after]), axis=1).T) == len(deltas.before)
    other.merge(deltas)
    ours, theirs = remembered(source), remembered(other)
    assert set(ours) == set(theirs)
    for pair, values in ours.items():
        np.testing.assert_allclose(theirs[pair], values, rtol=1e-3, atol=1e-4)
    assert len(source.export().before) == 0  # exported once
    assert len(other.export().before) == 0  # what was merged is not passed on


def test_the_export_of_a_busy_second_teaches_the_same_on_average():
    """Past an eighth of the log far transitions are drawn: sums agree within 2%, those of adjacent ones exactly."""
    log = random_events(4000, 6, 50, seed=4)
    whole, busy = Transitions(64), Transitions(64, log_size=1 << 15)
    for memory in (whole, busy):
        memory.learn(*log)
    assert busy.arrays.logged[0] < 0.6 * whole.arrays.logged[0]
    assert busy.arrays.logged[1] == 0
    every, drawn = whole.export(), busy.export()
    np.testing.assert_allclose(drawn.weights.sum(0), every.weights.sum(0), rtol=0.02)
    adjacent = [dict(zip(zip(d.before, d.after, strict=True), d.weights[:, 1], strict=True)) for d in (every, drawn)]
    assert {pair: n for pair, n in adjacent[0].items() if n} == {pair: n for pair, n in adjacent[1].items() if n}


def test_a_full_log_is_counted_not_overrun():
    memory = Transitions(64, log_size=10)
    memory.learn(*random_events(100, 3, 50))
    assert memory.arrays.logged[0] == 10
    assert memory.arrays.logged[1] > 0
    assert len(memory.export().before) <= 10


def test_merging_skips_items_that_are_unknown_here():
    memory = Transitions(16)
    memory.merge(Deltas(np.array([3], np.int32), np.array([0], np.int32), np.ones((1, 3), np.float32)))
    assert memory.arrays.used.max() == 0


def test_rows_get_narrower_as_the_catalogue_grows_and_keep_the_strongest():
    memory = Transitions(64, slots=64 * 64)
    rng = np.random.default_rng(5)
    items = np.concatenate([np.arange(1, 61), rng.choice([7, 8, 9], 60)]).astype(np.int32)
    memory.learn(np.full((len(items), 1), 2, np.int32), np.ones(len(items), np.int32), items)
    before = memory.successors(2)
    memory.reserve(256)
    assert memory.arrays.items.shape == (256, 16)
    after = memory.successors(2)
    assert {7, 8, 9} <= set(after)
    assert all(after[item] == before[item] for item in after)
    assert_invariants(memory)
    memory.learn(np.array([[200]], np.int32), np.ones(1, np.int32), np.array([255], np.int32))
    assert memory.successors(200) == {255: 1.0}


def test_items_beyond_the_capacity_make_room_by_themselves():
    memory = Transitions(16)
    memory.learn(np.array([[900]], np.int32), np.ones(1, np.int32), np.array([5000], np.int32))
    assert memory.capacity == 8192
    assert memory.successors(900) == {5000: pytest.approx(1.0)}


def test_stored_state_continues_bit_for_bit():
    histories, lengths, items = random_events(2000, 30, 50, seed=6)
    straight, first, second = Transitions(64), Transitions(64), Transitions(64)
    straight.learn(histories, lengths, items)
    first.learn(histories[:900], lengths[:900], items[:900])
    second.load_arrays(first.to_arrays())
    second.learn(histories[900:], lengths[900:], items[900:])
    for ours, theirs in zip(straight.arrays, second.arrays, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("weights", [[65_504, 65_504, 0], [0, 0, 65_504]], ids=["forwards", "backwards"])
def test_a_row_stays_within_its_limit_however_much_is_merged_at_once(weights):
    memory = Transitions(capacity=16)
    memory.merge(Deltas(np.array([3], np.int32), np.array([5], np.int32), np.array([weights], np.float32)))
    assert 0 < memory.arrays.totals.max() <= 1_000
    assert memory.arrays.counts.max() <= 1_000
