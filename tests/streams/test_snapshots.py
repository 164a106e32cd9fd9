"""Snapshots beside the flushes: what they hold, who waits for whom, and what comes of those that fail or are late."""

import asyncio
import os

import pytest

import streams.snapshots
from streams.partition import flush_partition
from tests.streams.snapshot_rig import NOW, until


async def test_a_snapshot_holds_what_its_own_flush_wrote_however_late_it_is(rig):
    one = rig()
    partition = one.partition()
    one.event(partition, "ann")
    one.flush(partition)
    for _ in range(3):  # before a single row was copied, and with the flush before not settled on disk
        one.event(partition, "ann")
        one.event(partition, "bob")
        await one.flushes.settled()
        one.flush(partition, snapshot=False)
    await one.flushes.settled()
    await one.done()
    assert partition.changelog_next == 7
    assert one.held() == (1, {"ann": 1})
    assert (partition.snapshot_next, one.count("written")) == (1, 1)
    assert one.files() == ["users-00000.snapshot"]
    one.flush(partition)
    await one.flushes.settled()
    await one.done()
    assert one.held() == (7, {"ann": 4, "bob": 3})


async def test_flushes_go_on_while_the_disk_stands_still_and_one_partition_is_written_at_a_time(rig):
    one = rig()
    partitions = [one.partition(number) for number in range(3)]
    one.disk.free.clear()
    for partition in partitions:
        one.event(partition, "ann")
    assert one.snapshots.due(partitions, True) == {0, 1, 2}
    one.flush(*partitions)
    await one.copied()
    await until(lambda: one.disk.begun == [0])
    for _ in range(5):
        one.event(partitions[0], "bob")
        one.flush(*partitions, snapshot=False)
        await asyncio.wait_for(one.flushes.settled(), 5)
    assert one.disk.begun == [0]
    assert one.snapshots.due(partitions, True) == set()  # what is captured would only wait in memory
    one.disk.free.set()
    await one.done()
    assert one.disk.begun == [0, 1, 2]
    assert [one.held(number) for number in range(3)] == [(1, {"ann": 1})] * 3


async def test_nothing_is_written_before_the_changelog_has_it(rig):
    one = rig()
    partition = one.partition()
    one.event(partition, "ann")
    one.broker.holding = True
    one.flush(partition)
    await one.copied()
    await asyncio.sleep(0.1)
    assert (one.disk.begun, one.files()) == ([], [])
    one.broker.acknowledge()
    await one.flushes.settled()
    await one.done()
    assert one.held() == (1, {"ann": 1})


async def test_a_flush_that_ended_without_being_acknowledged_has_no_snapshot(rig):
    one = rig()
    partition = one.partition()
    one.event(partition, "ann")
    one.snapshots.begin([flush_partition(partition, NOW, None, True)])
    await one.copied()
    one.event(partition, "bob")
    one.flush(partition)
    await one.flushes.settled()
    await one.done()
    assert one.held() == (1, {"ann": 1, "bob": 1})
    assert (one.count("dropped"), one.count("written")) == (1, 1)


@pytest.mark.parametrize("abandoned", [False, True], ids=["still held", "lost"])
async def test_records_of_others_between_are_in_no_snapshot(rig, abandoned):
    """The file would be dated behind records that this worker has not read: nobody would read them again."""
    one = rig()
    partition = one.partition()
    one.event(partition, "ann")
    one.broker.holding = True
    one.flush(partition)
    await one.copied()
    await until(lambda: one.broker.held)
    if abandoned:
        one.flushes.forget()
    one.broker.end[0] = 9
    one.broker.acknowledge()
    await one.flushes.settled()
    await one.done()
    assert (one.files(), one.count("dropped"), partition.snapshot_next) == ([], 1, -1)
    if not abandoned:  # everything is written again, and that flush's state stands behind all of it
        assert partition.rewrite
        one.broker.holding = False
        one.flush(partition)
        await one.flushes.settled()
        await one.done()
        assert one.held() == (11, {"ann": 1})


