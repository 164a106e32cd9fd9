"""A pipeline on a disk that stands still: events, flushes, rebalances and stops go on."""

import asyncio
from types import SimpleNamespace

import pytest

from models.recommend import Recommender
from state.items import ItemIndex
from streams.metrics import Metrics
from streams.pipeline import Pipeline
from streams.restore import Restored
from streams.settings import load_settings
from tests.streams.snapshot_rig import NOW, Broker, Disk, until


class Acknowledged:
    """An event of the transport."""

    def __init__(self, batch):
        self.value, self.acked = (batch,), False
        self.message = SimpleNamespace(value=self.value)

    def ack(self):
        self.acked = True


@pytest.fixture
async def pipeline(tmp_path, monkeypatch):
    async def nothing(*_args):
        return Restored()

    monkeypatch.setattr("streams.pipeline.restore", nothing)
    disk = Disk(monkeypatch)
    given = load_settings(
        state_dir=tmp_path, snapshot_interval_seconds=0.01, rebalance_timeout_seconds=2, top_k=3, _env_file=None
    )
    made = Pipeline(given, Recommender(ItemIndex(), k=3), Metrics())
    made.disk, broker = disk, Broker()
    made._flushes._output = broker
    made._output = Broker()
    made._output.outstanding = list
    for name in ("taken", "room"):
        setattr(made._output, name, lambda *_: asyncio.sleep(0))
    await made.assign({3, 4})
    for partition in made.partitions.values():
        partition.changelog_next = 0
    yield made
    disk.free.set()
    await made._snapshots.stop()
    made._thread.shutdown()


async def send(pipeline, record_batch, offset):
    event = Acknowledged(record_batch("clicks", [(f"u{offset}", "i1", offset, NOW)]))
    await pipeline.put(event)
    await pipeline._round()
    return event


async def test_events_are_answered_and_acknowledged_while_the_disk_stands_still(pipeline, record_batch):
    pipeline.disk.free.clear()
    await asyncio.sleep(0.02)  # a snapshot is due
    for offset in range(6):
        event = await send(pipeline, record_batch, offset)
        async with asyncio.timeout(5):
            await pipeline._flush()
            await pipeline._flushes.settled()
        assert event.acked
        while pipeline._snapshots.copying:
            await pipeline._snapshots.copy_some(pipeline.in_thread)
        await until(lambda: pipeline.disk.begun)
    async with asyncio.timeout(5):
        await pipeline.drain()  # a rebalance waits for no disk either
        await pipeline.assign({4})
    assert list(pipeline.partitions) == [4]


async def test_a_stop_writes_all_snapshots_and_waits_for_a_disk_that_stands_still_half_of_its_time_only(
    pipeline, record_batch, caplog
):
    event = await send(pipeline, record_batch, 1)
    await pipeline.drain(snapshot=True)
    assert event.acked
    assert {path.name for path in pipeline.settings.state_dir.rglob("users-*")} == {
        "users-00003.snapshot", "users-00004.snapshot",
    }  # fmt: skip
    pipeline.disk.free.clear()
    await send(pipeline, record_batch, 2)
    async with asyncio.timeout(1.9):
        await pipeline.drain(snapshot=True)
    assert "did not take all snapshots" in caplog.text


async def test_a_stop_in_the_middle_of_a_rebalance_waits_for_no_snapshot(pipeline, record_batch):
    event = await send(pipeline, record_batch, 1)
    await pipeline._flush(snapshot=True)
    await pipeline.drain()
    async with asyncio.timeout(0.9):
        await pipeline.drain(snapshot=True)
        assert await pipeline._snapshots.stop()
    assert event.acked
    assert not list(pipeline.settings.state_dir.rglob("*users-*"))
