import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from models.topk import top_k


def by_sorting(scores, excluded, k):
    """The definition: sort every row by score, then by row number; row 0 and excluded rows stay out."""
    rows, values = np.zeros((len(scores), k), np.int32), np.full((len(scores), k), -np.inf, np.float32)
    for e, line in enumerate(scores):
        out = {0, *excluded[e].tolist()}
        kept = [row for row in range(len(line)) if row not in out and line[row] > -np.inf]
        best = sorted(kept, key=lambda row: (-line[row], row))[:k]
        rows[e, : len(best)], values[e, : len(best)] = best, line[best]
    return rows, values


@given(
    n_rows=st.one_of(st.integers(1, 40), st.integers(120, 140), st.integers(250, 700)),
    k=st.integers(1, 90),
    exclusions=st.integers(0, 60),
    distinct=st.sampled_from([1, 2, 5, 1_000_000]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_is_what_sorting_gives_with_ties_exclusions_and_fewer_rows_than_asked_for(
    n_rows, k, exclusions, distinct, seed
):
    rng = np.random.default_rng(seed)
    scores = (rng.integers(-distinct, distinct + 1, (3, n_rows)) / 8).astype(np.float32)
    scores[rng.random(scores.shape) < 0.05] = -np.inf
    excluded = rng.integers(0, n_rows, (3, exclusions)).astype(np.int32)
    expected_rows, expected_values = by_sorting(scores, excluded, k)
    rows, values = top_k(scores.copy(), excluded, k)
    assert np.array_equal(rows, expected_rows)
    assert np.array_equal(values, expected_values)


def test_best_scores_that_share_a_lane_are_all_found():
    """The kernel folds the row into 128 lanes: the ten best here all fall into one of them."""
    scores = np.arange(2_000, dtype=np.float32)[None, :] / 2_000
    scores[0, 5::128] += 10
    rows, _ = top_k(scores.copy(), np.zeros((1, 0), np.int32), 10)
    assert rows[0].tolist() == list(range(5, 2_000, 128))[-10:][::-1]


def test_nothing_left_to_recommend_is_an_empty_list():
    rows, values = top_k(np.ones((2, 3), np.float32), np.array([[1, 2], [2, 2]], np.int32), 4)
    assert rows.tolist() == [[0, 0, 0, 0], [1, 0, 0, 0]]
    assert values[0].tolist() == [-np.inf] * 4
    rows, _ = top_k(np.ones((0, 3), np.float32), np.zeros((0, 2), np.int32), 4)
    assert rows.shape == (0, 4)


@pytest.mark.parametrize("worst", [-3.4e38, -1e-45, 0.0])
def test_low_scores_are_still_recommended(worst):
    rows, values = top_k(np.full((1, 5), worst, np.float32), np.zeros((1, 0), np.int32), 3)
    assert rows.tolist() == [[1, 2, 3]]
    assert values.tolist() == [[np.float32(worst)] * 3]
