from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks.harness.leave_one_out import split, train_ours
from benchmarks.harness.recbole import NAME, write_interactions
from benchmarks.training import summary
from models.tables import Events
from models.training_settings import TrainingSettings
from tests.models.learning import stream


def events(number: int = 2_000) -> Events:
    users, items, times = zip(*stream(number), strict=True)
    return Events(pl.Series(users), pl.Series(items), np.zeros(number, np.uint8), np.array(times, np.int64))


def test_the_last_two_events_of_each_user_are_left_out() -> None:
    data = split(events())
    ends = data.whole.starts[1:]
    assert np.flatnonzero(data.test).tolist() == (ends - 1).tolist()
    assert np.flatnonzero(data.valid).tolist() == (ends - 2).tolist()
    assert len(data.train) == 2_000 - 2 * data.whole.users
    assert data.samples == len(data.train) - data.whole.users
    first = slice(0, int(data.train.starts[1]))
    assert data.train.items[first].tolist() == data.whole.items[: first.stop].tolist()


def test_users_of_two_events_only_train() -> None:
    users, items = pl.Series(["a", "a", "b", "b", "b"]), pl.Series(["x", "y", "x", "y", "x"])
    data = split(Events(users, items, np.zeros(5, np.uint8), np.arange(5)))
    assert np.flatnonzero(data.test).tolist() == [4]
    assert np.diff(data.train.starts).tolist() == [2, 1]
    assert data.samples == 1


def test_our_side_learns_and_keeps_its_best_epoch() -> None:
    settings = TrainingSettings(learning_rate=0.03, window=20, batch_steps=200, batches=10, warmup=0.1)
    found = train_ours(
        split(events()), epochs=5, patience=2, hidden=16, embedding=8, seed=0, settings=settings, dropout=0.1
    )
    assert len(found["epoch_seconds"]) == len(found["valid_ndcg_at_10"]) <= 5
    assert found["valid_ndcg_at_10"][found["best_epoch"] - 1] == max(found["valid_ndcg_at_10"])
    assert found["ndcg_at_10"] > 0.2  # 30 items: chance is 0.15
    figures = summary(found, {"epoch_seconds": [2.0, 4.0], "samples": 300, "hr_at_10": 0.1, "ndcg_at_10": 0.05})
    assert figures["ratio"] == pytest.approx(3.0 / np.median(found["epoch_seconds"]), rel=0.01)
    assert figures["recbole_samples_per_second"] == 100.0
    assert summary(found, None)["ratio"] is None


def test_recbole_is_given_the_same_order(tmp_path: Path) -> None:
    write_interactions(events(300), tmp_path)
    lines = (tmp_path / NAME / f"{NAME}.inter").read_text().splitlines()
    assert lines[0] == "user_id:token\titem_id:token\ttimestamp:float"
    assert len(lines) == 301
    times = np.array([line.split("\t")[2] for line in lines[1:]], np.float32)
    assert (np.diff(times) > 0).all()
