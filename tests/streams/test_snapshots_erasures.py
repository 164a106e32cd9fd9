"""Erasures beside the flushes: durable once no file holds the user, tried again until then."""

from state.cold import ColdStore
from streams.fetch import RecordBatch
from tests.streams.snapshot_rig import until


def erase(partition, *users, first=0):
    n = len(users)
    batch = RecordBatch(
        "forget-users", 0, list(range(first, first + n)), [0] * n, [u.encode() for u in users], [b""] * n, 9
    )
    assert partition.erasures.take(batch, "event", partition.store.forget) == []
    return partition.erasures.open()[-n:]


async def test_erasures_are_durable_once_file_and_cold_store_are_without_their_users(rig, tmp_path):
    one = rig(snapshot_interval_seconds=0)
    disk = ColdStore(tmp_path / "cold")
    try:
        partition = one.partition(cold=disk.partition(0))
        partition.store.max_resident = 2
        for user in ("ann", "bob", "cid", "dan"):
            one.event(partition, user)
        one.flush(partition)
        await one.flushes.settled()
        await one.done()
        assert one.snapshots.due([partition]) == set()
        (gone,) = erase(partition, "ann")
        assert one.snapshots.due([partition]) == {0}
        one.disk.free.clear()
        one.flush(partition)
        await one.flushes.settled()
        await one.copied()
        await until(lambda: len(one.disk.begun) == 2)
        assert (gone.captured, gone.durable) == (True, False)
        one.disk.free.set()
        await one.done()
        assert gone.durable
        assert "ann" not in one.held()[1]
        assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"ann" in path.read_bytes()]
    finally:
        disk.close()


async def test_erasures_that_a_disk_refused_leave_no_old_snapshot_behind(rig):
    one = rig()
    partition = one.partition()
    one.event(partition, "ann")
    one.flush(partition)
    await one.flushes.settled()
    await one.done()
    (gone,) = erase(partition, "ann")
    one.disk.broken = True
    one.flush(partition)
    await one.flushes.settled()
    await one.done()
    assert (one.files(), gone.durable, partition.snapshot_next) == ([], True, -1)


async def test_erasures_whose_snapshot_was_given_up_are_captured_again(rig):
    one = rig()
    partition = one.partition()
    one.event(partition, "ann")
    (gone,) = erase(partition, "bob")
    one.broker.holding = True
    one.flush(partition)
    await one.copied()
    await until(lambda: one.broker.held)
    assert gone.captured
    one.broker.end[0] = 5
    one.broker.acknowledge()
    await one.flushes.settled()
    await one.done()
    assert (gone.captured, gone.durable) == (False, False)


async def test_a_purge_that_fails_is_tried_again_and_stops_nothing(rig, monkeypatch, caplog):
    one = rig()
    partition = one.partition()
    one.event(partition, "ann")
    (gone,) = erase(partition, "ann")
    failing = [OSError(5, "Input/output error")]
    monkeypatch.setattr(partition.store, "purge", lambda *_: (_ for _ in ()).throw(failing.pop()) if failing else True)
    for durable in (False, True):
        one.flush(partition)
        await one.flushes.settled()
        await one.done()
        assert (gone.durable, gone.captured) == (durable, durable)
    assert "Input/output error" in caplog.text
