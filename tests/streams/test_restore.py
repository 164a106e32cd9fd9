"""What restoring makes of snapshots by their dates, and of a changelog in which an older record follows a newer one."""

import time
from pathlib import Path

import numpy as np
import pytest

from state.arena import Arena
from state.cold import ColdStore
from state.errors import StateError
from state.items import ItemIndex
from state.record import empty_rows, encode
from state.snapshot import SnapshotMeta, save
from state.store import UserStore
from streams.fetch import RecordBatch
from streams.partition import Partition, snapshot_path
from streams.restore import CLOCK_SKEW_MS, MAX_SNAPSHOT_AGE_MS, _load_batch, _load_snapshot
from streams.settings import load_settings
from streams.topics import CHANGELOG


def changelog(*records: tuple[str, int | None], first: int = 0, user_key: int = 0) -> RecordBatch:
    """(user, events applied) in log order; None is a tombstone."""
    rows = empty_rows(len(records), 4)
    rows["user_key"] = user_key
    rows["count"] = [count or 0 for _, count in records]
    rows["offsets"][:, 0] = rows["count"].astype(np.int64) - 1
    values = [None if count is None else value for (_, count), value in zip(records, encode(rows), strict=True)]
    offsets = list(range(first, first + len(records)))
    return RecordBatch(CHANGELOG, 0, offsets, offsets, [user.encode() for user, _ in records], values, offsets[-1] + 1)


def restored(*batches: RecordBatch) -> tuple[dict[str, int], set[str]]:
    """Events applied of each user, and the users to be written again."""
    arena = Arena(state_size=4, top_k=2)
    partition = Partition(0, UserStore(arena, ItemIndex()))
    assert sum(_load_batch(partition, batch) for batch in batches) == 0
    counts = {user: int(arena.count[slot]) for slot, user in enumerate(arena.users) if user is not None}
    return counts, {user for user in counts if arena.dirty[arena.find(user)]}


def test_the_last_record_of_a_user_counts() -> None:
    assert restored(changelog(("ann", 1), ("bob", 1), ("ann", 3)), changelog(("bob", 2), first=3)) == (
        {"ann": 3, "bob": 2},
        set(),
    )


def test_an_older_record_behind_a_newer_one_is_ignored_and_overwritten() -> None:
    """A worker that lost its partitions while it was suspended wrote it; compaction would keep it."""
    late = restored(changelog(("ann", 7), ("bob", 2), ("ann", 4)))
    assert late == ({"ann": 7, "bob": 2}, {"ann"})
    much_later = restored(changelog(("ann", 7), ("bob", 2)), changelog(("ann", 4), ("bob", 3), first=2))
    assert much_later == ({"ann": 7, "bob": 3}, {"ann"})


def test_a_tombstone_erases() -> None:
    assert restored(changelog(("ann", 7), ("bob", 2)), changelog(("ann", None), first=2)) == ({"bob": 2}, set())
    assert restored(changelog(("ann", 7), ("ann", None), ("ann", 1))) == ({"ann": 1}, set())


@pytest.mark.parametrize(("written", "now"), [(0, 7), (7, 0), (7, 8)], ids=["set", "removed", "changed"])
def test_users_named_under_another_key_are_refused(written: int, now: int) -> None:
    partition = Partition(0, UserStore(Arena(state_size=4, top_k=2), ItemIndex()), user_key=now)
    with pytest.raises(StateError, match="partition 0 names users under another pseudonym key"):
        _load_batch(partition, changelog(("ann", 1), user_key=written))
    assert len(partition.store.arena) == 0
    assert _load_batch(partition, changelog(("ann", 1), user_key=now)) == 0


def test_a_tombstone_knows_no_key() -> None:
    partition = Partition(0, UserStore(Arena(state_size=4, top_k=2), ItemIndex()), user_key=7)
    assert _load_batch(partition, changelog(("ann", None), ("bob", None))) == 0


@pytest.mark.parametrize(
    ("age_ms", "users"),
    [(0, 1), (MAX_SNAPSHOT_AGE_MS, 1), (MAX_SNAPSHOT_AGE_MS + 1, 0), (-CLOCK_SKEW_MS, 1), (-CLOCK_SKEW_MS - 1, 0)],
    ids=["new", "old", "too old", "a little ahead", "from the future"],
)
def test_a_snapshot_is_loaded_where_its_date_says_that_no_tombstone_was_missed(
    age_ms: int, users: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, arena, now_ms = load_settings(state_dir=str(tmp_path)), Arena(4, 2), 1_700_000_000_000
    monkeypatch.setattr(time, "time", lambda: now_ms / 1000)
    arena.slots(["ann"])
    path = snapshot_path(settings.state_dir, settings.app_id, 0)
    save(path, arena, ItemIndex(), SnapshotMeta(0, 10, now_ms - age_ms, "changelog"))
    partition = Partition(0, UserStore(Arena(4, 2), ItemIndex()))
    assert _load_snapshot(partition, settings, "changelog", 0, 100) == users
    assert len(partition.store.arena) == users


def test_an_older_record_takes_nobody_back_who_went_to_the_cold_store(tmp_path: Path) -> None:
    disk = ColdStore(tmp_path)
    store = UserStore(Arena(state_size=4, top_k=2), ItemIndex(), disk.partition(0), max_resident=2)
    partition = Partition(0, store)
    _load_batch(partition, changelog(("ann", 7), ("bob", 2)))
    _load_batch(partition, changelog(*[(f"u{n}", 1) for n in range(5)], first=2))
    assert "ann" not in store.arena
    _load_batch(partition, changelog(("ann", 4), first=7))
    slot = store.arena.find("ann")
    assert (int(store.arena.count[slot]), bool(store.arena.dirty[slot])) == (7, True)
    assert store.offsets_of(["bob", "ann", "cid"]).tolist() == [[1, -1, -1], [6, -1, -1], [-1, -1, -1]]
    disk.close()


def test_a_newer_record_is_written_again_although_its_user_goes_to_the_cold_store_at_once(tmp_path: Path) -> None:
    disk = ColdStore(tmp_path)
    store = UserStore(Arena(state_size=4, top_k=2), ItemIndex(), disk.partition(0), max_resident=2)
    users = [f"u{n}" for n in range(5)]
    _load_batch(Partition(0, store), changelog(*[(user, 7) for user in users], *[(user, 4) for user in users]))
    slots = store.arena.find_many(users)
    assert (slots >= 0).all()
    assert store.arena.dirty[slots].all()
    assert (store.arena.count[slots] == 7).all()
    disk.close()
