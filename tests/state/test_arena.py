from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from state.arena import Arena
from state.items import ItemIndex
from state.record import decode, encode

S = 4
USERS = [f"u{n}" for n in range(12)]


@dataclass
class NaiveUser:
    events: list[tuple[str, int, int]] = field(default_factory=list)  # item, kind, time in ms
    offsets: list[int] = field(default_factory=lambda: [-1, -1, -1])
    touched_ms: int = -1
    dirty: bool = False
    hidden: float = 0.0


def check(arena: Arena, index: ItemIndex, model: dict[str, NaiveUser], n: int = 50) -> None:
    assert len(arena) == len(model)
    assert sorted(user for user in arena.users if user is not None) == sorted(model)
    slots = arena.slots(list(model))
    assert len(set(slots.tolist())) == len(model)
    items, kinds, times, length = arena.recent(slots, n)
    for row, (user, naive) in enumerate(model.items()):
        slot = arena.find(user)
        assert slot == slots[row]
        assert arena.users[slot] == user
        kept = naive.events[-min(n, 50) :]
        assert length[row] == len(kept)
        assert [index.ids[number] for number in items[row, : len(kept)].tolist()] == [item for item, _, _ in kept]
        assert kinds[row, : len(kept)].tolist() == [kind for _, kind, _ in kept]
        assert times[row, : len(kept)].tolist() == [time // 1000 for _, _, time in kept]
        assert not items[row, len(kept) :].any()
        assert not times[row, len(kept) :].any()
        assert arena.count[slot] == len(naive.events)
        assert arena.kind_counts[slot].tolist() == [sum(e[1] == kind for e in naive.events) for kind in range(3)]
        assert arena.last_ms[slot] == (naive.events[-1][2] if naive.events else -1)
        assert arena.last_seconds(slots)[row] == (naive.events[-1][2] // 1000 if naive.events else -1)
        assert arena.offsets[slot].tolist() == naive.offsets
        assert arena.touched_ms[slot] == naive.touched_ms
        assert arena.hidden[slot].tolist() == [naive.hidden] * S
        assert arena.dirty[slot] == naive.dirty
    dirty = {user for user, naive in model.items() if naive.dirty}
    assert {arena.users[slot] for slot in arena.dirty_slots().tolist()} == dirty


def reload(arena: Arena, index: ItemIndex) -> tuple[Arena, ItemIndex]:
    """Write every user to records and read them in another process with other item numbers."""
    slots = np.flatnonzero(arena.occupied()).astype(np.int32)
    users = [arena.users[slot] or "" for slot in slots.tolist()]
    rows, bad = decode(encode(arena.to_rows(slots, index)), arena.state_size)
    assert not bad.any()
    other, other_index = Arena(S, 2, capacity=1), ItemIndex()
    other_index.numbers(["something", "else"])
    other.load_rows(users, rows, other_index)
    other_index.numbers([item_id or "" for item_id in index.ids[1:]])
    return other, other_index


EVENTS = st.lists(
    st.tuples(st.sampled_from(USERS), st.integers(0, 9), st.integers(0, 2), st.integers(0, 2**41)), max_size=12
)
OPERATIONS = st.one_of(
    st.tuples(st.just("apply"), EVENTS, st.integers(1, 30)),
    st.tuples(st.just("free"), st.lists(st.sampled_from(USERS), max_size=4), st.just(0)),
    st.tuples(st.just("expire"), st.just([]), st.integers(0, 400)),
    st.tuples(st.just("flush"), st.just([]), st.just(0)),
    st.tuples(st.just("reload"), st.just([]), st.just(0)),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(OPERATIONS, max_size=25), st.integers(1, 60))
def test_the_arena_agrees_with_plain_objects(operations: list[tuple[str, list, int]], n: int) -> None:
    arena, index = Arena(S, top_k=2, capacity=1), ItemIndex()
    model: dict[str, NaiveUser] = {}
    clock = 0
    for name, argument, number in operations:
        if name == "apply":
            events = {event[0]: event for event in argument}  # a wave: one event a user
            for _ in range(number):
                clock += 1
                slots = arena.slots(list(events))
                items = index.numbers([f"i{event[1]}" for event in events.values()])
                kinds = np.array([event[2] for event in events.values()], np.int64)
                times = np.array([event[3] for event in events.values()], np.int64)
                arena.apply(slots, items, kinds, times, np.full(len(events), clock), clock)
                arena.hidden[slots] = clock
                for user, item, kind, time in events.values():
                    naive = model.setdefault(user, NaiveUser())
                    naive.events.append((f"i{item}", kind, time))
                    naive.offsets[kind] = naive.touched_ms = clock
                    naive.dirty, naive.hidden = True, float(clock)
        elif name == "free":
            slots = arena.find_many(argument)
            assert [slot >= 0 for slot in slots.tolist()] == [user in model for user in argument]
            arena.free(slots[slots >= 0])
            for user in argument:
                model.pop(user, None)
        elif name == "expire":
            old = [user for user, naive in model.items() if naive.touched_ms < number]
            assert sorted(arena.expire(number)) == sorted(old)
            for user in old:
                del model[user]
        elif name == "flush":
            arena.dirty[arena.dirty_slots()] = False
            for naive in model.values():
                naive.dirty = False
        else:
            arena, index = reload(arena, index)
            for naive in model.values():
                naive.dirty = False
        check(arena, index, model, n)


def test_a_reused_slot_starts_empty() -> None:
    arena, index = Arena(S, 2), ItemIndex()
    slots = arena.slots(["a", "b"])
    arena.apply(slots, index.numbers(["x", "y"]), np.array([1, 2]), np.array([5, 6]), np.array([7, 8]), 9)
    arena.hidden[slots], arena.model[slots], arena.recs[slots], arena.recs_model[slots] = 1, 2, 3, 4
    arena.free(slots[:1])
    arena.free(slots[:1])  # again: nothing happens
    assert arena.find("a") == -1
    assert arena.slots(["c"]).tolist() == [slots[0]]
    assert arena.slots(["d"]).tolist() == [2]
    for name in ("hidden", "model", "items", "times", "kinds", "count", "kind_counts", "recs", "recs_model", "dirty"):
        assert not getattr(arena, name)[slots[0]].any(), name
    assert arena.last_ms[0] == arena.touched_ms[0] == -1
    assert arena.offsets[0].tolist() == [-1, -1, -1]
    assert arena.count[slots[1]] == 1


def test_growing_keeps_what_is_there_and_fills_the_rest() -> None:
    arena = Arena(S, 2, capacity=2)
    first = arena.slots(["a", "b"])
    arena.hidden[first], arena.recs[first], arena.last_ms[first] = 1.5, 3, 77
    before = arena.nbytes
    arena.slots([f"u{n}" for n in range(100)])
    assert arena.capacity == 128
    assert arena.nbytes == 64 * before
    assert (arena.hidden[first] == 1.5).all()
    assert arena.recs.shape == (128, 2)
    assert arena.last_ms.tolist() == [77, 77] + [-1] * 126


def test_another_state_size_drops_the_vectors_only() -> None:
    arena, index = Arena(S, 2), ItemIndex()
    slots = arena.slots(["a"])
    arena.apply(slots, index.numbers(["x"]), np.array([1]), np.array([5000]), np.array([7]), 9)
    arena.hidden[slots], arena.model[slots] = 1, 2
    arena.resize_state(6)
    assert arena.hidden.shape == (arena.capacity, 6)
    assert not arena.hidden.any()
    assert not arena.model.any()
    assert arena.recent(slots)[0][0, 0] == index.get("x")
    assert arena.to_rows(slots, index)["hidden"].shape == (1, 6)


@pytest.mark.parametrize("times_ms", [-5, 2**62])
def test_times_out_of_range_are_clipped(times_ms: int) -> None:
    arena = Arena(S, 2)
    slots = arena.slots(["a"])
    arena.apply(slots, np.array([1], np.int32), np.array([0]), np.array([times_ms]), np.array([0]), 0)
    expected = 0 if times_ms < 0 else 2**32 - 1
    assert arena.times[slots, 0] == arena.last_seconds(slots) == expected


def test_loading_replaces_users_already_there() -> None:
    arena, index = Arena(S, 2), ItemIndex()
    slots = arena.slots(["a", "b", "c"])
    arena.apply(slots, index.numbers(["x", "y", "z"]), np.array([0, 1, 2]), np.array([1, 2, 3]), np.array([4, 5, 6]), 7)
    rows = arena.to_rows(slots[:2], index)
    arena.apply(slots, index.numbers(["q", "q", "q"]), np.array([0, 1, 2]), np.array([9, 9, 9]), np.array([9, 9, 9]), 9)
    arena.recs[slots] = 5
    assert arena.load_rows(["b", "a"], rows[::-1], index).tolist() == [1, 0]
    assert arena.count[:3].tolist() == [1, 1, 2]
    assert arena.items[0, :2].tolist() == [index.get("x"), 0]
    assert arena.dirty[:3].tolist() == [False, False, True]
    assert arena.recs[:3, 0].tolist() == [0, 0, 5]
    assert arena.add(["c", "d"]).tolist() == [2, 3]


def test_clear_forgets_everyone() -> None:
    arena = Arena(S, 2)
    arena.dirty[arena.slots(["a", "b"])] = True
    arena.clear()
    assert len(arena) == 0
    assert "a" not in arena
    assert not arena.dirty_slots().size
    assert arena.slots(["b"]).tolist() == [0]


def test_owners_change_whenever_a_slot_changes_hands():
    arena = Arena(2, 3)
    slots = arena.slots(["ann", "bob"])
    seen = [arena.owners]
    arena.slots(["ann", "eve"])  # a new user in a slot of its own takes it from nobody
    assert arena.owners == seen[-1]
    arena.free(slots[:0])
    assert arena.owners == seen[-1]
    for change in (lambda: arena.free(slots[:1]), arena.clear):
        change()
        assert arena.owners not in seen
        seen.append(arena.owners)
