"""What is remembered of one user, to be looked at: reading creates no user, moves none and interns no item."""

from dataclasses import dataclass

import numpy as np

from state.arena import Arena
from state.errors import StateError
from state.items import ItemIndex
from state.record import RING, decode
from state.store import UserStore


@dataclass(frozen=True, slots=True)
class Profile:
    """One user as of now. An item id is None where only the item's hash is known.

    Attributes:
        cold: the user is in the cold store, which keeps no recommendations.
        count: events applied.
        items: item ids of the last 50 events, newest first.
        kinds: kinds of those events, see `state.events.KINDS`.
        seconds: their epoch seconds.
        recommended: item ids of the list shown last, best first; empty when there was none since the user was loaded.
        recommended_by: fingerprint of the model version that made it, 0 when none did.
    """

    cold: bool
    count: int
    items: list[str | None]
    kinds: list[int]
    seconds: list[int]
    recommended: list[str | None]
    recommended_by: int


def read_profile(store: UserStore, user: str) -> Profile | None:
    """What a partition's store holds of a user, None when it does not know them. Call it between two batches.

    Raises:
        StateError: the user is cold and the record is corrupt.

    >>> arena, index = Arena(state_size=4, top_k=2), ItemIndex()
    >>> store = UserStore(arena, index)
    >>> arena.apply(store.slots(["ann"]), index.numbers(["x"]), np.array([2]), np.array([5000]), np.array([0]), 5001)
    >>> read_profile(store, "ann").items, read_profile(store, "bob"), len(store)
    (['x'], None, 1)
    """
    slot = store.arena.find(user)
    if slot >= 0:
        return _resident(store.arena, store.index, slot)
    record = store.cold_record(user)
    return None if record is None else _cold(record, store)


def _resident(arena: Arena, index: ItemIndex, slot: int) -> Profile:
    numbers, kinds, seconds, length = (column[0] for column in arena.recent(np.array([slot], np.int32)))
    recent = slice(0, int(length))
    return Profile(
        cold=False,
        count=int(arena.count[slot]),
        items=[index.ids[number] for number in numbers[recent][::-1].tolist()],
        kinds=kinds[recent][::-1].tolist(),
        seconds=seconds[recent][::-1].tolist(),
        recommended=[index.ids[number] for number in arena.recs[slot].tolist() if number],
        recommended_by=int(arena.recs_model[slot]),
    )


def _cold(record: bytes, store: UserStore) -> Profile:
    rows, bad = decode([record], store.arena.state_size)
    if bad[0]:
        what = "a record of the cold store is corrupt"
        raise StateError(what, "the disk altered it", "restart the worker: the changelog has every user's state")
    row = rows[0]
    count = int(row["count"])
    newest_first = np.arange(count - 1, max(count - RING, 0) - 1, -1) % RING
    return Profile(
        cold=True,
        count=count,
        items=store.index.ids_of(row["items"][newest_first]),
        kinds=row["kinds"][newest_first].tolist(),
        seconds=row["times"][newest_first].tolist(),
        recommended=[],
        recommended_by=0,
    )
