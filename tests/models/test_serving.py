import numpy as np
import pytest
import torch

from models.network import GAP_SCALE, RECENT
from models.repeats import LastItems
from models.serving import ServingModel, gap_feature

SHAPES = [("gru", 8, 5), ("gru", 7, 3), ("gru", 31, 16), ("lstm", 8, 5), ("lstm", 9, 4)]


def random_events(rng, n, items=31, longest_gap=10**7):
    return (
        rng.integers(0, items, n).astype(np.int32),
        rng.integers(0, 3, n).astype(np.uint8),
        np.exp(rng.uniform(0, np.log(longest_gap), n)).astype(np.int64),
    )


def test_the_gap_feature_is_the_networks():
    gaps = np.array([0, 1, 59, 86_400, 10**9, -5], np.int64)
    expected = np.log1p(np.maximum(gaps, 0)) / GAP_SCALE
    assert np.allclose(gap_feature(gaps), expected, atol=1e-6)
    assert gap_feature(gaps).dtype == np.float32
    assert gap_feature(np.array([-(2**62)]))[0] == 0


@pytest.mark.parametrize(("cell", "hidden", "embedding"), SHAPES)
def test_steps_and_scores_are_the_networks_over_whole_sequences(build_version, cell, hidden, embedding):
    """Hidden vectors within 2e-3 and scores within 5e-3 of the largest: each step rounds to 11 bits, 60 steps."""
    network, version = build_version(cell, hidden, embedding)
    model = ServingModel.from_version(version)
    users, steps = 3, 60
    rng = np.random.default_rng(5)
    items, kinds, gaps = random_events(rng, users * steps)
    shape = (users, steps)
    with torch.no_grad():
        network.cell.weight_hh_l0.mul_(hidden**-0.5)  # contracting, as trained cells are
        version.weights["cell.weight_hh_l0"] = network.cell.weight_hh_l0
        model = ServingModel.from_version(version)
        outputs, end = network.sequence(
            torch.from_numpy(items.reshape(shape)).long(),
            torch.from_numpy(kinds.reshape(shape)).long(),
            torch.from_numpy(gaps.reshape(shape)),
        )
        recent = rng.integers(0, 31, (*shape, RECENT)).astype(np.int32)
        expected_scores = network.scores(outputs, torch.from_numpy(recent).long()).numpy()
    order = np.arange(users * steps).reshape(shape).T.reshape(-1)  # users' events interleaved
    state = np.zeros((users, model.state_size), np.float32)
    user = (order // steps).astype(np.int32)
    after = model.steps(state, user, items[order], kinds[order], gap_feature(gaps[order]))
    got = np.empty((users * steps, hidden), np.float32)
    got[order] = after
    assert np.abs(got.reshape(users, steps, hidden) - outputs.numpy()).max() < 2e-3
    assert np.abs(state - end.numpy()).max() < 2e-3 * max(1.0, np.abs(end.numpy()).max())
    scores = model.scores(got, LastItems.of_rows(recent.reshape(-1, RECENT))).reshape(expected_scores.shape)
    assert np.allclose(scores[..., 1:], expected_scores[..., 1:], atol=5e-3 * np.abs(expected_scores[..., 1:]).max())


@pytest.mark.parametrize(("cell", "hidden", "embedding"), SHAPES)
def test_scores_of_a_given_hidden_vector_are_the_networks(build_version, cell, hidden, embedding):
    network, version = build_version(cell, hidden, embedding)
    model = ServingModel.from_version(version)
    vectors = np.random.default_rng(6).uniform(-1, 1, (9, hidden)).astype(np.float32)
    recent = np.random.default_rng(7).integers(0, 31, (9, RECENT)).astype(np.int32)
    with torch.no_grad():
        expected = network.scores(torch.from_numpy(vectors), torch.from_numpy(recent).long()).numpy()[:, 1:]
    for n in (0, 1, 2, 9):
        assert np.allclose(
            model.scores(vectors[:n], LastItems.of_rows(recent[:n]))[:, 1:], expected[:n], rtol=1e-5, atol=1e-4
        )


def test_one_vector_scores_the_same_alone_as_among_others(build_version):
    _, version = build_version(hidden=16, embedding=8, vocabulary=["", *(f"i{n}" for n in range(400))])
    model = ServingModel.from_version(version)
    vectors = np.random.default_rng(7).uniform(-1, 1, (33, 16)).astype(np.float32)
    recent = np.random.default_rng(8).integers(0, 401, (33, RECENT)).astype(np.int32)
    together = model.scores(vectors, LastItems.of_rows(recent))
    alone = np.concatenate([model.scores(vectors[i : i + 1], LastItems.of_rows(recent[i : i + 1])) for i in range(33)])
    assert np.allclose(together[:, 1:], alone[:, 1:], rtol=0, atol=1e-4)


def test_loading_leaves_the_versions_weights_alone_and_keeps_what_identifies_it(build_version):
    _, version = build_version("lstm", 6, 4)
    before = {name: tensor.clone() for name, tensor in version.weights.items()}
    model = ServingModel.from_version(version)
    model.steps(
        np.zeros((1, 12), np.float32), np.zeros(3, np.int32), np.ones(3, np.int32), np.zeros(3, np.uint8),
        np.zeros(3, np.float32),
    )  # fmt: skip
    assert all(torch.equal(before[name], tensor) for name, tensor in version.weights.items())
    assert (model.name, model.number, model.fingerprint, model.cell) == (version.name, 1, version.fingerprint, "lstm")
    assert model.state_size == 12
    assert model.vocabulary == version.vocabulary
