from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from state.arena import Arena
from state.cold import ColdStore
from state.errors import StateError
from state.items import ItemIndex
from state.profile import Profile, read_profile
from state.record import RING, encode
from state.store import UserStore

Populate = Callable[..., tuple[Arena, ItemIndex]]


@pytest.fixture
def cold(tmp_path: Path) -> Iterator[ColdStore]:
    store = ColdStore(tmp_path / "cold")
    yield store
    store.close()


def everything(store: UserStore) -> tuple[int, int, int, list[str | None], list[str | None]]:
    """What reading must not change."""
    return store.resident, store.cold, store.arena.owners, list(store.arena.users), list(store.index.ids)


def test_history_is_newest_first_and_as_long_as_the_ring(populate: Populate) -> None:
    arena, index = populate(n_users=12)
    store = UserStore(arena, index)
    before = everything(store)
    longest = 0
    for user in [f"u{n}" for n in range(12)]:
        slots = np.array([arena.find(user)], np.int32)
        items, kinds, seconds, length = (column[0] for column in arena.recent(slots))
        n = int(length)
        profile = read_profile(store, user)
        assert profile is not None
        assert profile.items == [index.ids[number] for number in reversed(items[:n].tolist())]
        assert profile.kinds == kinds[:n].tolist()[::-1]
        assert profile.seconds == seconds[:n].tolist()[::-1]
        assert (profile.cold, profile.count) == (False, arena.count[slots[0]])
        longest = max(longest, profile.count)
    assert longest > RING
    assert everything(store) == before


def test_the_list_shown_last_ends_at_the_first_gap(populate: Populate) -> None:
    arena, index = populate(n_users=2)
    slot = arena.find("u1")
    arena.recs[slot] = [*index.numbers(["i5", "i2"]).tolist(), 0]
    arena.recs_model[slot] = 0xABCD
    profile = read_profile(UserStore(arena, index), "u1")
    assert profile is not None
    assert (profile.recommended, profile.recommended_by) == (["i5", "i2"], 0xABCD)


def test_somebody_unknown_stays_unknown(cold: ColdStore, populate: Populate) -> None:
    arena, index = populate(n_users=3)
    store = UserStore(arena, index, cold.partition(0), max_resident=2)
    store.evict()
    before = everything(store)
    assert read_profile(store, "nobody") is None
    assert everything(store) == before


def test_a_cold_user_is_read_where_they_are(cold: ColdStore, populate: Populate) -> None:
    arena, index = populate(n_users=30)
    arena.recs[:] = 1
    arena.dirty[:] = False
    whole = UserStore(arena, index)
    users = [f"u{n}" for n in range(30)]
    warm = {user: read_profile(whole, user) for user in users}
    store = UserStore(arena, index, cold.partition(0), max_resident=10)
    store.evict()
    assert store.cold >= 20
    before = everything(store)
    found = {user: read_profile(store, user) for user in users}
    assert everything(store) == before
    gone = [user for user in users if user not in arena]
    for user in gone:
        profile, was = found[user], warm[user]
        assert profile is not None
        assert was is not None
        assert profile == Profile(True, was.count, was.items, was.kinds, was.seconds, [], 0)
    assert max(profile.count for user in gone if (profile := found[user])) > RING


def test_items_known_by_their_hash_alone_have_no_id(cold: ColdStore, populate: Populate) -> None:
    """A worker that restored the user from the changelog: nobody has named the items there yet."""
    arena, index = populate(n_users=4)
    rows = arena.to_rows(arena.slots(["u1", "u2"]), index)
    other = ItemIndex()
    other.number("i3")
    store = UserStore(Arena(8, 3), other, cold.partition(0), max_resident=1)
    store.load_rows(["u1"], rows[:1])
    cold.partition(0).put_many(["u2"], encode(rows[1:].copy()))
    known = len(other)
    for user in ("u1", "u2"):
        profile = read_profile(store, user)
        assert profile is not None
        assert set(profile.items) == {None, "i3"}
    assert len(other) == known


def test_a_damaged_record_is_told(cold: ColdStore) -> None:
    store = UserStore(Arena(4, 2), ItemIndex(), cold.partition(0), max_resident=1)
    cold.partition(0).put_many(["ann"], [b"not a record"])
    with pytest.raises(StateError, match="corrupt"):
        read_profile(store, "ann")
