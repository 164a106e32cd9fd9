from collections import defaultdict

import numpy as np
import pytest

from models.batches import Fused, Histories, NeuralScores
from models.features import F_NEURAL
from models.fusion import Fusion
from models.kernels import fast_log
from models.transitions import Transitions
from state.errors import StateError

X = 50
Log = tuple[np.ndarray, np.ndarray, np.ndarray, Histories]


def log_of(users: np.ndarray, items: np.ndarray, kinds: np.ndarray | None = None) -> Log:
    past: dict[int, list[int]] = defaultdict(list)
    n = len(items)
    kinds = np.ones(n, np.uint8) if kinds is None else kinds.astype(np.uint8)
    seconds = 1_700_000_000 + 30 * np.arange(n, dtype=np.int64)
    h_items, h_kinds = np.zeros((n, X), np.int32), np.zeros((n, X), np.uint8)
    h_seconds, lengths = np.zeros((n, 2), np.int64), np.zeros(n, np.int32)
    for e, user in enumerate(users.tolist()):
        recent = past[user][::-1][:X]
        lengths[e] = len(recent)
        h_items[e, : len(recent)], h_kinds[e, : len(recent)] = items[recent], kinds[recent]
        h_seconds[e, : min(2, len(recent))] = seconds[recent[:2]]
        past[user].append(e)
    return items.astype(np.int32), kinds, seconds, Histories(h_items, h_kinds, h_seconds, lengths)


def part(log: Log, at: slice) -> Log:
    items, kinds, seconds, h = log
    return items[at], kinds[at], seconds[at], Histories(h.items[at], h.kinds[at], h.seconds[at], h.lengths[at])


def run(fusion: Fusion, log: Log, batch: int, **options: object) -> Fused:
    parts = [
        fusion.process(*part(log, slice(start, start + batch)), **options)  # type: ignore[arg-type]
        for start in range(0, len(log[0]), batch)
    ]
    return Fused(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("items", "scores", "ranks")))


def noisy_walk(n: int, users: int = 40, items: int = 80, seed: int = 0, noise: float = 0.3) -> Log:
    """Each user mostly steps from item i to a fixed successor of i."""
    rng = np.random.default_rng(seed)
    follows = rng.permutation(items) + 1
    last = rng.integers(1, items + 1, users)
    who, what = rng.integers(0, users, n), np.zeros(n, np.int64)
    for e in range(n):
        last[who[e]] = rng.integers(1, items + 1) if rng.random() < noise else follows[last[who[e]] - 1]
        what[e] = last[who[e]]
    return log_of(who, what)


def hit_rate(ranks: np.ndarray, at: int = 10) -> float:
    return float(((ranks > 0) & (ranks <= at)).mean())


def test_learns_a_rule_from_the_stream_and_lists_what_it_ranks():
    log = noisy_walk(4000)
    fused = run(Fusion(), log, 256, test_all=True)
    assert hit_rate(fused.ranks[2000:], 1) > 0.6  # 70% of the steps follow the rule
    assert (fused.scores[:, :-1] >= fused.scores[:, 1:]).all()
    assert (fused.items[100:] > 0).all()
    assert all(len(set(row.tolist())) == 10 for row in fused.items[100:])


@pytest.mark.parametrize("batch", [1, 7, 2000])
def test_how_a_stream_is_cut_into_batches_changes_nothing(batch):
    log = noisy_walk(600)
    expected, got = run(Fusion(), log, 64, test_all=True), run(Fusion(), log, batch, test_all=True)
    np.testing.assert_array_equal(got.items, expected.items)
    np.testing.assert_array_equal(got.scores, expected.scores)
    np.testing.assert_array_equal(got.ranks, expected.ranks)


@pytest.mark.parametrize("rows", [1, 7, 200])
def test_a_batch_may_be_advanced_in_pieces(rows):
    log, number_of_row = noisy_walk(200), np.arange(81, dtype=np.int32)
    scores, top = neural_for(log[0], 81, 2.0, 0)
    whole, pieces = Fusion(), Fusion()
    for fusion in (whole, pieces):
        fusion.set_model(5, number_of_row)
        fusion.events = (1 << 16) - 50  # some events are not tested
    tested = np.flatnonzero(whole.tests(200))
    expected = whole.process(*log, neural=NeuralScores(scores, top, scores[tested], top[tested]))
    batch = pieces.begin(*log)
    for start in range(0, 200, rows):
        stop = min(start + rows, 200)
        tests = tested[(tested >= start) & (tested < stop)]
        neural = NeuralScores(scores[start:stop], top[start:stop], scores[tests], top[tests])
        pieces.advance(batch, stop, neural)
    np.testing.assert_array_equal(batch.fused.items, expected.items)
    np.testing.assert_array_equal(batch.fused.scores, expected.scores)
    np.testing.assert_array_equal(batch.fused.ranks, expected.ranks)
    assert pieces.events == whole.events


