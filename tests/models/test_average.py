"""What passes hand on: averages of weights, moments, and rows of items that come and go."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.average import BY_ROW, GROWN, Average, Carried, forget_others
from models.network import Network, NetworkConfig
from models.training import Trainer
from models.training_settings import PASS_AFTER_PASS
from models.vocabulary import VocabularySettings, grow, transplant
from state.errors import StateError
from tests.models.learning import a_buffer, feed, stream
from tests.models.test_training import ITEMS, cycling

SETTINGS = replace(PASS_AFTER_PASS, window=10, batch_steps=40, batches=1, learning_rate=0.01)


def a_network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return Network(NetworkConfig(ITEMS, hidden=16, embedding=8, dropout=0.0)).eval()


def one_pass(network: Network, carried: Carried | None = None, seed: int = 0) -> Carried:
    source = cycling()
    trainer = Trainer(network, source.counts(ITEMS), 1, seed, SETTINGS, carried=carried)
    trainer.epoch(source, lambda share, loss: False)
    left = trainer.conclude()
    assert left is not None
    return left


def test_a_pass_without_anything_to_foretell_hands_nothing_on():
    source, network = cycling(), a_network()
    before = weights(network)
    trainer = Trainer(network, source.counts(ITEMS), 1, 0, SETTINGS)
    trainer.epoch(source, lambda share, loss: False, np.zeros(len(source), np.bool_))
    assert trainer.conclude() is None
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def weights(network: Network) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def test_the_average_is_the_textbook_one_where_items_are_old():
    network = a_network()
    average = Average(network, kept=0.9)
    expected = weights(network)
    for step in range(5):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(step + 1)
        average.update()
        for name, parameter in network.named_parameters():
            expected[name] = 0.9 * expected[name] + 0.1 * parameter.detach()
    average.serve()
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-5)


def test_a_new_item_is_averaged_over_its_own_life_only():
    network = a_network()
    ages = torch.full((ITEMS,), GROWN)
    ages[3] = 0
    average = Average(network, kept=0.998, ages=ages)
    before = weights(network)
    for _ in range(20):
        with torch.no_grad():
            network.item_embedding.weight.add_(0.1)
        average.update()
    average.serve()
    moved = (network.item_embedding.weight - before["item_embedding.weight"]).mean(1)
    assert moved[3] > 0.7  # of the 2.0 that the weights moved, most of it lately
    assert moved[4] < 0.1
    assert average.ages.tolist() == (ages + 20).tolist()


def test_a_pass_goes_on_where_the_last_one_ended():
    """Two passes with what is carried differ from two without it, and train the weights that were in training."""
    network = a_network()
    left = one_pass(network)
    assert left.steps > 0
    assert not torch.equal(left.weights["projection.weight"], network.projection.weight)  # the average serves
    source = cycling()
    again = Trainer(copy.deepcopy(network), source.counts(ITEMS), 1, 1, SETTINGS, carried=left)
    assert torch.equal(again.network.projection.weight, left.weights["projection.weight"])
    moments = again._optimizer.state[again.network.projection.weight]
    assert torch.equal(moments["exp_avg"], left.first["projection.weight"])
    assert float(moments["step"]) == left.steps
    after = one_pass(network, left, seed=1)
    assert after.steps == 2 * left.steps


def test_a_checkpoint_within_a_pass_holds_the_average(tmp_path: Path):
    source = cycling()
    whole = a_network()
    expected = one_pass(whole)
    trainer = Trainer(a_network(), source.counts(ITEMS), 1, 0, SETTINGS)
    seen = 0

    def stop(share: float, loss: float) -> bool:
        nonlocal seen
        seen += 1
        if seen == 3:
            torch.save(trainer.state(), tmp_path / "state.pt")
        return seen == 3

    trainer.epoch(source, stop)
    resumed = Trainer(a_network(5), source.counts(ITEMS), 1, 0, SETTINGS)
    resumed.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    resumed.epoch(source, lambda share, loss: False)
    left = resumed.conclude()
    assert left is not None
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in resumed.network.state_dict().items())
    assert all(torch.equal(left.weights[name], expected.weights[name]) for name in expected.weights)


def test_it_comes_back_from_disk_as_it_was(tmp_path: Path):
    network = a_network()
    left = one_pass(network)
    left.save(tmp_path / "of" / "pass.safetensors")
    read = Carried.load(tmp_path / "of" / "pass.safetensors", network)
    assert read is not None
    assert read.steps == left.steps
    assert torch.equal(read.ages, left.ages)
    for part in ("weights", "first", "second"):
        assert all(torch.equal(tensor, getattr(read, part)[name]) for name, tensor in getattr(left, part).items())


def test_a_disk_that_refuses_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(StateError, match="cannot write what a training pass hands on"):
        one_pass(a_network()).save(tmp_path / "file" / "pass.safetensors")


def test_others_and_halves_are_deleted(tmp_path: Path):
    for name in ("mine.safetensors", "other.safetensors", "mine.new"):
        (tmp_path / name).write_text("")
    forget_others(tmp_path, "mine")
    forget_others(tmp_path / "nowhere", "mine")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.safetensors"]


@pytest.mark.parametrize("harm", ["gone", "cut", "other shape"])
def test_what_cannot_be_used_is_none(tmp_path: Path, harm: str):
    network, path = a_network(), tmp_path / "pass.safetensors"
    one_pass(network).save(path)
    if harm == "gone":
        path.unlink()
    elif harm == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    like = Network(NetworkConfig(ITEMS + 1, hidden=16, embedding=8)) if harm == "other shape" else network
    assert Carried.load(path, like) is None


def test_rows_follow_the_vocabulary(tmp_path: Path):
    rows = stream(400, items=10)
    with a_buffer(tmp_path, rows) as buffer:
        first = grow([""], buffer.sample(400, 0, 0), VocabularySettings())
        torch.manual_seed(0)
        network = Network(NetworkConfig(len(first.vocabulary), hidden=16, embedding=8)).eval()
        old = carried_of(network)
        feed(buffer, [("u1", "new", 500_000), ("u1", "newer", 501_000)])
        sample = buffer.sample(402, 0, 0)
    growth = grow(first.vocabulary, sample, VocabularySettings())
    grown = transplant(network, growth, sample, 0)
    after = old.grown(growth, grown)
    kept = len(first.vocabulary)
    assert growth.added == 2
    for name in BY_ROW:
        assert torch.equal(after.weights[name][:kept], old.weights[name])
        assert torch.equal(after.weights[name][kept:], grown.state_dict()[name][kept:])
        assert not after.first[name][kept:].any()
        assert not after.second[name][kept:].any()
    assert after.ages.tolist() == [GROWN] * kept + [0, 0]
    assert Carried.load(saved(after, tmp_path), grown) is not None


def carried_of(network: Network) -> Carried:
    named = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    first, second = ({name: torch.ones_like(tensor) for name, tensor in named.items()} for _ in range(2))
    return Carried(named, first, second, 7, torch.full((network.config.items,), GROWN))


def saved(carried: Carried, folder: Path) -> Path:
    path = folder / "grown.safetensors"
    carried.save(path)
    return path
