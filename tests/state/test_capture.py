"""A capture holds what was there when it was made, whatever happens to the arena while it is copied."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from state.arena import COPIED_FIELDS, Arena
from state.capture import Capture
from state.cold import ColdStore
from state.errors import StateError
from state.items import ItemIndex
from state.record import encode
from state.store import UserStore

_USERS = [f"u{n}" for n in range(120)]


def now(arena: Arena) -> dict[str, list[bytes]]:
    """Every field of every user."""
    slots = np.flatnonzero(arena.occupied())
    columns = [getattr(arena, name)[slots] for name in (*COPIED_FIELDS, "items")]
    return {arena.users[slot] or "": [c[row].tobytes() for c in columns] for row, slot in enumerate(slots.tolist())}


def held(captured: Capture) -> dict[str, list[bytes]]:
    columns = [np.concatenate([piece[name] for piece in captured.pieces]) for name in (*COPIED_FIELDS, "items")]
    assert len(set(captured.users)) == len(captured.users) == len(columns[0])
    return {user: [c[row].tobytes() for c in columns] for row, user in enumerate(captured.users)}


class Life:
    """Whatever a worker does to a store between two pieces."""

    def __init__(self, rng: np.random.Generator, store: UserStore) -> None:
        self.rng, self.store, self.clock = rng, store, 1

    def events(self) -> None:
        users = [_USERS[n] for n in self.rng.integers(0, len(_USERS), 7).tolist()]
        slots = np.unique(self.store.slots(users))
        n = len(slots)
        self.clock += 1
        items = self.store.index.numbers([f"i{self.clock % 31}"] * n)
        kinds = self.rng.integers(0, 3, n)
        arena = self.store.arena
        arena.apply(slots, items, kinds, np.full(n, 1000 * self.clock), np.full(n, self.clock), self.clock)
        arena.hidden[slots] = self.rng.normal(size=(n, arena.state_size))
        arena.model[slots] = self.clock

    def flush(self) -> None:
        self.store.arena.dirty[:] = False
        self.store.evict()

    def forget(self) -> None:
        self.store.forget([_USERS[n] for n in self.rng.integers(0, len(_USERS), 3).tolist()])

    def expire(self) -> None:
        for _ in self.store.expire(self.clock - 60):
            pass

    def restore(self) -> None:
        users = list(dict.fromkeys(_USERS[n] for n in self.rng.integers(0, len(_USERS), 4).tolist()))
        arena = self.store.arena
        rows = arena.to_rows(np.zeros(len(users), np.int32), self.store.index)
        rows["count"] = self.clock
        self.store.load_rows(users, rows)


@pytest.mark.parametrize("bounded", [False, True], ids=["resident", "cold"])
@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens_while_it_is_copied(seed: int, bounded: bool, tmp_path: Path) -> None:
    disk = ColdStore(tmp_path) if bounded else None
    rng = np.random.default_rng(seed)
    cold, most = (disk.partition(0), 40) if disk else (None, None)
    store = UserStore(Arena(4, 2, capacity=1), ItemIndex(), cold, most)
    life = Life(rng, store)
    do = [life.events, life.events, life.events, life.flush, life.forget, life.expire, life.restore]
    try:
        for _ in range(30):
            for _ in range(int(rng.integers(20))):
                do[int(rng.integers(len(do)))]()
            expected, numbers = now(store.arena), store.index.hashes.copy()
            captured = store.capture()
            while not captured.copy(int(rng.integers(1, 12))):
                do[int(rng.integers(len(do)))]()
            assert held(captured) == expected
            assert store.arena.watcher is None
            assert np.array_equal(captured.index.hashes[: captured.items], numbers)
    finally:
        if disk:
            disk.close()


def test_another_width_and_an_end_of_everything_come_after_it(populate: Any) -> None:
    for change in (lambda arena: arena.resize_state(3), lambda arena: arena.clear()):
        arena, index = populate(30)
        expected = now(arena)
        captured = Capture(arena, index)
        captured.copy(5)
        change(arena)
        assert captured.complete
        assert captured.state_size == 8
        assert held(captured) == expected


def test_a_slot_that_changes_hands_keeps_its_name_in_the_capture(populate: Any) -> None:
    arena, index = populate(10)
    expected = now(arena)
    captured = Capture(arena, index)
    arena.free(arena.find_many(["u3", "u4"]))
    arena.slots(["newcomer", "another", "a third"])
    assert captured.copy()
    assert held(captured) == expected


def test_a_capture_that_another_one_replaced_cannot_be_completed(populate: Any) -> None:
    arena, index = populate(10)
    first, second = Capture(arena, index), Capture(arena, index)
    with pytest.raises(StateError, match="cannot be completed"):
        first.copy()
    assert second.copy()
    assert encode(arena.to_rows(np.array([0], np.int32), index))


def test_an_abandoned_capture_lets_the_arena_go(populate: Any) -> None:
    arena, index = populate(10)
    captured = Capture(arena, index)
    captured.abandoned = True
    arena.slots(["u1"])
    assert arena.watcher is None
    assert not captured.complete
    assert Capture(Arena(4, 2), index).complete  # nobody is there
