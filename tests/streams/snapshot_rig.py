"""Flushes and their snapshots without a broker, on a disk that stands still or refuses when told to."""

import asyncio
import threading
from types import SimpleNamespace

import numpy as np

import streams.snapshots
from state.arena import Arena
from state.errors import StateError
from state.items import ItemIndex
from state.snapshot import prepare, read
from state.store import UserStore
from streams.flushes import Flushes
from streams.metrics import Metrics
from streams.partition import Partition, flush_partition, snapshot_path
from streams.settings import load_settings

NOW = 1_700_000_000_000


class Broker:
    """Acknowledges changelog batches one after the other, or when told to."""

    def __init__(self):
        self.end, self.holding, self.held = {}, False, []

    def send(self, _topic, number, encoded):
        future = asyncio.get_running_loop().create_future()
        self.held.append((future, number, encoded.record_count()))
        if not self.holding:
            self.acknowledge()
        return future

    def acknowledge(self):
        for future, number, count in self.held:
            future.set_result(SimpleNamespace(offset=self.end.get(number, 0)))
            self.end[number] = self.end.get(number, 0) + count
        self.held = []


class Disk:
    """A disk that stops when told to."""

    def __init__(self, monkeypatch):
        self.free, self.begun, self.broken = threading.Event(), [], False
        self.free.set()
        monkeypatch.setattr(streams.snapshots, "prepare", self._prepare)

    def _prepare(self, path, captured, meta, writer, wanted):
        self.begun.append(meta.partition)
        assert self.free.wait(20)
        if self.broken:
            raise StateError("cannot write", "No space left on device", "free some")
        return prepare(path, captured, meta, writer, wanted)


class Rig:
    """Flushes of partitions without a pipeline around them."""

    def __init__(self, tmp_path, monkeypatch, **settings):
        self.settings = load_settings(state_dir=tmp_path, _env_file=None, **settings)
        self.membership, self.metrics = "held", Metrics()
        self.flushes = Flushes(self.settings, self.metrics, "log", lambda: self.membership)
        self.snapshots = self.flushes.snapshots
        self.broker = self.flushes._output = Broker()
        self.disk = Disk(monkeypatch)
        self.index, self.events = ItemIndex(), 0

    def partition(self, number=0, cold=None):
        return Partition(number, UserStore(Arena(4, 2), self.index, cold), changelog_next=0)

    def event(self, partition, user):
        arena, self.events = partition.store.arena, self.events + 1
        slots = partition.store.slots([user])
        items = self.index.numbers([f"i{self.events}"])
        arena.apply(slots, items, np.array([0]), np.array([NOW]), np.array([self.events]), NOW)

    def flush(self, *partitions, snapshot=True):
        self.flushes.begin([], [flush_partition(one, NOW, None, snapshot) for one in partitions], [], 0.0)

    async def copied(self):
        while self.snapshots.copying:
            await self.snapshots.copy_some(in_place)

    async def done(self):
        await self.copied()
        assert await self.snapshots.finished(20)

    def path(self, number=0):
        return snapshot_path(self.settings.state_dir, self.settings.app_id, number)

    def held(self, number=0):
        """What the snapshot on disk says: the changelog's offset, and the events of each user."""
        found = read(self.path(number))
        if found is None:
            return None
        store = UserStore(Arena(4, 2), ItemIndex())
        store.restore(found)
        return found.meta.changelog_offset, {
            user: int(store.arena.count[store.arena.find(user)]) for user in store.arena.users
        }

    def count(self, result):
        return self.metrics.snapshots.labels(result)._value.get()

    def files(self):
        return sorted(path.name for path in self.path().parent.glob("*")) if self.path().parent.exists() else []


async def in_place(work, *args):
    return work(*args)


async def until(true):
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.01)
