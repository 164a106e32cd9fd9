import asyncio
import json
import logging
import threading
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models import tries
from models.job import LearnSettings
from models.learner import Learner
from models.registry import Registry, VersionRefused
from state.replay_sample import Sample
from streams.errors import BrokerError
from streams.settings import load_settings
from streams.trainer_http import TrainerHttp
from streams.trainer_metrics import TrainerMetrics
from streams.trainer_passes import Passes, summary_of
from tests.models.learning import FINE, a_buffer, feed, stream
from tests.streams.worker_process import free_port

QUICK = LearnSettings(recent=400, reservoir=400, refit_growth=0, fine=replace(FINE, first_epochs=2, epochs=1))


def build(tmp_path: Path) -> tuple[Passes, Learner, TrainerMetrics]:
    """Passes whose broker does not answer."""
    settings = load_settings(brokers=f"127.0.0.1:{free_port()}", registry=str(tmp_path / "registry"))
    learner, metrics = Learner(Registry(tmp_path / "registry"), tmp_path, QUICK), TrainerMetrics()
    return Passes(settings, learner, metrics, tmp_path), learner, metrics


def count(metrics: TrainerMetrics, result: str) -> float | None:
    return metrics.registry.get_sample_value("recstream_trainer_versions_total", {"result": result})


async def test_a_pass_is_published_though_nobody_can_be_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("streams.trainer_passes._TRIES_SECONDS", (0.01,))
    passes, learner, metrics = build(tmp_path)
    with a_buffer(tmp_path / "buffer", stream(600)) as buffer, caplog.at_level(logging.ERROR):
        assert await passes.begin(buffer, "cold-start")
        assert passes.running
        outcome = await passes.finish()
        assert not passes.running and outcome is not None
        assert outcome.promoted and learner.registry.current() == outcome.version
        assert "was not announced on model-versions" in caplog.text
        assert count(metrics, "promoted") == 1
        assert metrics.registry.get_sample_value("recstream_trainer_training") == 0
        assert summary_of(passes.last)["version"] == outcome.version
        assert not (tmp_path / "pass").exists()
        with caplog.at_level(logging.INFO):
            assert not await passes.begin(buffer, "events")  # nothing new
            assert not await passes.begin(buffer, "events")
        assert caplog.text.count("too few events are new to the serving version") == 1
        assert await passes.finish() is None
    await passes.stop()


async def test_stopping_interrupts_a_pass_and_resuming_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.trainer_passes._TRIES_SECONDS", (0.01,))
    passes, learner, _ = build(tmp_path)
    with a_buffer(tmp_path / "buffer", stream(600)) as buffer:
        assert await passes.begin(buffer, "cold-start")
        await passes.stop()
    assert passes.last is None and learner.registry.versions() == []
    assert summary_of(None)["version"] is None
    assert (tmp_path / "pass" / "pass.json").exists()
    identity = json.loads((tmp_path / "pass" / "pass.json").read_text())["id"]
    again, learner, _ = build(tmp_path)
    assert await again.resume()
    outcome = await asyncio.wait_for(again.finish(), 60)
    assert outcome is not None and outcome.lineage["pass"] == identity
    assert not await again.resume()
    await again.stop()


async def test_a_pass_that_cannot_publish_is_counted_and_dropped(tmp_path: Path) -> None:
    passes, learner, metrics = build(tmp_path)
    with a_buffer(tmp_path / "buffer", stream(600)) as buffer:
        (tmp_path / "registry").write_text("a file where the registry should be")
        assert not await passes.begin(buffer, "cold-start")
        assert count(metrics, "failed") == 1
        (tmp_path / "registry").unlink()
        feed(buffer, [(user, item, 10**7 + at) for user, item, at in stream(50)])
        assert await passes.begin(buffer, "cold-start")
        (tmp_path / "registry").mkdir(exist_ok=True)
        (tmp_path / "registry" / ".claims").write_text("no directory")
        assert await passes.finish() is None
    assert count(metrics, "failed") == 2
    assert learner.pending() is None
    await passes.stop()


async def test_a_slow_registry_does_not_hold_up_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes, learner, _ = build(tmp_path)
    answer, pointer = threading.Event(), learner.registry.pointer

    def slow() -> tuple[list[str], int]:
        assert answer.wait(60)
        return pointer()

    monkeypatch.setattr(learner.registry, "pointer", slow)
    with a_buffer(tmp_path / "buffer", stream(600)) as buffer:
        begun = asyncio.create_task(passes.begin(buffer, "cold-start"))
        await asyncio.sleep(0)
        assert not begun.done()
        answer.set()
        assert await begun
        await passes.stop()


