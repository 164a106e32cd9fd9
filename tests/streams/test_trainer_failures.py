"""A trainer whose passes fail, without a broker: when does it try again?"""

from pathlib import Path

import pytest

from models import tries
from models.job import LearnSettings
from models.learner import Learner
from models.registry import Registry
from state.errors import StateError
from state.replay_buffer import ReplayBuffer
from streams.settings import load_settings
from streams.trainer import Trainer, TrainerOptions
from tests.models.learning import FINE, a_buffer, feed, stream


@pytest.fixture(autouse=True)
def nobody_to_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.trainer_passes._TRIES_SECONDS", ())


def build(folder: Path, buffer: ReplayBuffer) -> Trainer:
    settings = load_settings(registry=str(folder / "registry"), cold_start_events=1_000, train_every_minutes=5)
    learner = Learner(Registry(folder / "registry"), folder, LearnSettings(fine=FINE))
    return Trainer(settings, TrainerOptions(), buffer, learner, folder)


async def passes_until(trainer: Trainer, buffer: ReplayBuffer, seen: int, now: float) -> list[int]:
    """At how many events passes begin while events come in, 100 at a time."""
    begun: list[int] = []
    rows = stream(seen)
    while buffer.seen < seen:
        feed(buffer, rows[buffer.seen : buffer.seen + 100])
        before = trainer._passes.begun
        await trainer._consider(now)
        await trainer._ended(await trainer._passes.finish())
        begun += [buffer.seen] * (trainer._passes.begun - before)
    return begun


async def test_a_first_model_that_fails_is_tried_again_less_and_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise StateError("this fails", "as it does each time", "none")

    with a_buffer(tmp_path / "buffer", stream(100)) as buffer:
        trainer = build(tmp_path, buffer)
        with monkeypatch.context() as patch:
            patch.setattr("models.learner.fine_tune", fail)
            assert await passes_until(trainer, buffer, 4_000, 0.0) == [1_000, 1_300, 1_700, 2_200, 2_800, 3_500]
        assert await passes_until(trainer, buffer, 4_400, 1e9) == [4_100]  # the time is over, and it does not fail
        assert trainer._passes.last is not None and trainer._live.serving is not None
        await trainer._passes.stop()
        await trainer._live.stop()


async def test_a_first_model_whose_registry_refuses_is_tried_again_less_and_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with a_buffer(tmp_path / "buffer", stream(900)) as buffer:
        trainer = build(tmp_path, buffer)
        asked: list[int] = []

        def refuse() -> None:
            asked.append(buffer.seen)
            raise StateError("the registry refuses", "it is away", "none")

        monkeypatch.setattr(trainer._learner, "serving", refuse)
        assert await passes_until(trainer, buffer, 2_000, 0.0) == []
        assert asked == [1_000, 1_300, 1_700]
        await trainer._passes.stop()
        await trainer._live.stop()


async def test_a_first_model_that_killed_every_process_waits_too(tmp_path: Path) -> None:
    with a_buffer(tmp_path / "buffer", stream(1_000)) as buffer:
        trainer = build(tmp_path, buffer)
        assert trainer._learner.begin(buffer, "cold-start") is not None
        for _ in range(tries.MOST):
            tries.count(tmp_path / "pass", tmp_path / "pass" / "checkpoint.pt")
        await trainer._resume()
        assert await passes_until(trainer, buffer, 1_200, 0.0) == []
        assert await passes_until(trainer, buffer, 1_300, 0.0) == [1_300]
        await trainer._passes.stop()
        await trainer._live.stop()