async def test_a_partition_that_leaves_while_its_snapshot_is_written_keeps_the_file_before(rig):
    one = rig()
    partition, staying = one.partition(), one.partition(1)
    one.event(partition, "ann")
    one.flush(partition)
    await one.flushes.settled()
    await one.done()
    one.disk.free.clear()
    for number, written in ((0, partition), (1, staying)):
        one.event(written, "bob")
        assert written.number == number
    one.flush(partition, staying)
    await one.flushes.settled()
    await one.copied()
    await until(lambda: one.disk.begun == [0, 0])
    await one.snapshots.hold_back()
    one.snapshots.forget([0])
    await asyncio.wait_for(one.snapshots.left([0]), 1)  # whose file is not waited for
    one.snapshots.go_on()
    one.disk.free.set()
    await one.done()
    assert one.held(0) == (1, {"ann": 1})
    assert one.held(1) == (1, {"bob": 1})
    assert one.files() == ["users-00000.snapshot", "users-00001.snapshot"]
    assert (one.count("dropped"), one.count("written")) == (1, 2)


@pytest.mark.parametrize("membership", ["unsure", "handing over"])
async def test_no_file_takes_its_place_while_others_may_hold_the_partition(rig, membership):
    one = rig()
    partition = one.partition()
    one.event(partition, "ann")
    one.flush(partition)
    await one.flushes.settled()
    if membership == "unsure":
        one.membership = "unsure"
    else:
        await one.snapshots.hold_back()
        assert one.snapshots.due([partition], True) == set()
    await one.copied()
    await until(lambda: one.files() == [f".users-00000.snapshot.{os.getpid()}.tmp"])
    await asyncio.sleep(0.2)
    assert one.held() is None
    one.membership = "held"
    one.snapshots.go_on()
    await one.done()
    assert one.held() == (1, {"ann": 1})
    assert one.files() == ["users-00000.snapshot"]


async def test_a_disk_that_refuses_is_counted_and_the_next_snapshot_is_tried(rig, caplog):
    one = rig()
    partition = one.partition()
    one.disk.broken = True
    one.event(partition, "ann")
    one.flush(partition)
    await one.flushes.settled()
    await one.done()
    assert (one.count("failed"), one.files(), partition.snapshot_next) == (1, [], -1)
    assert "No space left" in caplog.text
    one.disk.broken = False
    one.flush(partition)
    await one.flushes.settled()
    await one.done()
    assert one.held() == (1, {"ann": 1})


async def test_stopping_gives_up_what_the_disk_does_not_take(rig, monkeypatch):
    monkeypatch.setattr(streams.snapshots, "_STOP_SECONDS", 0.2)
    one = rig()
    partition = one.partition()
    one.disk.free.clear()
    one.event(partition, "ann")
    one.flush(partition)
    await one.flushes.settled()
    await one.copied()
    await until(lambda: one.disk.begun)
    assert not await one.snapshots.finished(0.1)
    assert not await asyncio.wait_for(one.snapshots.stop(), 5)
    one.disk.free.set()
    await until(lambda: not one.snapshots._thread._threads or one.files() == [])
    assert one.held() is None


async def test_partitions_are_due_after_an_interval_the_longest_wait_first_and_few_users_at_a_time(rig, monkeypatch):
    one = rig(snapshot_interval_seconds=60)
    partitions = [one.partition(number) for number in range(5)]
    for number, partition in enumerate(partitions):
        partition.store.arena.slots([f"u{n}" for n in range(40)])
        partition.captured_at -= 50 + 10 * number
    assert one.snapshots.due(partitions) == {1, 2, 3, 4}
    monkeypatch.setattr(streams.snapshots, "_USERS_AT_ONCE", 100)
    assert one.snapshots.due(partitions) == {4, 3}
    monkeypatch.setattr(streams.snapshots, "_USERS_AT_ONCE", 10)
    assert one.snapshots.due(partitions) == {4}
    never = rig(snapshot_interval_seconds=0)
    assert never.snapshots.due(partitions) == set()
    assert never.snapshots.due(partitions, True) == {4}