def test_the_rank_is_the_place_in_the_list_a_user_would_have_been_shown():
    log = noisy_walk(1500)
    fusion = Fusion()
    checked = 0
    for e in range(1500):
        shown = None
        if e > 1000:
            length = int(log[3].lengths[e])
            if length:  # the same situation, asked again without learning: a copy of everything
                twin = Fusion(Transitions(fusion.capacity))
                twin.load_arrays(fusion.to_arrays())
                before = part(log, slice(e, e + 1))
                rank = twin.process(*before, test_all=True).ranks[0]
                shown = rank
        rank = fusion.process(*part(log, slice(e, e + 1)), test_all=True).ranks[0]
        if shown is not None:
            assert rank == shown
            checked += 1
        if checked == 20:
            return
    pytest.fail("too few events were compared")


def test_adapts_to_users_who_never_repeat_and_to_users_who_do():
    rng = np.random.default_rng(1)
    users, place = np.tile(np.arange(60), 60), np.repeat(np.arange(60), 60)
    never = np.stack([rng.permutation(60) + 1 for _ in range(60)])[users, place]  # each user meets each item once
    log = log_of(users, never)
    lists, past = run(Fusion(), log, 128).items[2400:2700, :5], log[3].items[2400:2700]  # 40 to 45 of 60 items seen
    assert np.mean([np.isin(items, seen[seen > 0]).mean() for items, seen in zip(lists, past, strict=True)]) < 0.05
    favourites = rng.integers(1, 200, (50, 3))
    who = rng.integers(0, 50, 4000)
    fused = run(Fusion(), log_of(who, favourites[who, rng.integers(0, 3, 4000)]), 128, test_all=True)
    assert hit_rate(fused.ranks[2000:], 3) > 0.95


def test_an_item_is_recommended_right_after_its_first_events():
    log = noisy_walk(3000, noise=0.0)
    fusion = Fusion()
    run(fusion, log, 500)
    past = np.zeros((4, X), np.int32)
    past[:, 0] = 5
    histories = Histories(past, np.ones((4, X), np.uint8), np.full((4, 2), 10, np.int64), np.full(4, 1, np.int32))
    fusion.process(np.full(4, 999, np.int32), np.ones(4, np.uint8), np.full(4, 50, np.int64), histories)
    asked = Histories(past[:1] * 0, past[:1].astype(np.uint8) * 0, np.zeros((1, 2), np.int64), np.zeros(1, np.int32))
    fused = fusion.process(np.array([5], np.int32), np.ones(1, np.uint8), np.array([60]), asked)
    assert 999 in fused.items[0]


def test_leaves_out_what_is_blocked_seen_or_purchased():
    rng = np.random.default_rng(2)
    log = log_of(rng.integers(0, 10, 600), rng.integers(1, 40, 600), rng.integers(0, 3, 600))
    items, kinds, _, h = log
    fusion = Fusion()
    fusion.block(np.array([3, 9], np.int32))
    assert not np.isin(run(fusion, log, 100).items, [3, 9]).any()
    fusion.block(np.array([3], np.int32), False)
    assert np.isin(run(fusion, log, 100).items, [3]).any()
    for exclude, matters in (("seen", [0, 1, 2]), ("purchased", [2])):
        fused = run(Fusion(), log, 100, exclude=exclude)
        for e in range(600):
            past = [int(items[e])] if kinds[e] in matters else []
            past += [int(i) for i, k in zip(h.items[e, :49], h.kinds[e, :49], strict=True) if i and k in matters]
            assert not set(past) & set(fused.items[e].tolist())


