"""What is trained on a GPU; everything here needs one."""

import io
import json
import os
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from models.family.course import held_out_ndcg, held_out_sample, placed
from models.family.interface import Tasks
from models.family.registry import MODELS
from models.finetune import fine_tune
from models.fit import fit_first_model
from models.network import Network, NetworkConfig
from models.private import PrivacySettings, PrivateTrainer
from models.registry import Registry
from models.sequences import Histories
from models.tables import Events
from models.training import Trainer
from models.training_settings import TrainingSettings
from tests.models.family.walks import ITEMS, SMALL, lesson, walks
from tests.models.learning import FINE, SETTINGS, a_buffer, feed, learner_in, run, stream

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch's own, while it compiles
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]
ROOT = Path(__file__).parents[2]
NEURAL = ("rnn", "lstm", "gru", "time-lstm", "transformer", "bert", "fusion")
# Without dropout, and without the lower precision that is the default on CUDA.
EXACT = TrainingSettings(window=10, batch_steps=100, batches=3, item_dropout=0.0, bfloat16=False, compiler="")


def trainer_on(device: str, settings: TrainingSettings = EXACT, epochs: int = 6, dropout: float = 0.0) -> Trainer:
    torch.manual_seed(1)
    network = Network(NetworkConfig(ITEMS, hidden=16, embedding=8, dropout=dropout)).to(device)
    return Trainer(network, walks().counts(ITEMS), epochs, 0, settings)


def losses_of(trainer: Trainer, epochs: int = 6, source: Histories | None = None) -> list[float]:
    past = walks() if source is None else source
    return [trainer.epoch(past, lambda share, loss: False) for _ in range(epochs)]


def weights_of(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.detach().cpu() for name, weight in network.state_dict().items()}


