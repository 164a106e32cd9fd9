"""A small log through recommenders and the learning path."""

import itertools
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from benchmarks.quality.learning import LearningPath
from benchmarks.quality.log import Log
from benchmarks.quality.stream import Streamed, stream
from streams.console import Bar
from streams.settings import load_settings
from tests.benchmarks.logs import random_log

DELAY = 200
BATCH = 50
SMALL: dict[str, Any] = {
    "cold_start_events": 400,
    "train_every_events": 500,
    "train_epochs": 1,
    "model_hidden": 16,
    "model_embedding": 8,
}


class _Silent:
    def to(self, done: float, total: float | None = None, note: str = "") -> None:
        """Take no notice."""


def run(
    log: Log, folder: Path, delay: int | None = DELAY, rate: float = 1000.0, share: float = 1.0
) -> tuple[Streamed, LearningPath]:
    learning = LearningPath(load_settings(**SMALL), folder, delay, rate, share)
    try:
        return stream(log, load_settings(**SMALL), learning, BATCH, cast(Bar, _Silent())), learning
    finally:
        learning.close()


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Streamed, LearningPath, Log]:
    log = random_log(2000, 30, 40)
    return *run(log, tmp_path_factory.mktemp("stream")), log


def test_every_method_ranks_every_event(ran: tuple[Streamed, LearningPath, Log]) -> None:
    streamed, _, log = ran
    first = log.items == log.seen
    for name, ranks in streamed.ranks.items():
        assert not np.isnan(ranks).any(), name
        assert (ranks >= 1).all(), name
        assert np.isinf(ranks[first]).all(), name


def test_the_memory_finds_the_walks_and_the_fused_system_is_no_worse(ran: tuple[Streamed, LearningPath, Log]) -> None:
    streamed, _, log = ran
    hit = {name: (ranks[log.half :] <= 3).mean() for name, ranks in streamed.ranks.items()}
    assert hit["transitions"] > 0.35
    assert hit["fused"] > hit["transitions"] - 0.03
    assert hit["served"] > 0.3


def test_the_memory_alone_never_adapts() -> None:
    from benchmarks.quality.stream import _memory_alone
    from models.batches import Histories

    fusion = _memory_alone()
    before = fusion.weights.values.copy()
    n = 200
    items = np.tile(np.arange(1, 11, dtype=np.int32), n // 10)
    past = Histories(
        np.roll(items, 1)[:, None].copy(), np.zeros((n, 1), np.uint8), np.zeros((n, 2), np.int64), np.ones(n, np.int32)
    )
    fused = fusion.process(items, np.zeros(n, np.uint8), np.zeros(n, np.int64), past, test_all=True)
    assert np.abs(fusion.weights.values - before).max() < 1e-9
    assert (fused.ranks[100:] == 1).all()


def test_passes_begin_by_cadence_and_serve_after_the_delay(ran: tuple[Streamed, LearningPath, Log]) -> None:
    streamed, learning, log = ran
    cold = learning.passes[0]
    assert (cold.seen, cold.trigger, cold.origin) == (400, "cold-start", "first fit")
    for done in learning.passes:
        if done.serves_from is not None:
            assert done.serves_from == done.seen + DELAY
            assert done.version in streamed.versions or done.serves_from == len(log)
    starts = [done.seen for done in learning.passes]
    assert all(later - earlier >= DELAY for earlier, later in itertools.pairwise(starts))
    assert sum(streamed.versions.values()) == len(log)


def test_without_a_delay_a_version_serves_when_the_pass_would_have_ended(tmp_path: Path) -> None:
    rate, share = 50.0, 0.5
    _, learning = run(random_log(1200, 30, 40), tmp_path, None, rate, share)
    promoted = [done for done in learning.passes if done.serves_from is not None]
    assert promoted
    for done in promoted:
        ended = done.seen + done.cpu_seconds * rate / share
        assert done.cpu_seconds > 0
        assert ended - 1 <= done.serves_from <= ended + BATCH + 1  # the seconds are rounded to hundredths


def test_a_pass_that_the_log_is_too_short_for_is_listed(tmp_path: Path) -> None:
    _, learning = run(random_log(600, 30, 40), tmp_path, 10_000)
    assert [(done.seen, done.trigger, done.serves_from) for done in learning.passes] == [(400, "cold-start", None)]


def test_frozen_is_what_served_at_the_half(ran: tuple[Streamed, LearningPath, Log]) -> None:
    streamed, learning, log = ran
    promoted = [done for done in learning.passes if done.serves_from is not None and done.serves_from <= log.half]
    if not promoted:
        pytest.skip("the gate let nothing through")
    assert streamed.frozen == promoted[-1].version
    later = [
        done.serves_from for done in learning.passes if done.serves_from is not None and done.serves_from > log.half
    ]
    until = min(later, default=len(log))
    same = slice(log.half, until)
    assert np.array_equal(streamed.ranks["frozen"][same], streamed.ranks["fine_tuned"][same])


def test_the_same_log_gives_the_same_ranks(tmp_path: Path) -> None:
    log = random_log(700, 30, 40)
    one, two = (run(log, tmp_path / name)[0].ranks for name in ("one", "two"))
    assert all(np.array_equal(one[name], two[name]) for name in one)
