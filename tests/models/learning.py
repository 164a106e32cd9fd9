"""Streams to learn from, for the tests of the learning path."""

from pathlib import Path

import numpy as np

from models.finetune import FineTuneSettings
from models.job import Job, LearnSettings, Outcome
from models.learner import Learner
from models.registry import Registry
from models.training_settings import TrainingSettings
from state.replay_buffer import ReplayBuffer, ReplaySettings

QUICK = TrainingSettings(learning_rate=0.03, window=20, batch_steps=200, batches=10, warmup=0.1)
FINE = FineTuneSettings(
    epochs=2, training=QUICK, first_epochs=6, first=QUICK, hidden=24, embedding=16, dropout=0.1, checkpoint_batches=3
)


def stream(events: int, users: int = 40, items: int = 30, seed: int = 0, stride: int = 1) -> list[tuple[str, str, int]]:
    """Users who walk along the items, `stride` at a time, now and then jumping: (user, item, time) in time order."""
    rng = np.random.default_rng(seed)
    at = rng.integers(0, items, users)
    rows = []
    for number in range(events):
        user = int(rng.integers(users))
        at[user] = (at[user] + stride) % items if rng.random() < 0.9 else rng.integers(items)
        rows.append((f"u{user}", f"i{at[user]}", 1_000 * number))
    return rows


def feed(buffer: ReplayBuffer, rows: list[tuple[str, str, int]]) -> None:
    """Append rows behind what the buffer has, as one topic-partition."""
    at = buffer.offset("clicks", 0) or 0
    users, items, times = zip(*rows, strict=True)
    places = np.arange(at, at + len(rows))
    buffer.append("clicks", 0, users, items, np.zeros(len(rows), np.uint8), times, places)


def a_buffer(directory: Path, rows: list[tuple[str, str, int]]) -> ReplayBuffer:
    """A new buffer with rows in it."""
    buffer = ReplayBuffer(directory, ReplaySettings(capacity=50_000))
    feed(buffer, rows)
    return buffer


SETTINGS = LearnSettings(recent=600, reservoir=600, refit_growth=3.0, keep_versions=4, fine=FINE)


def learner_in(folder: Path, settings: LearnSettings = SETTINGS, device: str = "cpu") -> Learner:
    return Learner(Registry(folder / "registry"), folder, settings, device, origin={"code": "test"})


def run(learner: Learner, job: Job | None) -> Outcome:
    assert job is not None
    outcome = learner.run(job)
    assert outcome is not None
    learner.finish()
    return outcome
