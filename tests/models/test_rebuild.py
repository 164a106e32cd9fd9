import numpy as np
import pytest

from models.rebuild import replay
from models.serving import ServingModel, gap_feature


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("users", [1, 9])
def test_waves_give_the_vectors_of_single_steps(build_version, cell: str, users: int) -> None:
    words = ["", *(f"i{n}" for n in range(20))]
    model = ServingModel.from_version(build_version(cell, hidden=12, vocabulary=words)[1])
    rng = np.random.default_rng(3)
    lengths = rng.integers(0, 30, users)
    shape = users, 40
    rows, kinds = rng.integers(0, 21, shape).astype(np.int32), rng.integers(0, 3, shape).astype(np.uint8)
    gaps = gap_feature(rng.integers(0, 9_999, shape))
    user, step = np.nonzero(np.arange(40) < lengths[:, None])
    expected = np.zeros((users, model.state_size), np.float32)
    model.steps(expected, user.astype(np.int32), rows[user, step], kinds[user, step], gaps[user, step])
    made = replay(model, rows, kinds, gaps, lengths)
    np.testing.assert_allclose(made, expected, atol=2e-3)
    np.testing.assert_array_equal(made, made.astype(np.float16))


def test_users_without_events_are_zero(build_version) -> None:
    model = ServingModel.from_version(build_version()[1])
    nothing = np.zeros((3, 50), np.int32)
    made = replay(model, nothing, nothing.astype(np.uint8), nothing.astype(np.float32), np.zeros(3, np.int64))
    assert made.shape == (3, 8) and not made.any()
