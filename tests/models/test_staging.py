import numpy as np
import pytest

from models.recommend import Recommender
from models.serving import ServingModel
from models.staging import ItemRows, Staged
from state.arena import COPIED_FIELDS, Arena
from state.cold import ColdStore
from state.events import EventBatch
from state.items import ItemIndex
from state.store import UserStore

T0 = 1_700_000_000_000


class Stream:
    """A recommender with one partition; events are (user, item)."""

    def __init__(self, model: ServingModel) -> None:
        self.recommender = Recommender(ItemIndex(), k=3, exclude="none")
        self.recommender.swap(model)
        self.store = UserStore(Arena(self.recommender.state_size, 3, capacity=2), self.recommender.items)
        self.sent = 0

    def send(self, *events: tuple[str, str]) -> int:
        users, items = zip(*events, strict=True)
        n = np.arange(self.sent, self.sent + len(events))
        self.sent += len(events)
        batch = EventBatch(list(users), list(items), np.zeros(len(n), np.uint8), T0 + 1000 * n, n, T0 + 1000 * n)
        return self.recommender.advance(self.store, batch).rehydrated

    def vector(self, user: str) -> np.ndarray:
        return self.store.arena.hidden[self.store.arena.find(user)].copy()

    def stage(self, model: ServingModel, users: int = 100) -> Staged:
        staged = Staged(model, self.recommender.items)
        self.recommender.stage(staged)
        while not staged.prepare([self.store.arena], users):
            pass
        return staged


def walk(rng: np.random.Generator, count: int, users: int = 6, items: int = 25) -> list[tuple[str, str]]:
    return [
        (f"u{user}", f"i{item}")
        for user, item in zip(rng.integers(0, users, count), rng.integers(0, items, count), strict=True)
    ]


@pytest.fixture(params=["gru", "lstm"])
def models(request, build_version) -> tuple[ServingModel, ServingModel]:
    words = ["", *(f"i{n}" for n in range(20))]
    cells = ("gru", request.param)
    return tuple(
        ServingModel.from_version(build_version(cell, vocabulary=words, seed=seed, fingerprint=100 + seed)[1])
        for seed, cell in enumerate(cells)
    )  # type: ignore[return-value]


def test_staged_vectors_are_the_ones_of_an_own_past_and_no_event_is_rebuilt_after_the_swap(models) -> None:
    """Fewer than 50 events: rebuilt and then stepped along gives the vector of a user who never had another model."""
    old, new = models
    rng = np.random.default_rng(0)
    before, during, after = walk(rng, 60), walk(rng, 40), walk(rng, 40)
    stream, own = Stream(old), Stream(new)
    stream.send(*before)
    stream.stage(new, users=2)
    old_vectors = {user: stream.vector(user) for user in ("u0", "u1")}
    assert not np.array_equal(old_vectors["u0"], stream.vector("u1"))
    for event in during:
        stream.send(event)
    stream.recommender.swap(new)
    while not stream.recommender.settle(2):
        pass
    assert stream.send(*after) == 0
    own.send(*before, *during, *after)
    for user in ("u0", "u1", "u2", "u3", "u4", "u5"):
        np.testing.assert_allclose(stream.vector(user), own.vector(user), atol=2e-3)


def test_the_serving_version_notices_nothing_of_what_is_staged(models) -> None:
    old, new = models
    rng = np.random.default_rng(1)
    events = walk(rng, 100)
    stream, alone = Stream(old), Stream(old)
    for number, event in enumerate(events):
        if number == 50:
            stream.stage(new)
        stream.send(event)
        alone.send(event)
    assert stream.recommender.model_version == old.name
    for user in ("u0", "u3", "u5"):
        np.testing.assert_array_equal(stream.vector(user), alone.vector(user))