async def test_a_slow_disk_does_not_hold_up_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes, learner, _ = build(tmp_path)
    answer, save = threading.Event(), Sample.save

    def slow(sample: Sample, path: Path) -> None:
        assert answer.wait(60)
        save(sample, path)

    monkeypatch.setattr(Sample, "save", slow)
    with a_buffer(tmp_path / "buffer", stream(600)) as buffer:
        assert await asyncio.wait_for(passes.begin(buffer, "cold-start"), 10)
        assert passes.running and passes.begun == 1  # an erasure waits for it from now on
        feed(buffer, [("late", "i1", 10**9)])  # events to come are not of this pass
        assert not (tmp_path / "pass" / "pass.json").exists()
        stopping = asyncio.create_task(passes.stop())
        await asyncio.sleep(0.05)
        answer.set()
        await stopping
    again, learner, _ = build(tmp_path)
    job = learner.pending()  # stopped while it was written: written to its end, and gone on with
    assert job is not None and job.sample.seen == 600
    await again.stop()


async def test_a_pass_that_cannot_be_written_is_counted_and_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    passes, learner, metrics = build(tmp_path)
    with a_buffer(tmp_path / "buffer", stream(600)) as buffer:
        with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
            patch.setattr(Sample, "save", full)
            assert await passes.begin(buffer, "cold-start")
            assert await passes.finish() is None
        assert passes.error is not None and count(metrics, "failed") == 1
        assert "cannot write a training pass" in caplog.text and "No space left on device" in caplog.text
        assert learner.pending() is None and not (tmp_path / "pass").exists()
        assert await passes.begin(buffer, "cold-start")
        assert passes.error is None
        await passes.stop()


async def test_older_versions_that_cannot_be_deleted_are_no_failure_of_the_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(keep: int) -> list[str]:
        raise VersionRefused("The model registry cannot be tidied", "AccessDenied")

    monkeypatch.setattr("streams.trainer_passes._TRIES_SECONDS", ())
    passes, learner, metrics = build(tmp_path)
    monkeypatch.setattr(learner.registry, "retention", refuse)
    with a_buffer(tmp_path / "buffer", stream(600)) as buffer, caplog.at_level(logging.WARNING):
        assert await passes.begin(buffer, "cold-start")
        outcome = await passes.finish()
    assert outcome is not None and outcome.promoted and summary_of(passes.last)["version"] == outcome.version
    assert (count(metrics, "promoted"), count(metrics, "failed")) == (1, 0)
    assert "Older versions were not deleted. The model registry cannot be tidied. AccessDenied" in caplog.text
    await passes.stop()


async def test_a_pass_that_fails_as_nobody_had_foreseen_is_counted_and_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("models.learner.fine_tune", fail)
    passes, learner, metrics = build(tmp_path)
    with a_buffer(tmp_path / "buffer", stream(600)) as buffer, caplog.at_level(logging.ERROR):
        assert await passes.begin(buffer, "cold-start")
        assert await passes.finish() is None
    assert count(metrics, "failed") == 1
    assert learner.pending() is None
    assert "The pass failed. CUDA out of memory" in caplog.text and "Traceback" in caplog.text
    await passes.stop()


async def test_a_pass_that_kills_every_process_is_counted_and_dropped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    passes, learner, metrics = build(tmp_path)
    with a_buffer(tmp_path / "buffer", stream(600)) as buffer:
        assert learner.begin(buffer, "cold-start") is not None
    for _ in range(tries.MOST):
        tries.count(tmp_path / "pass", tmp_path / "pass" / "checkpoint.pt")
    with caplog.at_level(logging.ERROR):
        assert not await passes.resume()
        assert not await passes.resume()
    assert count(metrics, "failed") == 1
    assert caplog.text.count("is dropped") == 1
    await passes.stop()


async def test_health_is_joining_until_there_are_partitions_and_a_taken_port_is_an_error() -> None:
    held: list[int] = []
    metrics, port = TrainerMetrics(), free_port()
    http = TrainerHttp("127.0.0.1", port, metrics, lambda: bool(held))

    def get(path: str) -> int:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as reply:
                return int(reply.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    await http.start()
    try:
        assert await asyncio.to_thread(get, "/health/live") == 200
        assert await asyncio.to_thread(get, "/health/ready") == 503
        held.append(1)
        assert await asyncio.to_thread(get, "/health/ready") == 200
        with pytest.raises(BrokerError, match="cannot listen"):
            await TrainerHttp("127.0.0.1", port, metrics, lambda: True).start()
    finally:
        await http.stop()
