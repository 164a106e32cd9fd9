import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from models.registry import Registry
from models.train import main, settings_of
from models.train_options import parse
from tests.models.learning import a_buffer, stream

ROOT = Path(__file__).parents[2]
QUICK = [
    "--device", "cpu", "--epochs", "4", "--hidden", "24", "--embedding", "16", "--window", "20", "--batch-steps", "200",
]  # fmt: skip
PLAIN = ["--dropout", "0", "--item-dropout", "0"]  # dropout's draws are each rank's own


def table(path: Path, events: int = 3_000, seed: int = 0, start: int = 0) -> str:
    rows = stream(events, seed=seed)
    lines = "".join(f"{user},{item},{1_700_000_000_000 + start + time_ms}\n" for user, item, time_ms in rows)
    path.write_text("user_id,item_id,timestamp\n" + lines)
    return str(path)


def arguments(folder: Path, events: str, *more: str) -> list[str]:
    return [
        events,
        "--registry",
        str(folder / "registry"),
        "--checkpoint",
        str(folder / "c.pt"),
        "--json",
        *QUICK,
        *more,
    ]


def trained(capsys: pytest.CaptureFixture[str], argv: list[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert main(argv) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def torchrun(argv: list[str]) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return [*launcher, "-m", "models.train", *argv]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def test_two_ranks_learn_what_one_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = table(tmp_path / "log.csv")
    two = tmp_path / "two"
    two.mkdir()
    done = subprocess.run(
        torchrun(arguments(two, events, *PLAIN)),
        env=ENVIRONMENT,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.strip().splitlines()[-1])
    alone = trained(capsys, arguments(tmp_path / "one", events, *PLAIN))
    assert (found["ranks"], alone["ranks"]) == (2, 1)
    assert found["loss"] == pytest.approx(alone["loss"], rel=1e-4)
    assert found["metrics"]["ndcg@10"] == pytest.approx(alone["metrics"]["ndcg@10"], abs=0.01)
    assert alone["loss"][-1] < alone["loss"][0] - 0.5
    assert Registry(two / "registry").current() == found["version"]
    assert len(Registry(two / "registry").versions()) == 1
    assert not (two / "c.pt").exists()


def test_two_ranks_killed_are_resumed_by_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = table(tmp_path / "log.csv", events=1_500)
    argv = arguments(tmp_path, events, *PLAIN, "--checkpoint-batches", "2", "--epochs", "8")
    process = subprocess.Popen(
        torchrun(argv), env=ENVIRONMENT, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 200
    while not (tmp_path / "c.pt").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    ranks = psutil.Process(process.pid).children(recursive=True)
    for each in (process, *ranks):
        each.kill()
    process.wait()
    psutil.wait_procs(ranks, timeout=3)
    assert Registry(tmp_path / "registry").versions() == []
    resumed = trained(capsys, argv)
    assert resumed["loss"][-1] < 1.5
    whole = trained(capsys, arguments(tmp_path / "whole", events, *PLAIN, "--epochs", "8"))
    assert resumed["loss"] == pytest.approx(whole["loss"], rel=1e-3)  # rounding grows from epoch to epoch


def test_a_table_fine_tunes_what_serves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = trained(capsys, arguments(tmp_path, table(tmp_path / "old.csv")))
    assert first["promoted"] and first["samples_per_second"] > 0
    later = table(tmp_path / "new.csv", seed=2, start=10**8)
    second = trained(capsys, arguments(tmp_path, later))
    registry = Registry(tmp_path / "registry")
    lineage = registry.describe(second["version"]).lineage
    assert (lineage["origin"], lineage["parent"], lineage["data"]) == ("fine-tuned", first["version"], "new.csv")
    assert "seen" not in lineage and "offsets" not in lineage  # places in a trainer's log, of which there is none
    assert registry.current() == second["version"]
    third = trained(capsys, arguments(tmp_path, later, "--from", first["version"], "--seed", "1", "--no-promote"))
    assert not third["promoted"] and "--no-promote" in third["reasons"][-1]
    assert registry.current() == second["version"]
    again = trained(capsys, arguments(tmp_path, later, "--from", first["version"], "--seed", "1"))
    assert again["version"] == third["version"]  # the same pass is not published twice
    assert not again["promoted"] and "meanwhile" in again["reasons"][-1]


def test_a_trainers_sample_is_taken_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with a_buffer(tmp_path / "buffer", stream(2_000)) as buffer:
        buffer.sample(1_000, 500, 1).save(tmp_path / "sample.replay")
    found = trained(capsys, arguments(tmp_path, str(tmp_path / "sample.replay")))
    lineage = Registry(tmp_path / "registry").describe(found["version"]).lineage
    assert lineage["seen"] == 2_000
    assert lineage["offsets"] == {"clicks:0": 2_000}


def test_private_training_publishes_epsilon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = table(tmp_path / "log.csv", events=1_500)
    found = trained(capsys, arguments(tmp_path, events, "--dp", "--dp-users", "10", "--epochs", "1"))
    assert found["metrics"]["epsilon"] > 0


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["none.csv"], "none.csv"),
        (["none.replay"], "none.replay"),
        (["none.csv", "--columns", "x=y"], "--columns"),
        (["none.csv", "--registry", "nosuch://x"], "nosuch"),
    ],
    ids=["no table", "no sample", "columns", "registry"],
)
def test_what_cannot_be_used_is_status_1_and_said(
    argv: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 1
    assert words in capsys.readouterr().err


def test_wrong_usage_is_status_2_and_help_says_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["x.csv", "--cell", "transformer"])
    assert ended.value.code == 2
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    words = capsys.readouterr().out
    assert all(part in words for part in ("torchrun", "sample.replay", "Parquet", "--dp"))


@pytest.mark.parametrize(
    "wrong",
    ["--epochs -3", "--epochs 0", "--seed -1", "--checkpoint-batches 0", "--window 0", "--batch-steps 0", "--threads 0",
     "--learning-rate nan", "--dropout 1", "--item-dropout -0.1", "--hidden 0", "--embedding 0"],
)  # fmt: skip
def test_numbers_out_of_range_are_wrong_usage(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["x.csv", *wrong.split()])
    assert ended.value.code == 2
    assert wrong.partition(" ")[0] in capsys.readouterr().err


def test_arguments_reach_both_kinds_of_training() -> None:
    found = settings_of(parse(["x", "--window", "7", "--epochs", "3", "--cell", "lstm", "--bfloat16", "--dp"]))
    assert found.training.window == found.first.window == 7
    assert found.training.bfloat16 and found.first.bfloat16
    assert (found.epochs, found.first_epochs, found.cell) == (3, 3, "lstm")
    assert found.privacy is not None
    plain = settings_of(parse(["x"]))
    assert plain.privacy is None
    assert plain.training.learning_rate != plain.first.learning_rate