def test_who_was_not_staged_is_rebuilt_at_the_next_event(models) -> None:
    old, new = models
    stream, lazy = Stream(old), Stream(old)
    events = walk(np.random.default_rng(2), 60)
    for either in (stream, lazy):
        either.send(*events)
    staged = Staged(new, stream.recommender.items)
    stream.recommender.stage(staged)
    assert not staged.prepare([stream.store.arena], 2)  # names first
    assert not staged.prepare([stream.store.arena], 2)  # then the two who were active last
    last = list(dict.fromkeys(user for user, _ in reversed(events)))[:2]
    assert [bool(staged._shadows[id(stream.store.arena)].done[stream.store.arena.find(user)]) for user in last] == [
        True, True,
    ]  # fmt: skip
    for either in (stream, lazy):
        either.recommender.swap(new)
        assert either.send(*((f"u{n}", "i1") for n in range(6))) == 6  # staged or not, each is brought up to date once
    for n in range(6):
        np.testing.assert_allclose(stream.vector(f"u{n}"), lazy.vector(f"u{n}"), atol=2e-3)


def test_slots_that_changed_hands_are_not_given_somebody_elses_vector(models) -> None:
    old, new = models
    stream, own = Stream(old), Stream(new)
    stream.send(("ann", "i1"), ("bob", "i2"))
    stream.stage(new)
    stream.store.arena.free(np.array([stream.store.arena.find("ann")], np.int32))
    stream.send(("eve", "i5"))
    stream.recommender.swap(new)
    assert stream.recommender.settle(10)
    stream.send(("eve", "i6"), ("bob", "i3"))
    own.sent = 2
    own.send(("eve", "i5"))
    own.send(("eve", "i6"))
    np.testing.assert_array_equal(stream.vector("eve"), own.vector("eve"))


def test_rows_of_items_known_before_and_after() -> None:
    items = ItemIndex()
    items.number("b")
    rows = ItemRows(["", "a", "b", "c"], items)
    assert not rows.map_some(1)
    assert rows.map_some(10)
    late = items.numbers([f"new {n}" for n in range(3_000)])
    assert rows.rows(items.numbers(["c", "a", "b"])).tolist() == [3, 1, 2]
    assert not rows.rows(late).any()
    assert [items.ids[number] for number in rows.numbers[1:]] == ["a", "b", "c"]


def test_while_a_version_is_staged_nobody_is_given_its_vector(models, build_version) -> None:
    """Users who are stale for the serving version come back while the next one is being prepared."""
    old, new = models
    words = ["", *(f"i{n}" for n in range(20))]
    third = ServingModel.from_version(build_version("gru", vocabulary=words, seed=5, fingerprint=105)[1])
    stream, own = Stream(old), Stream(new)
    stream.send(("ann", "i1"), ("bob", "i2"))
    own.send(("ann", "i1"), ("bob", "i2"))
    stream.recommender.swap(new)
    stream.stage(third)
    assert stream.send(("ann", "i4")) == 1
    own.send(("ann", "i4"))
    np.testing.assert_array_equal(stream.vector("ann"), own.vector("ann"))
    assert stream.store.arena.model[stream.store.arena.find("ann")] == new.fingerprint
    stream.recommender.swap(third)
    assert not stream.recommender.settle(10)
    assert (stream.store.arena.model[[stream.store.arena.find(user) for user in ("ann", "bob")]] == 105).all()


@pytest.mark.parametrize("cold", [False, True], ids=["resident", "cold"])
def test_a_capture_is_not_touched_by_events_nor_by_a_swap(models, cold: bool, tmp_path) -> None:
    old, new = models
    rng = np.random.default_rng(3)
    stream = Stream(old)
    disk = ColdStore(tmp_path) if cold else None
    if disk is not None:
        stream.store = UserStore(stream.store.arena, stream.recommender.items, disk.partition(0), 20)
    arena = stream.store.arena
    try:
        for turn in range(6):
            stream.send(*walk(rng, 60, users=30))
            if turn == 2:
                stream.stage(new, users=2)
            columns = {name: getattr(arena, name).copy() for name in (*COPIED_FIELDS, "items")}
            users = list(arena.users)
            captured = stream.store.capture()
            if turn == 3:
                stream.recommender.swap(new)
            while not captured.copy(2):
                stream.send(*walk(rng, 3, users=40))
                stream.recommender.settle(1)
                arena.dirty[:] = False
                stream.store.evict()
            assert sorted(captured.users) == sorted(user for user in users if user is not None)
            at = [users.index(user) for user in captured.users]
            for name, column in columns.items():
                kept = np.concatenate([piece[name] for piece in captured.pieces])
                np.testing.assert_array_equal(kept, column[at], name)
    finally:
        if disk is not None:
            disk.close()