def neural_for(targets: np.ndarray, rows: int, strength: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal((len(targets), rows)).astype(np.float32)
    scores[np.arange(len(targets)), targets] += strength
    return scores, np.argsort(-scores, axis=1)[:, :20].astype(np.int32)


@pytest.mark.parametrize(("strength", "useful"), [(8.0, True), (0.0, False)])
def test_trusts_a_model_as_far_as_it_helps(strength, useful):
    log = noisy_walk(3000, noise=1.0)  # nothing but the model knows what comes next
    number_of_row = np.concatenate([[0], np.random.default_rng(3).permutation(80) + 1]).astype(np.int32)
    row_of = np.argsort(number_of_row)
    fusion = Fusion()
    fusion.set_model(11, number_of_row)
    ranks = []
    for start in range(0, 3000, 100):
        batch = part(log, slice(start, start + 100))
        scores, top = neural_for(row_of[batch[0]], 81, strength, start)
        neural = NeuralScores(scores, top, scores, top)
        ranks.append(fusion.process(*batch, neural=neural, test_all=True).ranks)
    late = hit_rate(np.concatenate(ranks)[1500:])
    if useful:
        assert late > 0.9
    else:
        assert abs(fusion.weights.values[0, F_NEURAL]) < 0.1
        assert late == pytest.approx(hit_rate(run(Fusion(), log, 100, test_all=True).ranks[1500:]), abs=0.03)


def test_the_neural_weight_belongs_to_a_version_and_comes_back_with_it():
    fusion = Fusion()
    rows = np.arange(30, dtype=np.int32)
    fusion.set_model(1, rows)
    fusion.weights.values[0, F_NEURAL] = 0.7
    fusion.set_model(2, rows)
    assert fusion.weights.values[0, F_NEURAL] == pytest.approx(0.7)  # a successor starts where its parent stood
    fusion.weights.values[0, F_NEURAL] = -0.1
    fusion.set_model(1, rows)
    assert fusion.weights.values[0, F_NEURAL] == pytest.approx(0.7)  # rolled back


def test_a_model_with_items_this_process_has_not_met():
    fusion = Fusion()
    fusion.set_model(1, np.array([0, 5000, 7], np.int32))
    log = log_of(np.zeros(3, np.int64), np.array([7, 8, 7]))
    scores = np.array([[-np.inf, 9.0, 1.0]] * 3, np.float32)
    top = np.array([[1, 2]] * 3, np.int32)
    fused = fusion.process(*log, neural=NeuralScores(scores, top, scores, top), test_all=True)
    assert np.isfinite(fused.scores).all()
    assert 5000 in fused.items[0]


def test_stored_state_continues_bit_for_bit():
    log = noisy_walk(1200)
    straight, first, second = Fusion(), Fusion(), Fusion()
    expected = run(straight, log, 100, test_all=True)
    run(first, part(log, slice(0, 600)), 100, test_all=True)
    second.load_arrays(first.to_arrays())
    got = run(second, part(log, slice(600, 1200)), 100, test_all=True)
    np.testing.assert_array_equal(got.items, expected.items[600:])
    np.testing.assert_array_equal(got.ranks, expected.ranks[600:])


def test_what_another_process_learnt_counts_here():
    log = noisy_walk(3000, noise=0.0)
    teacher, pupil = Fusion(), Fusion()
    run(teacher, log, 300)
    pupil.merge(teacher.transitions.export())
    ranks = run(pupil, noisy_walk(200, noise=0.0), 50, test_all=True).ranks
    assert hit_rate(ranks[40:]) > 0.9
    share = pupil.popularity.shares(np.arange(1, 81, dtype=np.int32), 1e5).sum()
    assert share == pytest.approx(1.0, abs=0.02)


def test_weights_learn_from_every_event_first_and_from_a_sample_later():
    fusion = Fusion()
    assert fusion.tests(1000).all()
    fusion.events = 10_000_000
    sampled = fusion.tests(10_000)
    assert 0 < sampled.mean() < 1
    fused = run(fusion, noisy_walk(1000), 100)
    assert ((fused.ranks > 0) == sampled[:1000]).all()


def test_the_fast_logarithm_is_close():
    x = np.geomspace(1e-9, 1e6, 5000).astype(np.float32)
    logs = np.array([fast_log(v) for v in x])
    np.testing.assert_allclose(logs, np.log(x), atol=2e-4, rtol=0)


def test_state_of_another_format_is_refused():
    stored = Fusion().to_arrays()
    stored["format"] = np.array([1])
    with pytest.raises(StateError, match="format 1"):
        Fusion().load_arrays(stored)
    del stored["format"]  # the first format did not name itself
    with pytest.raises(StateError, match="learnt again"):
        Fusion().load_arrays(stored)


@pytest.mark.parametrize("name", ["weights.values", "popularity.rows", "transitions.totals"])
def test_values_that_are_no_numbers_are_not_taken_over(name):
    stored, fusion = Fusion().to_arrays(), Fusion()
    stored[name][-1] = np.nan
    with pytest.raises(StateError, match=f"{name}: values that are not finite"):
        fusion.load_arrays(stored)
    assert np.isfinite(fusion.to_arrays()[name]).all()
