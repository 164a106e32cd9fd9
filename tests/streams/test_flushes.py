"""A flush whose changelog records land behind another worker's, on each broker."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiokafka import AIOKafkaProducer

from state.arena import Arena
from state.items import ItemIndex
from state.snapshot import read
from state.store import UserStore
from streams.consumer import Membership
from streams.flushes import Flushes
from streams.kafka import client_options
from streams.metrics import Metrics
from streams.partition import Partition, flush_partition, snapshot_path
from streams.settings import Settings
from streams.topics import CHANGELOG

pytestmark = pytest.mark.broker
NOW = 1_700_000_000_000


class Event:
    """An event that is acknowledged or not."""

    acked = False

    def ack(self) -> None:
        self.acked = True


class Writer:
    """A worker's flushes of partition 0, held up on their way to the broker while another worker writes there."""

    def __init__(self, settings: Settings) -> None:
        self.membership: Membership = "held"
        self.flushes = Flushes(settings, Metrics(), "log", lambda: self.membership)
        self.partition = Partition(0, UserStore(Arena(4, 2), ItemIndex()), changelog_next=0)
        self.snapshot = snapshot_path(settings.state_dir, settings.app_id, 0)
        self._settings = settings

    def apply(self, user: str) -> None:
        store, zero = self.partition.store, np.zeros(1, np.int64)
        store.arena.apply(store.slots([user]), store.index.numbers(["i1"]), zero, zero + NOW, zero, zero + NOW)

    def begin(self) -> Event:
        """Begin a flush with a snapshot; returns the event it is to acknowledge."""
        event = Event()
        self.flushes.begin([], [flush_partition(self.partition, NOW, None, True)], [event], time.monotonic())
        return event

    async def saved(self) -> None:
        """Let the flush, and what is to follow on the disk, come to an end."""
        await self.flushes.settled()
        while self.flushes.snapshots.copying:
            await self.flushes.snapshots.copy_some(asyncio.to_thread)
        assert await self.flushes.snapshots.finished(10)

    async def begin_late(self) -> Event:
        """The same, and its records wait until nine of another worker are in the log."""
        send, loop = self.flushes._output.send, asyncio.get_running_loop()
        late: asyncio.Future[Any] = loop.create_future()
        on_its_way: asyncio.Future[Any] = loop.create_future()
        self.flushes._output.send = lambda *batch: on_its_way.set_result(batch) or late  # type: ignore[func-returns-value]
        event = self.begin()
        batch = await on_its_way
        self.flushes._output.send = send
        async with AIOKafkaProducer(**client_options(self._settings)) as other:
            for _ in range(9):
                await other.send_and_wait(CHANGELOG, b"of the next owner", key=b"ann", partition=0)
        written = await send(*batch)
        loop.call_soon(late.set_result, written)
        return event


@pytest.fixture
async def writer(contract_settings: Settings, tmp_path: Path, unique: Callable[[str], str]) -> AsyncIterator[Writer]:
    state = {"state_dir": tmp_path, "app_id": unique("flushes")}
    writer = Writer(contract_settings.model_copy(update=state))
    writer.snapshot.parent.mkdir(parents=True)
    await writer.flushes.start()
    yield writer
    await writer.flushes.snapshots.stop()
    await writer.flushes.stop()


@pytest.mark.parametrize("told", ["by itself", "by its membership"])
async def test_whoever_lost_a_partition_meanwhile_writes_no_snapshot_and_acknowledges_nothing(
    writer: Writer, told: str
) -> None:
    """Its snapshot would be as new as its records, and the next start would never read what stands before them."""
    writer.apply("ann")
    event = await writer.begin_late()
    if told == "by itself":
        writer.flushes.forget()
    else:
        writer.membership = "lost"
    await writer.saved()
    assert not writer.snapshot.exists()
    assert not event.acked
    assert not writer.partition.rewrite


async def test_whoever_holds_it_still_writes_its_snapshot_behind_what_it_writes_again(writer: Writer) -> None:
    writer.apply("ann")
    event = await writer.begin_late()
    await writer.saved()
    assert not writer.snapshot.exists()
    assert (event.acked, writer.partition.rewrite, writer.flushes.take_events()) == (False, True, [event])
    again = writer.begin()
    await writer.saved()
    assert again.acked
    found = read(writer.snapshot)
    assert found is not None and found.meta.changelog_offset == 11  # nine, the late one, and the one written again
