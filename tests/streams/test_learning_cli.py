import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from models.gate import judge
from models.job import Outcome
from models.private import PrivacySettings
from models.registry import Registry
from models.tables import Events
from streams.cli import app
from streams.replay import produce_events
from streams.settings import Settings
from streams.trainer import TrainerOptions, learn_settings, run_trainer
from streams.trainer_metrics import TrainerMetrics
from tests.models.learning import FINE, stream
from tests.streams.worker_cluster import ONE_BROKER


@pytest.mark.broker
@pytest.mark.parametrize("broker", ONE_BROKER, indirect=True)
def test_a_private_pass_says_what_it_spent(contract_settings: Settings, tmp_path: Path) -> None:
    users, items, times = zip(*stream(800), strict=True)
    events = Events(pl.Series(users), pl.Series(items), np.zeros(800, np.uint8), np.array(times))
    asyncio.run(produce_events(contract_settings, events))
    command = [
        sys.executable, "-m", "streams.cli", "trainer", "--once", "--json", "--device", "cpu", "--http-port", "0",
        "--dp", "--dp-users", "10", "--dp-noise", "2", "--brokers", contract_settings.brokers,
        "--partitions", str(contract_settings.partitions), "--registry", str(tmp_path / "registry"),
        "--state-dir", str(tmp_path / "state"),
    ]  # fmt: skip
    quick = {"RECSTREAM_MODEL_HIDDEN": "16", "RECSTREAM_SESSION_TIMEOUT_SECONDS": "2", "OMP_NUM_THREADS": "1"}
    group = {
        "RECSTREAM_APP_ID": tmp_path.name,
        "RECSTREAM_REBALANCE_TIMEOUT_SECONDS": "2",
    }  # no dead members to wait for
    environment = {**os.environ, **quick, **group}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    version = Registry(tmp_path / "registry").describe(summary["version"])
    assert version.metrics["epsilon"] == summary["metrics"]["epsilon"] > 0
    assert version.lineage["privacy"]["spent"][0][0] == 2.0


def test_epsilon_reaches_prometheus() -> None:
    metrics, verdict = TrainerMetrics(), judge(np.ones(3), np.ones(3), np.arange(3), FINE.gate, 0)
    figures = {"gate": verdict.to_dict(), "epsilon": 3.25, "delta": 1e-5}
    metrics.finished(Outcome("v0001-00000001", True, figures, {}), 1.0)
    assert metrics.registry.get_sample_value("recstream_trainer_epsilon") == 3.25


def test_privacy_is_off_unless_asked_for() -> None:
    assert learn_settings(Settings()).fine.privacy is None
    asked = PrivacySettings(2.0, 0.1, 8)
    assert learn_settings(Settings(), asked).fine.privacy == asked


def test_missing_opacus_is_said_before_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opacus.accountants", None)
    with pytest.raises(Exception, match=r"pip install 'recstream\[dp\]'"):
        run_trainer(Settings(), TrainerOptions("cpu", once=True, privacy=PrivacySettings()))


@pytest.mark.parametrize("wrong", [["--dp-noise", "0"], ["--dp-clip", "-1"], ["--dp-users", "0"]], ids=" ".join)
def test_wrong_privacy_is_status_2(wrong: list[str]) -> None:
    assert CliRunner().invoke(app, ["trainer", "--dp", *wrong]).exit_code == 2


def test_a_seed_that_cannot_be_used_is_wrong_usage() -> None:
    assert CliRunner().invoke(app, ["fit", "events.csv", "--seed", "-1"]).exit_code == 2
