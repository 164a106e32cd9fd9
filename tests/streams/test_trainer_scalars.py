import sys
from pathlib import Path
from shutil import rmtree

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from models.finetune import Step
from models.job import Outcome
from streams.trainer_metrics import Scalars


def outcome(ndcg: float) -> Outcome:
    quality, rival = ({"hr@10": 0.2, "ndcg@10": value, "mrr@10": 0.05} for value in (ndcg, 0.1))
    return Outcome("v0001-00000001", True, {"gate": {"candidate": quality, "rival_quality": rival}}, {})


def curves(directory: Path) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """Every scalar by run and tag: (step, value)."""
    found = {}
    for path in sorted(directory.rglob("events*")):
        events = EventAccumulator(str(path))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            run = str(path.parent.relative_to(directory))
            found[run, tag] = [(scalar.step, pytest.approx(scalar.value)) for scalar in events.Scalars(tag)]
    return found


def test_loss_and_the_gates_findings_are_written(tmp_path: Path) -> None:
    scalars = Scalars(tmp_path)
    scalars.step(5_000, Step(0.25, 1, 2, 3.5, 10))
    scalars.step(5_000, Step(0.5, 1, 2, 3.0, 20))
    scalars.outcome(5_000, outcome(0.15))
    scalars.outcome(10_000, outcome(0.2))
    scalars.close()
    found = curves(tmp_path)
    assert found[".", "train/loss"] == [(5_250, 3.5), (5_500, 3.0)]
    assert found[".", "gate/promoted"] == [(5_000, 1.0), (10_000, 1.0)]
    assert found["gate_ndcg@10_candidate", "gate/ndcg@10"] == [(5_000, 0.15), (10_000, 0.2)]
    assert found["gate_ndcg@10_rival", "gate/ndcg@10"] == [(5_000, 0.1), (10_000, 0.1)]


def test_without_tensorboard_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    scalars = Scalars(tmp_path)
    scalars.step(5_000, Step(0.25, 1, 2, 3.5, 10))
    scalars.outcome(5_000, outcome(0.15))
    scalars.close()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_refuses_costs_the_curves_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Full at the start, and gone while it runs: TensorBoard writes in a thread and fails at the next call."""
    (tmp_path / "file").write_bytes(b"")
    scalars = Scalars(tmp_path / "file" / "tensorboard")
    scalars.outcome(5_000, outcome(0.15))
    scalars.close()
    assert caplog.text.count("No TensorBoard scalars from now on") == 1

    scalars = Scalars(tmp_path / "there")
    rmtree(tmp_path / "there")
    (tmp_path / "there").write_bytes(b"")
    for seen in (5_000, 10_000):
        scalars.outcome(seen, outcome(0.15))
    scalars.close()
    assert caplog.text.count("No TensorBoard scalars from now on") == 2
