from pathlib import Path

import numpy as np

from state.arena import Arena
from state.cold import ColdStore
from state.items import ItemIndex
from state.record import decode
from state.store import UserStore
from streams.fetch import RecordBatch
from streams.partition import Partition, flush_partition, snapshot_path, tombstones

NOW = 1_700_000_000_000


def partition_with(users, touched=None, **store_options):
    store = UserStore(Arena(4, 2, capacity=1), ItemIndex(), **store_options)
    slots = store.slots(users)
    n = len(users)
    store.arena.apply(
        slots, store.index.numbers([f"i{n}" for n in range(n)]), np.zeros(n, np.int64), np.full(n, NOW),
        np.arange(n), np.full(n, NOW) if touched is None else np.array(touched),
    )  # fmt: skip
    return Partition(2, store)


def records_of(flushed, read_records):
    return [(one.key.decode(), one.value) for batch in flushed.batches for one in read_records(batch._build())]


def test_changed_users_are_written_once_with_their_whole_state(read_records):
    partition = partition_with(["ann", "zoë", "b\\"])
    flushed = flush_partition(partition, NOW, None, False)
    records = records_of(flushed, read_records)
    assert [user for user, _ in records] == ["ann", "zoë", "b\\"]
    rows, bad = decode([value for _, value in records], 4)
    assert not bad.any()
    assert rows["count"].tolist() == [1, 1, 1]
    assert rows["offsets"][:, 0].tolist() == [0, 1, 2]
    assert (flushed.records, flushed.expired, flushed.snapshot) == (3, 0, None)
    again = flush_partition(partition, NOW, None, False)
    assert (again.batches, again.records) == ([], 0)


def test_only_users_changed_since_are_written(read_records):
    partition = partition_with(["ann", "bob"])
    flush_partition(partition, NOW, None, False)
    arena = partition.store.arena
    arena.apply(arena.slots(["bob"]), np.array([1], np.int32), np.array([1]), np.array([NOW]), np.array([9]), NOW)
    assert [user for user, _ in records_of(flush_partition(partition, NOW, None, False), read_records)] == ["bob"]


def test_a_partition_to_be_written_again_writes_every_user_once(read_records):
    partition = partition_with(["ann", "bob", "cid"])
    flush_partition(partition, NOW, None, False)
    partition.store.forget(["bob"])
    partition.rewrite = True
    assert [user for user, _ in records_of(flush_partition(partition, NOW, None, False), read_records)] == [
        "ann",
        "cid",
    ]
    assert flush_partition(partition, NOW, None, False).records == 0


def test_users_past_their_time_leave_a_tombstone_behind_their_last_record(read_records):
    partition = partition_with(["old", "new"], touched=[NOW - 10_000, NOW])
    flushed = flush_partition(partition, NOW, NOW - 5_000, False)
    records = records_of(flushed, read_records)
    assert [user for user, value in records if value is None] == ["old"]
    assert records[-1] == ("old", None)
    assert (flushed.expired, len(partition.store)) == (1, 1)
    assert partition.store.arena.find("old") == -1


def test_many_users_make_several_batches(read_records):
    users = [f"user-{n}" for n in range(3_000)]
    flushed = flush_partition(partition_with(users), NOW, None, False)
    assert len(flushed.batches) > 1
    assert [user for user, _ in records_of(flushed, read_records)] == users


def test_a_flush_moves_users_beyond_the_limit_to_the_cold_store_and_loses_none(tmp_path, read_records):
    with_disk = ColdStore(tmp_path)
    try:
        users = [f"u{n}" for n in range(50)]
        partition = partition_with(users, cold=with_disk.partition(2), max_resident=20)
        flushed = flush_partition(partition, NOW, None, True)
        assert [user for user, _ in records_of(flushed, read_records)] == users
        assert partition.store.resident <= 20
        assert len(partition.store) == 50
        assert flushed.snapshot is not None
        expired = flush_partition(partition, NOW, NOW + 1, False)
        assert sorted(user for user, value in records_of(expired, read_records) if value is None) == sorted(users)
        assert (expired.expired, len(partition.store)) == (50, 0)
    finally:
        with_disk.close()


def test_a_user_who_was_erased_and_came_again_has_the_tombstone_before_the_new_record(read_records):
    partition = partition_with(["ann", "bob"])
    requests = RecordBatch("forget-users", 2, [4, 5], [NOW, NOW], [b"ann", b"nobody"], [b"", b""], 6)
    assert partition.erasures.take(requests, "token", partition.store.forget) == []
    arena = partition.store.arena
    arena.apply(
        partition.store.slots(["ann"]), np.array([1], np.int32), np.array([1]), np.array([NOW]), np.array([9]), NOW
    )
    flushed = flush_partition(partition, NOW, None, True)
    records = records_of(flushed, read_records)
    assert [(user, value is None) for user, value in records] == [
        ("ann", True), ("nobody", True), ("ann", False), ("bob", False),
    ]  # fmt: skip
    assert flushed.snapshot is not None
    assert [one.request.user for one in flushed.erased] == ["ann", "nobody"]
    assert flush_partition(partition, NOW, None, False).batches == []


def test_users_past_their_time_leave_the_cold_store_a_piece_with_each_flush(tmp_path, read_records, monkeypatch):
    """Looking at a million cold users takes over a second, and on a slow disk longer: events come in between."""
    with_disk = ColdStore(tmp_path)
    try:
        cold, looked = with_disk.partition(2), []
        users = [f"u{n}" for n in range(50)]
        partition = partition_with(users, cold=cold, max_resident=10)
        flush_partition(partition, NOW, None, False)
        inner = cold.expire
        monkeypatch.setattr(
            cold, "expire", lambda before, after: looked.append(after) or inner(before, after, limit=15)
        )
        gone = []
        flushed = flush_partition(partition, NOW, NOW + 1, False)
        while partition.expiring is not None:
            assert len(looked) <= len(gone) + 1
            gone.append([user for user, value in records_of(flushed, read_records) if value is None])
            assert flushed.expired == len(gone[-1])
            flushed = flush_partition(partition, NOW, NOW - 1 if len(gone) == 1 else None, False)
        assert sorted(user for piece in gone for user in piece) == sorted(users)
        assert (len(gone), len(looked), len(partition.store)) == (3, 3, 0)
    finally:
        with_disk.close()


def test_nothing_is_captured_where_the_snapshot_has_it_all():
    partition = partition_with(["ann"])
    assert flush_partition(partition, NOW, None, True).snapshot is not None
    partition.changelog_next = partition.snapshot_next = 1
    began = partition.captured_at
    assert flush_partition(partition, NOW, None, True).snapshot is None
    assert partition.captured_at > began
    partition.changelog_next = 2
    assert flush_partition(partition, NOW, None, True).snapshot is not None


def test_tombstones_have_keys_and_no_values(read_records):
    (batch,) = tombstones(["ann", "zoë"], NOW)
    assert [(one.key.decode(), one.value) for one in read_records(batch._build())] == [("ann", None), ("zoë", None)]
    assert tombstones([], NOW) == []


def test_snapshots_of_applications_and_partitions_lie_apart():
    assert snapshot_path(Path("s"), "app", 7) == Path("s/app/users-00007.snapshot")
