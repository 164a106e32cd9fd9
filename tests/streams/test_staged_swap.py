import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.recommend import Recommender
from models.serving import ServingModel
from state.arena import Arena
from state.items import ItemIndex
from state.store import UserStore
from streams.fetch import RecordBatch
from streams.metrics import Metrics
from streams.partition import Partition
from streams.pipeline import Pipeline
from streams.settings import load_settings
from streams.staged_swap import swap_staged

T0 = 1_700_000_000_000


class Running:
    """A pipeline that was never started, with one partition whose rounds the test makes."""

    def __init__(self, folder: Path, model: ServingModel, record_batch: Callable[..., RecordBatch]) -> None:
        self.recommender = Recommender(ItemIndex(), k=3, exclude="none")
        self.recommender.swap(model)
        self.pipeline = Pipeline(load_settings(state_dir=folder), self.recommender, Metrics())
        store = UserStore(Arena(self.recommender.state_size, 3), self.recommender.items)
        self.pipeline.partitions[0] = Partition(0, store)
        self._batch, self._offset = record_batch, 0

    @property
    def arena(self) -> Arena:
        return self.pipeline.partitions[0].store.arena

    def serve(self, users: int, events: int = 1) -> None:
        rows = []
        for _ in range(events):
            for user in range(users):
                self._offset += 1
                rows.append((f"u{user}", f"i{self._offset % 7}", self._offset, T0 + 1000 * self._offset))
        self.pipeline._compute.round([(self.pipeline.partitions[0], [self._batch("clicks", rows, 0)])])

    async def rounds(self, seconds: float, pause: float) -> None:
        """What the pipeline does: rounds of `seconds` under its lock."""
        while True:
            async with self.pipeline._turn:
                await self.pipeline.in_thread(time.sleep, seconds)
                await self.pipeline.in_thread(self.serve, 5)
            await asyncio.sleep(pause)


@pytest.fixture
def running(
    tmp_path: Path, serving_model: Callable[..., ServingModel], record_batch: Callable[..., RecordBatch]
) -> Any:
    found = Running(tmp_path, serving_model(seed=1, fingerprint=1), record_batch)
    yield found
    found.pipeline._thread.shutdown()


async def test_everybodys_vector_is_there_when_the_version_serves(
    running: Running, serving_model: Callable[..., ServingModel]
) -> None:
    running.serve(users=200, events=3)
    new = serving_model(seed=2, fingerprint=2)
    load = asyncio.create_task(running.rounds(0.001, 0.001))
    await swap_staged(running.pipeline, new)
    load.cancel()
    await asyncio.gather(load, return_exceptions=True)
    assert running.recommender.model is new
    occupied = np.flatnonzero(running.arena.count)
    assert len(occupied) == 200
    assert (running.arena.model[occupied] == 2).all()
    assert running.recommender.settle(1)  # nothing is left of the preparation


async def test_a_worker_that_is_behind_swaps_at_once(
    running: Running, serving_model: Callable[..., ServingModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.staged_swap._BEHIND_SECONDS", 0.05)
    running.serve(users=200)
    new = serving_model(seed=2, fingerprint=2)
    load = asyncio.create_task(running.rounds(0.2, 0.0))
    await asyncio.sleep(0.01)
    started = time.monotonic()
    while running.recommender.model is not new:
        await asyncio.wait_for(swap_staged(running.pipeline, new), 10)
    load.cancel()
    await asyncio.gather(load, return_exceptions=True)
    assert time.monotonic() - started < 3
    fresh = running.arena.model[np.flatnonzero(running.arena.count)] == 2
    assert not fresh.all()  # the others follow at their next event