def assert_alike(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name, weight in one.items():
        torch.testing.assert_close(weight, other[name], atol=tolerance, rtol=tolerance, msg=name)


def saved(state: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint makes of a state, read as passes read it."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    found: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return found


def test_a_gpu_learns_what_a_core_does() -> None:
    here, there = trainer_on("cpu"), trainer_on("cuda")
    assert losses_of(there) == pytest.approx(losses_of(here), rel=1e-4)
    assert_alike(weights_of(there.network), weights_of(here.network), 2e-3)
    assert all(weight.device.type == "cuda" for weight in there.network.parameters())


@pytest.mark.parametrize("compiler", ["", "inductor"])
def test_bfloat16_learns_as_well(compiler: str) -> None:
    lower = replace(EXACT, bfloat16=True, compiler=compiler)
    exact = losses_of(trainer_on("cuda"))
    assert losses_of(trainer_on("cuda", lower)) == pytest.approx(exact, rel=0.02)
    assert exact[-1] < exact[0] - 0.2


def test_the_defaults_learn_with_many_items() -> None:
    sampled = replace(EXACT, sampled_above=2, negatives=64, bfloat16=None, compiler=None)
    losses = losses_of(trainer_on("cuda", sampled, epochs=20), 20)
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.parametrize(("first", "second"), [("cuda", "cuda"), ("cuda", "cpu"), ("cpu", "cuda")])
@pytest.mark.parametrize("averaged", [0.0, 0.9])
def test_an_interrupted_training_goes_on_where_it_was(first: str, second: str, averaged: float) -> None:
    settings = replace(EXACT, averaged=averaged)
    whole, begun, rest = (trainer_on(device, settings, 2) for device in (first, first, second))
    losses_of(whole, 2)
    kept: list[dict[str, Any]] = []

    def keep(share: float, loss: float) -> bool:
        kept.append(saved(begun.state()))
        return False

    begun.epoch(walks(), keep)
    rest.restore(kept[1])  # after two batches
    losses_of(rest, 2)
    for trainer in (whole, rest):
        trainer.conclude()
    assert_alike(weights_of(rest.network), weights_of(whole.network), 2e-3)


def test_dropout_goes_on_with_the_same_draws() -> None:
    whole, begun, rest = (trainer_on("cuda", EXACT, 2, dropout=0.4) for _ in range(3))
    expected = losses_of(whole, 2)
    begun.epoch(walks(), lambda share, loss: False)
    rest.restore(saved(begun.state()))
    assert losses_of(rest, 1) == pytest.approx(expected[1:], rel=1e-4)


@pytest.mark.parametrize("second", ["cuda", "cpu"])
def test_private_training(second: str) -> None:
    privacy = PrivacySettings(noise=0.3, clip=0.5, users_per_step=10, seed=3)

    def private(device: str) -> PrivateTrainer:
        torch.manual_seed(1)
        network = Network(NetworkConfig(ITEMS, hidden=16, embedding=8, dropout=0.0)).to(device)
        return PrivateTrainer(network, 8, 0, replace(EXACT, learning_rate=0.02), privacy)

    trainer, after = private("cuda"), private(second)
    losses = losses_of(trainer, 8)
    assert losses[-1] < losses[0]
    after.restore(saved(trainer.state()))
    assert after.spent == trainer.spent
    losses_of(after, 1)
    assert after.spent[0][2] > trainer.spent[0][2]


def test_an_optimiser_made_on_the_gpu_goes_on_with_a_module_that_was_away() -> None:
    module = torch.nn.Linear(2, 2)
    weight = module.weight
    with placed(module, "cuda"):
        assert module.weight is weight
        assert weight.is_cuda
        assert torch.zeros(1).is_cuda
    assert module.weight is weight
    assert not weight.is_cuda


@pytest.mark.parametrize("name", NEURAL)
def test_every_neural_model_is_fitted_on_a_gpu_and_used_on_a_core(name: str) -> None:
    taught = replace(lesson(walks(users=60)), effort=0.002, device="cuda")
    found = {}
    for device in ("cpu", "cuda"):
        model = MODELS[name](ITEMS, **SMALL[name])
        told = replace(taught, device=device)
        model.fit(told)
        assert {tensor.device.type for tensor in model.tensors().values()} == {"cpu"}
        sample = held_out_sample(told)
        assert sample is not None
        found[device] = held_out_ndcg(model, told, sample)
    chance = float(np.mean([1 / np.log2(rank + 1) if rank <= 10 else 0 for rank in range(1, ITEMS)]))
    assert found["cuda"] > chance + 0.1
    assert found["cuda"] > found["cpu"] - 0.08


@pytest.mark.parametrize("name", ["gru", "transformer", "bert"])
@pytest.mark.parametrize("sampled", [False, True])
def test_heads_are_trained_on_a_gpu(name: str, sampled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if sampled:
        monkeypatch.setattr("models.family.sequential.SAMPLED_ABOVE", 2)
        monkeypatch.setattr("models.family.recurrent._SAMPLED_ABOVE", 2)
    source = walks()
    taught = lesson(source, tasks=Tasks(("type", "purchase", "rating"), 2), device="cuda")
    ratings = np.random.default_rng(0).integers(1, 6, len(taught.past)).astype(np.float32)
    model = MODELS[name](ITEMS, **SMALL[name])
    model.fit(replace(taught, ratings=ratings, augment=("crop", "mask")))
    assert model.task_heads is not None
    assert {tensor.device.type for tensor in model.tensors().values()} == {"cpu"}


@pytest.mark.parametrize("loss", ["ce", "gbce"])
def test_losses_of_the_transformer(loss: str) -> None:
    model = MODELS["transformer"](ITEMS, **SMALL["transformer"], loss=loss)
    model.fit(lesson(walks(), device="cuda"))
    assert all(bool(tensor.isfinite().all()) for tensor in model.tensors().values())


def test_a_first_model_is_fitted(tmp_path: Path) -> None:
    users, items, times = zip(*stream(3_000), strict=True)
    events = Events(pl.Series(users), pl.Series(items), np.zeros(3_000, np.uint8), np.array(times))
    network, vocabulary, metrics, lineage = fit_first_model(events, hidden=24, embedding=16, epochs=6, device="cuda")
    assert metrics["ndcg@10"] > metrics["popularity_ndcg@10"] + 0.1
    assert next(network.parameters()).device.type == "cpu"
    lineage["created_ms"] = 1
    registry = Registry(tmp_path)
    assert registry.publish(network, vocabulary, metrics, lineage) == registry.current()


def test_a_pass_is_resumed_to_the_same_candidate(tmp_path: Path) -> None:
    with closing(a_buffer(tmp_path / "buffer", stream(1_500))) as buffer:
        sample = buffer.sample(600, 600, seed=1)
    exact = replace(FINE, dropout=0.0, first=replace(FINE.first, item_dropout=0.0, bfloat16=False, compiler=""))
    whole = fine_tune(None, sample, exact, 3, device="cuda")
    seen = 0

    def stop(step: Any) -> bool:
        nonlocal seen
        seen += 1
        return seen == 20

    checkpoint = tmp_path / "checkpoint.pt"
    assert fine_tune(None, sample, exact, 3, stop, "cuda", checkpoint) is None
    assert checkpoint.is_file()
    rest = fine_tune(None, sample, exact, 3, None, "cuda", checkpoint)
    assert whole is not None
    assert rest is not None
    assert_alike(weights_of(rest.network), weights_of(whole.network), 5e-3)


def test_the_learner_fits_fine_tunes_and_publishes(tmp_path: Path) -> None:
    learner = learner_in(tmp_path, SETTINGS, device="cuda")
    rows = stream(4_000)
    with closing(a_buffer(tmp_path / "buffer", rows[:2_500])) as buffer:
        first = run(learner, learner.begin(buffer, "events", 10))
        assert first.promoted
        feed(buffer, rows[2_500:])
        second = run(learner, learner.begin(buffer, "events", 20))
    assert second.version != first.version
    version = learner.registry.load(second.version)
    assert version.lineage["parent"] == first.version
    assert all(bool(torch.isfinite(weight).all()) for weight in version.network().state_dict().values())


@pytest.mark.parametrize("launched", [False, True], ids=["alone", "torchrun, NCCL"])
def test_the_program_trains_on_a_gpu(tmp_path: Path, launched: bool) -> None:
    rows = stream(3_000)
    lines = "".join(f"{user},{item},{1_700_000_000_000 + time_ms}\n" for user, item, time_ms in rows)
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n" + lines)
    argv = ["-m", "models.train", str(tmp_path / "log.csv"), "--registry", str(tmp_path / "registry"), "--json"]
    argv += ["--device", "cuda", "--epochs", "4", "--hidden", "24", "--embedding", "16", "--window", "20"]
    argv += ["--batch-steps", "200", "--checkpoint", str(tmp_path / "c.pt")]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"] if launched else []
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, *launcher, *argv]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["promoted"]
    assert found["loss"][-1] < found["loss"][0] - 0.5
