"""The trainer as a process, against a broker: what it reads, publishes, announces, and how it stops."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from aiokafka.structs import TopicPartition

from models.finetune import fine_tune
from models.learner import Learner
from models.registry import Registry
from models.tables import Events
from state.errors import RecstreamError
from state.replay_buffer import ReplayBuffer
from state.replay_sample import Sample
from streams.read_topic import read_to_end, reader
from streams.replay import produce_events
from streams.settings import Settings, load_settings
from streams.topics import MODEL_VERSIONS
from streams.trainer import Trainer, TrainerOptions, learn_settings, run_trainer
from tests.models.learning import a_buffer, stream
from tests.streams.worker_process import Worker, free_port

pytestmark = pytest.mark.broker

SMALL = {
    "session_timeout_seconds": "2", "rebalance_timeout_seconds": "2", "cold_start_events": "600",
    "train_every_events": "600", "train_recent_events": "600", "train_reservoir_events": "600", "train_epochs": "2",
    "model_hidden": "16", "model_embedding": "8",
}  # fmt: skip


class Bench:
    """A broker's topics, a registry, and a trainer beside them in a process of its own."""

    def __init__(self, contract: Settings, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        own = {
            "brokers": contract.brokers, "partitions": str(contract.partitions), "registry": str(folder / "registry"),
            "state_dir": str(folder / "state"), "trainer_http_port": str(self.port), **SMALL,
        }  # fmt: skip
        self.env = {**os.environ, "OMP_NUM_THREADS": "1"} | {
            f"RECSTREAM_{name.upper()}": value for name, value in own.items()
        }
        self.settings = load_settings(**own)
        self.registry, self.home = Registry(folder / "registry"), folder / "state" / "recstream" / "trainer"
        self.process: subprocess.Popen[bytes] | None = None
        self.sent, self.rows = 0, stream(6_000)

    def send(self, count: int) -> None:
        users, items, times = zip(*self.rows[self.sent : self.sent + count], strict=True)
        kinds = (np.arange(count) % 3).astype(np.uint8)
        asyncio.run(produce_events(self.settings, Events(pl.Series(users), pl.Series(items), kinds, np.array(times))))
        self.sent += count

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "streams.cli", "trainer", "--device", "cpu", "--json", *arguments]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, env=self.env, stdout=subprocess.PIPE, stderr=log)
        return self.process

    def wait(self, condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process is not None and self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, f"{what}: {self.log()}"
            time.sleep(0.05)

    def log(self) -> str:
        return (self.folder / "log").read_text()[-4_000:]

    def metrics(self) -> dict[str, float]:
        with suppress(OSError):
            return Worker.metrics(self)  # type: ignore[arg-type]
        return {}

    def ended(self, number: signal.Signals | None = None) -> tuple[int, dict[str, Any]]:
        """Exit status and the summary it printed, after a signal or by itself."""
        assert self.process is not None
        if number is not None:
            self.process.send_signal(number)
        output, _ = self.process.communicate(timeout=90)
        lines = output.strip().splitlines()
        return self.process.returncode, json.loads(lines[-1]) if lines else {}

    def announced(self) -> list[dict[str, Any]]:
        async def read() -> list[dict[str, Any]]:
            partitions = [TopicPartition(MODEL_VERSIONS, 0)]
            async with reader(self.settings, partitions) as consumer:
                return [
                    {"key": record.key.decode(), **json.loads(record.value)}
                    async for records in read_to_end(consumer, partitions)
                    for record in records
                ]

        return asyncio.run(read())


@pytest.fixture
def bench(contract_settings: Settings, tmp_path: Path) -> Iterator[Bench]:
    found = Bench(contract_settings, tmp_path)
    yield found
    if found.process is not None:
        if found.process.poll() is None:
            found.process.kill()
            found.process.wait()
        if found.process.stdout is not None:
            found.process.stdout.close()


def test_a_stream_without_a_model_gets_one_and_then_better_ones(bench: Bench) -> None:
    bench.send(500)
    bench.start()
    bench.wait(lambda: bench.metrics().get("recstream_trainer_events_total") == 500, "all events are read")
    assert bench.registry.current() is None  # too few for a first model
    bench.send(200)
    bench.wait(lambda: bench.registry.current() is not None, "a first version serves")
    first = bench.registry.describe(bench.registry.current())
    assert (first.config.hidden, first.config.embedding, first.lineage["trigger"]) == (16, 8, "cold-start")
    bench.send(1_500)
    bench.wait(lambda: len(bench.registry.versions()) >= 2, "a second version is published")
    bench.wait(lambda: bench.metrics().get("recstream_trainer_training") == 0, "the pass is over")
    bench.wait(lambda: bench.metrics().get("recstream_trainer_buffer_events") == 2_200, "all is counted")
    found = bench.metrics()
    assert found["recstream_trainer_lag"] == 0
    outcomes = [found[f"recstream_trainer_versions_total{{result={result}}}"] for result in ("promoted", "rejected")]
    assert sum(outcomes) == len(bench.registry.versions())
    assert found["recstream_trainer_samples_per_second"] > 0
    assert found["recstream_trainer_loss"] > 0
    status, summary = bench.ended(signal.SIGTERM)
    assert status == 0, bench.log()
    assert summary["version"] in bench.registry.versions()
    promoted = [name for name in bench.registry.versions() if bench.registry.describe(name).metrics["gate"]["promoted"]]
    announced = bench.announced()
    assert [entry["version"] for entry in announced] == promoted
    assert all(entry["key"] == entry["version"] and entry["created"] > 1.6e12 for entry in announced)
    assert announced[0]["parent"] is None
    assert announced[-1]["metrics"]["gate"]["promoted"] is True


def test_a_damaged_version_does_not_keep_the_trainer_from_starting(tmp_path: Path) -> None:
    (tmp_path / "registry").mkdir()
    (tmp_path / "registry" / "CURRENT").write_text("v0001-0000000a")
    learner = Learner(Registry(tmp_path / "registry"), tmp_path)
    with a_buffer(tmp_path / "buffer", stream(50)) as buffer:
        trainer = Trainer(load_settings(), TrainerOptions(), buffer, learner, tmp_path)
        assert trainer._seen_by_serving() == 0


@pytest.mark.parametrize("broker", ["embedded"], indirect=True)
def test_once_reads_to_the_end_trains_and_stops_and_later_ones_read_on(bench: Bench) -> None:
    bench.send(900)
    bench.start("--once")
    status, summary = bench.ended()
    assert status == 0, bench.log()
    assert summary["promoted"] and bench.registry.current() == summary["version"]
    lineage = bench.registry.describe(summary["version"]).lineage
    assert sum(lineage["offsets"].values()) == lineage["seen"] == 900
    bench.send(50)
    bench.start("--once")  # too little is new: it says so and is content
    status, summary = bench.ended()
    assert status == 0, bench.log()
    assert summary["version"] is None
    assert len(bench.registry.versions()) == 1
    with ReplayBuffer(bench.home) as buffer:
        times = buffer.sample(len(buffer), 0, 0).times_ms
        assert len(np.unique(times)) == len(times) == buffer.seen == 950  # a restart read nothing twice
    shutil.rmtree(bench.folder / "registry" / ".claims")
    (bench.folder / "registry" / ".claims").touch()  # nothing can be published
    bench.send(600)
    bench.start("--once")
    status, _ = bench.ended()
    assert status == 1 and "error: The model registry" in bench.log(), bench.log()


@pytest.mark.parametrize("broker", ["embedded"], indirect=True)
def test_a_killed_pass_goes_on_and_makes_the_version_it_would_have_made(bench: Bench) -> None:
    """Killed in the middle, then asked to stop in the middle: the version is bit by bit that of an undisturbed pass."""
    bench.env |= {"RECSTREAM_MODEL_HIDDEN": "96", "RECSTREAM_TRAIN_RECENT_EVENTS": "6000"}
    bench.send(4_000)
    process = bench.start()
    checkpoint = bench.home / "pass" / "checkpoint.pt"
    bench.wait(checkpoint.exists, "a pass is under way")
    process.kill()
    bench.ended()
    head = json.loads((bench.home / "pass" / "pass.json").read_text())
    sample = Sample.load(bench.home / "pass" / "sample.replay")
    assert bench.registry.versions() == []

    seen = checkpoint.stat().st_mtime_ns
    bench.start()
    bench.wait(lambda: checkpoint.stat().st_mtime_ns > seen, "the pass goes on")
    status, summary = bench.ended(signal.SIGTERM)
    assert (status, summary["version"]) == (0, None), bench.log()
    assert checkpoint.exists()

    bench.start()
    bench.wait(lambda: bench.registry.current() is not None, "the pass is through")
    status, _ = bench.ended(signal.SIGINT)
    assert status == 130, bench.log()
    assert "Going on with the pass" in (bench.folder / "log").read_text()
    (name,) = bench.registry.versions()
    made = bench.registry.load(name)
    assert made.lineage["pass"] == head["id"]
    torch.set_num_threads(1)
    fine = learn_settings(bench.settings.model_copy(update={"model_hidden": 96})).fine
    again = fine_tune(None, sample, fine, head["seed"])
    assert again is not None
    weights = again.network.state_dict()
    assert all(torch.equal(tensor, weights[part]) for part, tensor in made.weights.items())


def test_cuda_where_there_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RecstreamError, match="no CUDA device"):
        run_trainer(load_settings(registry=str(tmp_path)), TrainerOptions(device="cuda"))


def test_a_registry_that_cannot_be_written_is_refused_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch, contract_settings: Settings, tmp_path: Path
) -> None:
    monkeypatch.setattr("streams.trainer.os.nice", lambda _: 0)
    (tmp_path / "file").write_text("in the way")
    own = {"registry": str(tmp_path / "file"), "state_dir": tmp_path / "state"}
    with pytest.raises(RecstreamError, match="cannot be written"):
        run_trainer(contract_settings.model_copy(update=own), TrainerOptions(device="cpu"))
    assert not (tmp_path / "state").exists()
