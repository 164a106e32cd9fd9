"""What a pipeline must not do after a failure, and how it shares room; with a broker: `test_worker_*_broker.py`."""

import asyncio
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from models.recommend import Recommender
from state.items import ItemIndex
from streams.exchange import TransitionExchange
from streams.metrics import Metrics
from streams.pipeline import Pipeline
from streams.restore import Restored
from streams.settings import load_settings


@pytest.fixture
def pipeline(tmp_path, monkeypatch):
    async def nothing(*_args):
        return Restored()

    monkeypatch.setattr("streams.pipeline.restore", nothing)
    made = []

    def make(**options):
        given = load_settings(state_dir=tmp_path, flush_max_dirty_users=20, top_k=3, _env_file=None, **options)
        made.append(Pipeline(given, Recommender(ItemIndex(), k=3), Metrics()))
        return made[-1]

    yield make
    for one in made:
        one._thread.shutdown()


async def test_room_for_resident_users_is_shared_among_the_partitions_held(pipeline):
    one = pipeline(max_resident_users=80)
    for numbers, share in (({0, 1}, 40), ({0, 1, 2, 3}, 20), ({2}, 80), (set(range(100)), 1)):
        await one.assign(numbers)
        assert {partition.store.max_resident for partition in one.partitions.values()} == {share}


async def test_a_drain_after_a_failed_round_makes_nothing_durable(pipeline, record_batch, monkeypatch):
    one = pipeline()
    await one.assign({3})
    partition, begun = one.partitions[3], []
    monkeypatch.setattr(one._flushes, "begin", lambda *_args: begun.append(1))

    async def expired(*_args):
        raise TimeoutError

    monkeypatch.setattr(one._output, "taken", expired)
    with pytest.raises(TimeoutError):
        await one._produce([(partition, [record_batch("clicks", [("u1", "i1", 7, 1_700_000_000_000)])])], 1)
    assert len(partition.store.arena) == 1  # the event is in the state, and nobody was answered
    with pytest.raises(TimeoutError):
        await one.drain()
    assert not begun


async def test_many_changed_users_are_flushed_before_the_interval_ends(pipeline):
    one = pipeline()
    await one.assign({0})
    arena = one.partitions[0].store.arena
    one._applied = 21
    assert not one._many_changed  # many events of few users
    arena.dirty = np.ones(21, np.bool_)
    assert one._many_changed
    one._applied = 20
    assert not one._many_changed


async def test_a_start_that_fails_early_leaves_what_was_learnt_before(pipeline, tmp_path):
    one = pipeline()
    exchange = TransitionExchange(one.settings, one, None, 0)
    exchange._path.parent.mkdir(parents=True)
    exchange._path.write_bytes(b"learnt")
    await exchange.on_stop()
    assert exchange._path.read_bytes() == b"learnt"
    exchange._path.write_bytes(b"")
    await exchange.on_first_start()  # an empty file is set aside
    assert not exchange._path.exists() and exchange._path.with_suffix(".bad").exists()


async def test_a_stop_waits_for_the_flush_that_has_begun(pipeline, monkeypatch):
    async def nothing(*_args):
        pass

    begun = threading.Event()

    def slow(*_args):
        begun.set()
        time.sleep(0.2)
        return SimpleNamespace(batches=[], snapshot=None, erased=[], number=0)

    one = pipeline(commit_interval_seconds=0.1)
    for part in (one._output, one._flushes):
        for name in ("start", "stop"):
            monkeypatch.setattr(part, name, nothing)
    monkeypatch.setattr("streams.pipeline.flush_partition", slow)
    monkeypatch.setattr(one._snapshots, "begin", lambda _flushed: None)
    await one.start()
    await one.assign({0, 1, 2})
    await asyncio.to_thread(begun.wait, 10)
    await one.stop()
    assert one.crash_reason is None
