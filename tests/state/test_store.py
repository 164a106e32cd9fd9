from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from state import snapshot
from state.arena import Arena
from state.cold import ColdStore
from state.errors import StateError
from state.items import ItemIndex
from state.record import decode, encode
from state.store import UserStore

META = snapshot.SnapshotMeta(0, 0, 0, "")


@pytest.fixture
def cold(tmp_path: Path) -> Iterator[ColdStore]:
    store = ColdStore(tmp_path / "cold")
    yield store
    store.close()


def record(store: UserStore, user: str) -> bytes:
    return encode(store.arena.to_rows(store.slots([user]), store.index))[0]


def feed(store: UserStore, users: list[str], clock: int) -> None:
    """One event for each user, then a flush, then eviction: what a worker does."""
    slots = store.slots(users)
    n = len(users)
    items = store.index.numbers([f"i{clock % 7}"] * n)
    store.arena.apply(slots, items, np.full(n, clock % 3), np.full(n, 1000 * clock), np.full(n, clock), clock)
    store.arena.hidden[slots] = clock % 100
    store.arena.dirty[slots] = False
    store.evict()


def test_bounded_and_unbounded_stores_hold_the_same_state(cold: ColdStore) -> None:
    bounded = UserStore(Arena(4, 2, capacity=1), ItemIndex(), cold.partition(0), max_resident=40)
    unbounded = UserStore(Arena(4, 2), ItemIndex())
    rng = np.random.default_rng(9)
    users = [f"u{n}" for n in range(200)]
    for clock in range(300):
        batch = [users[n] for n in np.unique(rng.zipf(1.3, 12) % 200).tolist()]
        feed(bounded, batch, clock)
        feed(unbounded, batch, clock)
        assert bounded.resident <= 40
        assert len(bounded) == len(unbounded)
    assert bounded.cold > 50
    assert unbounded.cold == 0
    known = [user for user in users if user in unbounded.arena]
    assert [record(bounded, user) for user in known] == [record(unbounded, user) for user in known]


def test_the_least_recently_touched_clean_unprotected_users_go(cold: ColdStore) -> None:
    store = UserStore(Arena(4, 2), ItemIndex(), cold.partition(0), max_resident=100)
    for n in range(10):
        store.slots([f"u{n}"])
    store.slots(["u0"])
    store.arena.dirty[store.arena.find("u1")] = True
    store.max_resident = 6
    assert store.evict(protected=store.arena.find_many(["u2"])) == 5
    assert sorted(user for user in store.arena.users if user) == ["u0", "u1", "u2", "u8", "u9"]
    assert (store.resident, store.cold, len(store)) == (5, 5, 10)
    assert store.evict() == 0
    store.arena.dirty[:] = True
    store.max_resident = 1
    assert store.evict() == 0  # nothing is clean


def test_repeats_and_mixtures_in_one_batch(cold: ColdStore) -> None:
    store = UserStore(Arena(4, 2), ItemIndex(), cold.partition(0), max_resident=2)
    for clock, user in enumerate("abcdef"):
        feed(store, [user], clock)
    assert store.resident <= 2
    slots = store.slots(["a", "new", "f", "a", "b", "new"])
    assert slots[0] == slots[3]
    assert slots[1] == slots[5]
    assert len(set(slots.tolist())) == 4
    assert store.arena.count[slots].tolist() == [1, 0, 1, 1, 1, 0]
    assert len(store) == 7


def test_applied_offsets_are_lowered_wherever_users_are(cold: ColdStore) -> None:
    store = UserStore(Arena(4, 2), ItemIndex(), cold.partition(0), max_resident=3)
    assert store.reached().tolist() == [-1, -1, -1]
    for clock, user in enumerate("abcdefghi"):
        feed(store, [user], clock)
    store.forget(["i"])
    assert (store.cold > 0, store.reached().tolist()) == (True, [6, 7, -1])
    assert store.lower(0, 3) == ["g"]
    assert sorted(store.lower(2, -1)) == ["c", "f"]
    assert store.offsets_of(list("abcdefgh")).tolist() == [
        [0, -1, -1], [-1, 1, -1], [-1, -1, -1], [3, -1, -1], [-1, 4, -1], [-1, -1, -1], [3, -1, -1], [-1, 7, -1],
    ]  # fmt: skip
    changed = {user for user in store.arena.users if user and store.arena.dirty[store.arena.find(user)]}
    assert changed == {"g"} - {user for user in "g" if user not in store.arena}


