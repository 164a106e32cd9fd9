from dataclasses import replace

import numpy as np
import pytest
import torch

from models.network import Network, NetworkConfig
from models.sequences import Histories
from models.softmax import Sampler
from models.training import Trainer
from models.training_settings import TrainingSettings

ITEMS = 12
SMALL = TrainingSettings(window=10, batch_steps=40, batches=1)


def cycling(users: int = 20, length: int = 15) -> Histories:
    """Every user walks 1, 2, ..., 11, 1, ...: the next item follows from the last."""
    items = np.concatenate([(np.arange(length) + user) % (ITEMS - 1) + 1 for user in range(users)]).astype(np.int32)
    size = users * length
    zeros = np.zeros(size, np.int64)
    return Histories(items, zeros.astype(np.uint8), zeros, np.arange(size), np.arange(0, size + 1, length))


def build(items: int = ITEMS) -> Network:
    torch.manual_seed(1)
    return Network(NetworkConfig(items=items, hidden=16, embedding=8, dropout=0.1))


def trained(settings: TrainingSettings = SMALL, seed: int = 0, epochs: int = 12) -> tuple[Network, list[float]]:
    network, source = build(), cycling()
    trainer = Trainer(network, source.counts(ITEMS), epochs, seed, settings)
    return network, [trainer.epoch(source, lambda share, loss: False) for _ in range(epochs)]


@pytest.mark.parametrize("sampled_above", [20_000, 2], ids=["full softmax", "sampled softmax"])
def test_a_deterministic_walk_is_learnt(sampled_above: int) -> None:
    settings = TrainingSettings(window=10, batch_steps=40, batches=1, sampled_above=sampled_above, negatives=64)
    network, losses = trained(settings, epochs=30)
    assert losses[0] > 2.0  # log(11) is 2.4
    assert losses[-1] < 0.5
    items = torch.arange(1, ITEMS - 1)[:, None]
    with torch.no_grad():
        _, state = network.sequence(items, torch.zeros_like(items), torch.zeros_like(items))
    assert network.scores(state).argmax(1).tolist() == list(range(2, ITEMS))


def test_the_same_seed_gives_the_same_network_whatever_the_global_generator_does() -> None:
    first, _ = trained(epochs=2)
    torch.rand(17)
    second, _ = trained(epochs=2)
    other, _ = trained(epochs=2, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.item_bias, other.item_bias)


def test_the_global_generator_is_given_back_as_it_was() -> None:
    network, source = build(), cycling()
    trainer = Trainer(network, source.counts(ITEMS), 1, 0, SMALL)
    before = torch.get_rng_state()
    trainer.epoch(source, lambda share, loss: False)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_unknown_item_is_trained_through_item_dropout() -> None:
    before = build().item_embedding.weight[0].detach().clone()
    settings = TrainingSettings(window=10, batch_steps=40, batches=1, weight_decay=0.0)
    without = TrainingSettings(window=10, batch_steps=40, batches=1, weight_decay=0.0, item_dropout=0.0)
    assert not torch.equal(trained(settings, epochs=1)[0].item_embedding.weight[0], before)
    assert torch.equal(trained(without, epochs=1)[0].item_embedding.weight[0], before)


def test_a_report_that_says_so_ends_the_epoch() -> None:
    network, source = build(), cycling()
    trainer, shares = Trainer(network, source.counts(ITEMS), 1, 0, SMALL), list[float]()

    def report(share: float, loss: float) -> bool:
        shares.append(share)
        return len(shares) == 2

    trainer.epoch(source, report)
    assert len(shares) == 2
    assert 0 < shares[0] < shares[1] < 1
    assert not network.training


def test_small_data_gets_smaller_batches_rather_than_few_updates() -> None:
    reports: list[float] = []
    source = cycling(users=40, length=101)
    settings = TrainingSettings(window=50, batch_steps=100_000, batches=20)
    trainer = Trainer(build(), source.counts(ITEMS), 1, 0, settings)
    trainer.epoch(source, lambda share, loss: reports.append(share) is not None)
    assert len(reports) >= 20


def test_histories_with_nothing_to_learn_leave_the_network_alone() -> None:
    network, source = build(), cycling(users=5, length=1)
    before = network.state_dict()["item_embedding.weight"].clone()
    loss = Trainer(network, source.counts(ITEMS), 1, 0, SMALL).epoch(source, lambda share, loss: False)
    assert np.isnan(loss)
    assert torch.equal(network.item_embedding.weight, before)


def test_unknown_targets_are_not_learnt() -> None:
    network, source = build(), cycling()
    source.items[:] = 0
    assert np.isnan(Trainer(network, source.counts(ITEMS), 1, 0, SMALL).epoch(source, lambda share, loss: False))


def test_the_sampler_knows_every_item_even_one_never_seen() -> None:
    sampler = Sampler.of(torch.zeros(5, dtype=torch.int64), negatives=400)
    assert set(sampler.draw(torch.Generator().manual_seed(0)).tolist()) == {1, 2, 3, 4}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own
@pytest.mark.parametrize(("bfloat16", "compiler"), [(True, ""), (False, "aot_eager"), (True, "aot_eager")])
def test_autocast_and_compilation_learn_the_same(bfloat16: bool, compiler: str) -> None:
    """What runs on CUDA by default, on the CPU: only rounding differs."""
    plain = trained(epochs=3)[1]
    found = trained(replace(SMALL, bfloat16=bfloat16, compiler=compiler), epochs=3)[1]
    assert found == pytest.approx(plain, rel=0.02 if bfloat16 else 1e-4)
    assert found != plain


def wandering(back: float, users: int = 60, length: int = 12, items: int = 40) -> Histories:
    """Users walk at random and come back to one of their last three items with this probability, else never to any."""
    rng, walks = np.random.default_rng(4), []
    for _ in range(users):
        fresh, walk = iter(rng.permutation(np.arange(1, items)).tolist()), []
        for _ in range(length):
            walk.append(walk[-rng.integers(1, 4)] if len(walk) > 2 and rng.random() < back else next(fresh))
        walks.append(walk)
    zeros = np.zeros(users * length, np.int64)
    starts = np.arange(0, users * length + 1, length)
    return Histories(
        np.concatenate(walks).astype(np.int32), zeros.astype(np.uint8), zeros, np.arange(len(zeros)), starts
    )


@pytest.mark.parametrize("sampled_above", [20_000, 2], ids=["full softmax", "sampled softmax"])
@pytest.mark.parametrize(("back", "sign"), [(0.0, -1), (0.8, 1)], ids=["nobody comes back", "most come back"])
def test_it_learns_whether_people_come_back_to_what_they_had(back: float, sign: int, sampled_above: int) -> None:
    source = wandering(back)
    settings = TrainingSettings(window=10, batch_steps=60, batches=5, sampled_above=sampled_above, negatives=64)
    network = build(40)
    trainer = Trainer(network, source.counts(40), 12, 0, settings)
    for _ in range(12):
        trainer.epoch(source, lambda share, loss: False)
    nearest = network.repeats[:3].mean()
    assert sign * float(nearest.detach()) > 1.0
