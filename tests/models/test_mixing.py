import numpy as np
import pytest

from models.features import FEATURES, MIXTURE
from models.kernels import padded
from models.mixing import SELECTOR_SIZES, UNITS, Weights, adapt, probabilities, rank, score, take_top

N, COLUMNS = 21, 48
CHOSEN = np.cumsum([0, *SELECTOR_SIZES[:-1]]).astype(np.int32)


def random_weights(seed: int = 0) -> Weights:
    rng = np.random.default_rng(seed)
    weights = Weights.fresh()
    for values in (weights.values, weights.inputs, weights.outputs):
        values[:] = rng.normal(0, 0.3, values.shape)
    return weights


def features(seed: int = 0) -> np.ndarray:
    f = np.zeros((len(FEATURES), COLUMNS), np.float32)
    f[:, : padded(N)] = np.random.default_rng(seed).normal(0, 1, (len(FEATURES), padded(N)))
    return f


def scored(weights: Weights, f: np.ndarray, n: int = N) -> tuple[np.ndarray, np.ndarray]:
    scores, units = np.zeros(COLUMNS, np.float32), np.zeros((UNITS, COLUMNS), np.float32)
    score(
        scores,
        units,
        f,
        weights.values,
        weights.inputs,
        weights.outputs,
        CHOSEN,
        np.zeros(len(FEATURES), np.float32),
        n,
    )
    return scores, units


def scratch() -> np.ndarray:
    return np.zeros((UNITS + 1, len(FEATURES) + 1), np.float32)


def plain_scores(weights: Weights, f: np.ndarray) -> np.ndarray:
    f = f[:, :N].astype(np.float64)
    units = np.maximum(weights.inputs[:, :-1] @ f + weights.inputs[:, -1:], 0)
    return weights.values[CHOSEN].sum(axis=0) @ f + weights.outputs @ units


def log_probability(weights: Weights, f: np.ndarray, target: int) -> float:
    s = plain_scores(weights, f)
    return float(s[target] - s.max() - np.log(np.exp(s - s.max()).sum()))


def test_scores_are_the_sum_of_the_chosen_weights_and_the_network():
    weights, f = random_weights(), features()
    np.testing.assert_allclose(scored(weights, f)[0][:N], plain_scores(weights, f), rtol=1e-4, atol=1e-4)


def test_fresh_weights_are_the_plain_mixture():
    f = features()
    np.testing.assert_array_equal(scored(Weights.fresh(), f)[0][:N], f[MIXTURE, :N])


def test_probabilities_are_a_softmax_and_nothing_past_the_candidates():
    scores = scored(random_weights(), features())[0]
    expected = np.exp(scores[:N] - scores[:N].max())
    probabilities(scores, N)
    np.testing.assert_allclose(scores[:N], expected / expected.sum(), rtol=1e-3)
    assert (scores[N : padded(N)] == 0).all()


def test_ranks_count_ties_by_half():
    scores = np.array([3, 1, 2, 2, 2, 9], np.float32)
    assert [rank(scores, 5, k) for k in range(5)] == [1, 5, 3, 3, 3]  # the sixth is no candidate


def test_a_step_goes_along_the_gradient_of_the_log_probability():
    weights, f, target = random_weights(1), features(1), 4
    before = Weights(**weights.copied())
    scores, units = scored(weights, f)
    adapt(scores, units, f, weights, CHOSEN, scratch(), N, target)
    parts = (
        (before.values, weights.values, before.squares, weights.squares),
        (before.inputs, weights.inputs, before.input_squares, weights.input_squares),
        (before.outputs, weights.outputs, before.output_squares, weights.output_squares),
    )
    checked = 0
    for old, new, old_squares, new_squares in parts:
        gradient = np.sqrt(np.maximum(new_squares - old_squares, 0)) * np.sign(new - old)
        places = [place for place in np.ndindex(*old.shape) if old is not before.values or place[0] in CHOSEN]
        untouched = np.ones(old.shape, bool)
        for place in places:
            untouched[place] = False
            kept = old[place]
            ends = []
            for step in (1e-3, -1e-3):
                old[place] = kept + step
                ends.append(log_probability(before, f, target))
            old[place] = kept
            assert gradient[place] == pytest.approx((ends[0] - ends[1]) / 2e-3, abs=4e-3), place
            checked += 1
        assert (new[untouched] == old[untouched]).all()  # other situations' weights
    assert checked == len(FEATURES) * len(CHOSEN) + UNITS * (len(FEATURES) + 1) + UNITS


def test_learns_what_no_weighted_sum_can_say():
    """The next item is the one whose first feature is farthest from 0, to either side."""
    rng = np.random.default_rng(2)
    late = {}
    for network in (True, False):
        weights, hits = Weights.fresh(), []
        if not network:
            weights.output_squares[:] = 1e30
        for _ in range(3000):
            f = np.zeros((len(FEATURES), COLUMNS), np.float32)
            f[1, :N] = rng.normal(0, 1, N)
            target = int(np.abs(f[1, :N]).argmax())
            scores, units = scored(weights, f)
            hits.append(rank(scores, N, target) <= 3)
            adapt(scores, units, f, weights, CHOSEN, scratch(), N, target)
        late[network] = np.mean(hits[2000:])
    assert late[True] > 0.9
    assert late[False] < 0.7


def test_frozen_weights_stay():
    weights, f = random_weights(), features()
    weights.freeze()
    before = weights.copied()
    for target in range(N):
        adapt(*scored(weights, f), f, weights, CHOSEN, scratch(), N, target)
    for name in ("values", "inputs", "outputs"):
        np.testing.assert_array_equal(getattr(weights, name), before[name])


@pytest.mark.parametrize("seed", range(5))
def test_the_top_is_best_first_and_ties_go_to_the_lower_number(seed):
    rng = np.random.default_rng(seed)
    candidates = rng.permutation(60)[:30].astype(np.int32) + 1
    probability = rng.choice([0.0, 0.1, 0.2, 0.3, 0.4], 30).astype(np.float32)
    blocked = (rng.random(61) < 0.2).astype(np.uint8)
    items, scores = np.zeros((2, 8), np.int32), np.zeros((2, 8), np.float32)
    take_top(candidates, np.pad(probability, (0, padded(30) - 30)), 30, blocked, items, scores, 1)
    allowed = [(-p, i) for p, i in zip(probability, candidates, strict=True) if p > 0 and not blocked[i]]
    expected = sorted(allowed)[:8]
    assert items[1, : len(expected)].tolist() == [i for _, i in expected]
    assert (items[1, len(expected) :] == 0).all()
    assert (items[0] == 0).all()
