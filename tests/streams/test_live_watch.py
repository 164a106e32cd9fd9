import asyncio
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.drift import Alarm
from models.finetune import fine_tune
from models.network import Network, NetworkConfig
from models.registry import Registry
from state.replay_buffer import ReplayBuffer
from streams.live_watch import LiveWatch
from streams.trainer_metrics import TrainerMetrics
from tests.models.learning import FINE, a_buffer, feed, stream

ROWS = stream(2_500)
TURNED = stream(3_000, stride=7, seed=3)


def fit(buffer: ReplayBuffer, registry: Registry, seed: int = 1, epochs: int = 6) -> str:
    candidate = fine_tune(None, buffer.sample(len(buffer), 0, 0), replace(FINE, first_epochs=epochs), seed)
    assert candidate is not None
    return registry.publish(candidate.network, candidate.vocabulary, {}, candidate.lineage)


async def one_test(watch: LiveWatch) -> tuple[bool, object]:
    watch.test(watch._tested_at + watch._pause)
    for _ in range(500):
        done, alarm = watch.collect()
        if done:
            return done, alarm
        await asyncio.sleep(0.01)
    return False, None


async def test_it_follows_the_pointer_tests_what_is_new_and_hears_a_change(tmp_path: Path) -> None:
    registry, metrics = Registry(tmp_path / "registry"), TrainerMetrics()
    with a_buffer(tmp_path / "buffer", ROWS[:1_500]) as buffer:
        watch = LiveWatch(registry, buffer, metrics)
        await watch.look(now=True)
        assert watch.serving is None
        feed(buffer, ROWS[1_500:1_600])
        assert watch.collect() == (False, None)
        name = fit(buffer, registry)
        watch._looked_at = time.monotonic()
        await watch.look()  # a look at most every two seconds
        assert watch.serving is None
        await watch.look(now=True)
        assert watch.serving == name

        _, alarm = await one_test(watch)
        assert watch.rate == 0.0  # those events were learnt
        feed(buffer, ROWS[1_600:1_650])
        watch.test(watch._tested_at + 1)  # 50 events and a second: not enough
        assert watch.collect() == (False, None) and watch._task is None
        alarms = []
        for start in range(1_650, 2_500, 170):
            feed(buffer, ROWS[start : start + 170])
            done, alarm = await one_test(watch)
            assert done
            alarms.append(alarm)
        assert alarms == [None] * 5
        assert watch.rate > 0.6
        for start in range(0, 2_000, 200):
            feed(buffer, [(user, item, 10**8 + at) for user, item, at in TURNED[start : start + 200]])
            _, alarm = await one_test(watch)
            if alarm is not None:
                break
        assert alarm is not None and start < 1_500
        assert metrics.registry.get_sample_value("recstream_trainer_drift_alarms_total") == 1
        assert metrics.registry.get_sample_value("recstream_trainer_model_info", {"version": name}) == 1
        await watch.stop()


class Foretold:
    """A live test and a drift watch in one: 200 of each sample's events count, and an alarm comes when it is set."""

    position, alarm = 0, None

    def hits(self, _sample: object) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(200, np.bool_), np.zeros(200, np.uint64)

    def watch(self, hits: np.ndarray, _users: np.ndarray) -> Alarm | None:
        self.position += len(hits)
        return self.alarm

    rate = 0.0


@pytest.mark.parametrize(("tested", "ago"), [(0, 0), (100, 250), (500, 1_250), (1_000, 2_500), (1_500, 2_500)])
async def test_an_alarm_tells_how_many_events_ago_it_was_and_not_how_many_tested_ones(
    tmp_path: Path, tested: int, ago: int
) -> None:
    with a_buffer(tmp_path / "buffer", ROWS[:500]) as buffer:
        watch, foretold = LiveWatch(Registry(tmp_path / "registry"), buffer, TrainerMetrics()), Foretold()
        watch._live = watch._drift = foretold  # type: ignore[assignment]
        rows = stream(3_000)
        for start in range(500, 3_000, 500):
            feed(buffer, rows[start : start + 500])
            foretold.alarm = Alarm(1_000, 0.2, 0.1, tested) if start == 2_500 else None
            _, alarm = await one_test(watch)
        assert isinstance(alarm, Alarm) and alarm.width == ago
        await watch.stop()


async def test_privacy_spent_on_the_serving_version_is_told_by_a_trainer_just_started(tmp_path: Path) -> None:
    registry, metrics = Registry(tmp_path / "registry"), TrainerMetrics()
    network = Network(NetworkConfig(items=2, hidden=4, embedding=2))
    with ReplayBuffer(tmp_path / "buffer") as buffer:
        watch = LiveWatch(registry, buffer, metrics)
        for figures, spent in (({"epsilon": 2.5}, 2.5), ({}, 0.0)):
            registry.publish(network, ["", "tea"], figures, {"privacy": figures})
            await watch.look(now=True)
            assert metrics.registry.get_sample_value("recstream_trainer_epsilon") == spent
        await watch.stop()


async def test_a_version_that_cannot_be_loaded_leaves_the_test_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registry = Registry(tmp_path / "registry")
    with a_buffer(tmp_path / "buffer", ROWS[:600]) as buffer:
        watch = LiveWatch(registry, buffer, TrainerMetrics())
        first = fit(buffer, registry, epochs=1)
        await watch.look(now=True)
        second = fit(buffer, registry, seed=2, epochs=1)
        weights = tmp_path / "registry" / second / "weights.safetensors"
        whole = weights.read_bytes()
        weights.write_bytes(b"")
        await watch.look(now=True)
        assert watch.serving == first
        assert second in caplog.text
        told = len(caplog.records)
        await watch.look(now=True)  # neither read nor told of again at each look
        weights.write_bytes(whole)
        await watch.look(now=True)
        assert watch.serving == first and len(caplog.records) == told
        watch._retry_at = 0.0  # a minute later
        await watch.look(now=True)
        assert watch.serving == second
        await watch.stop()