def test_forget_finds_users_wherever_they_are(cold: ColdStore) -> None:
    store = UserStore(Arena(4, 2), ItemIndex(), cold.partition(0), max_resident=3)
    for clock, user in enumerate("abcdef"):
        feed(store, [user], clock)
    assert store.forget(["a", "f", "nobody", "a", "f"]) == {"a": 1, "f": 1}
    assert len(store) == 4
    assert store.arena.count[store.slots(["a", "f"])].tolist() == [0, 0]
    plain = UserStore(Arena(4, 2), ItemIndex())
    feed(plain, ["a"], 1)
    assert plain.forget(["a", "b"]) == {"a": 1}
    assert len(plain) == 0


def test_expire_covers_cold_users(cold: ColdStore) -> None:
    store = UserStore(Arena(4, 2), ItemIndex(), cold.partition(0), max_resident=3)
    for clock, user in enumerate("abcdefgh"):
        feed(store, [user], clock)
    feed(store, ["a"], 8)
    assert sorted(user for piece in store.expire(6) for user in piece) == list("bcdef")
    assert len(store) == 3


@pytest.mark.parametrize("max_resident", [None, 10, 40])
def test_a_snapshot_carries_resident_and_cold_users(cold: ColdStore, tmp_path: Path, max_resident: int | None) -> None:
    store = UserStore(Arena(4, 2), ItemIndex(), cold.partition(0), max_resident=20)
    users = [f"u{n}" for n in range(90)]
    for clock in range(30):
        feed(store, users[3 * clock : 3 * clock + 3], clock)
    captured = store.capture()
    resident = store.resident
    feed(store, users[:6], 99)  # loads cold users and evicts others before the capture is written
    captured.copy()
    assert len(captured.users) == resident
    snapshot.publish(snapshot.prepare(tmp_path / "s", captured, META), tmp_path / "s")
    loaded = snapshot.read(tmp_path / "s")
    assert loaded is not None
    assert (loaded.resident, loaded.cold) == (len(captured.users), 90 - len(captured.users))

    target = UserStore(Arena(4, 2), ItemIndex(), cold.partition(1) if max_resident else None, max_resident)
    assert target.restore(loaded) == 90
    assert max_resident is None or target.resident <= max_resident
    expected = UserStore(Arena(4, 2), ItemIndex())
    for clock in range(30):
        feed(expected, users[3 * clock : 3 * clock + 3], clock)
    assert [record(target, user) for user in users] == [record(expected, user) for user in users]


def test_restoring_records_overflows_into_the_cold_store(cold: ColdStore, populate: Any) -> None:
    arena, index = populate(100)
    values = encode(arena.to_rows(np.arange(100, dtype=np.int32), index))
    rows, _ = decode(values, 8)
    users = [user or "" for user in arena.users]
    store = UserStore(Arena(8, 3), ItemIndex(), cold.partition(0), max_resident=30)
    for start in range(0, 100, 20):
        store.load_rows(users[start : start + 20], rows[start : start + 20])
    store.load_rows(users[:20], rows[:20])  # a later record of a user who is cold by now
    assert store.resident <= 30
    assert len(store) == 100
    assert [record(store, user) for user in users] == values


def test_a_corrupt_cold_record_is_not_used(cold: ColdStore) -> None:
    store = UserStore(Arena(4, 2), ItemIndex(), cold.partition(0), max_resident=1)
    cold.partition(0).put_many(["a"], [b"damage"])
    with pytest.raises(StateError, match="corrupt"):
        store.slots(["a"])


def test_clear_empties_both(cold: ColdStore) -> None:
    store = UserStore(Arena(4, 2), ItemIndex(), cold.partition(0), max_resident=3)
    for clock, user in enumerate("abcdef"):
        feed(store, [user], clock)
    store.clear()
    assert len(store) == 0


def test_without_a_cold_store_slots_are_the_arenas() -> None:
    arena = Arena(4, 2)
    store = UserStore(arena, ItemIndex(), max_resident=1)
    assert store.slots == arena.slots
    assert store.slots(["a", "b", "a"]).tolist() == [0, 1, 0]
    assert store.evict() == 0
