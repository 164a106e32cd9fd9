"""The next version's hidden vectors, made beside the stream before that version serves.

A user's vector belongs to the version that made it and is rebuilt from the user's recent events for another one. Left
to users' next events alone, a busy stream would pay for thousands of users in the second after a swap (50 steps for
one), and every recommendation would wait. So the vectors are made before: a few users at a time between two rounds,
whoever was active last first, and from then on every event steps both vectors of its user. At the swap they are there;
users that time did not suffice for are rebuilt at their next event.

Letters: C capacity of an arena, S state width, V rows of a model, E events of a batch, U users.
"""

from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.rebuild import replay
from models.serving import ServingModel, gap_feature
from state.arena import Arena
from state.items import ItemIndex

_NAMES_AT_ONCE: Final = 20_000  # of the vocabulary, looked up in one go: about 2 ms


class ItemRows:
    """Between the rows of a model's vocabulary and this process's item numbers.

    Args:
        vocabulary: Item id of every row, row 0 unknown; empty for no model.
        items: The process's item numbers.

    Attributes:
        numbers: (V,) item number of every row.
    """

    def __init__(self, vocabulary: list[str], items: ItemIndex) -> None:
        self._vocabulary, self._items = vocabulary, items
        self.numbers = np.zeros(max(len(vocabulary), 1), np.int32)
        self._row_of = np.zeros(1024, np.int32)  # (item numbers,) 0 unknown
        self._mapped = 1

    def map_some(self, most: int) -> bool:
        """Look up some more of the vocabulary; returns whether all of it is known."""
        rows = np.arange(self._mapped, min(self._mapped + most, len(self._vocabulary)), dtype=np.int32)
        if len(rows):
            numbers = self._items.numbers(self._vocabulary[rows[0] : rows[-1] + 1])
            self._make_room()
            self.numbers[rows], self._row_of[numbers] = numbers, rows
            self._mapped += len(rows)
        return self._mapped >= len(self._vocabulary)

    def rows(self, numbers: NDArray[np.int32]) -> NDArray[np.int32]:
        """Rows of item numbers, of any shape; 0 for items outside the vocabulary."""
        found: NDArray[np.int32] = self.row_of[numbers]
        return found

    @property
    def row_of(self) -> NDArray[np.int32]:
        """(C,) row of each item number given so far, 0 for items outside the vocabulary."""
        if len(self._items) >= len(self._row_of):  # numbers given later are not in the vocabulary
            self._make_room()
        return self._row_of

    def _make_room(self) -> None:
        missing = len(self._items) + 1 - len(self._row_of)
        if missing > 0:
            room = np.zeros(max(missing, len(self._row_of)), np.int32)
            self._row_of = np.concatenate([self._row_of, room])


def rebuilt(model: ServingModel, rows: ItemRows, arena: Arena, slots: NDArray[np.int32]) -> NDArray[np.float32]:
    """Vectors (U, S) of the distinct users in `slots`, made by `model` from their last 50 events."""
    items, kinds, gaps, length = _past(rows, arena, slots)
    user, step = np.nonzero(np.arange(items.shape[1]) < length[:, None])  # events in order, user by user
    state = np.zeros((len(slots), model.state_size), np.float32)
    model.steps(state, user.astype(np.int32), items[user, step], kinds[user, step], gaps[user, step])
    return state


def _past(
    rows: ItemRows, arena: Arena, slots: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.uint8], NDArray[np.float32], NDArray[np.int64]]:
    """Rows, kinds and gap features (U, 50) of users' last events, oldest first, and how many they are (U,)."""
    items, kinds, times, length = arena.recent(slots)
    seconds = times.astype(np.int64)
    gaps = np.zeros(seconds.shape, np.int64)
    gaps[:, 1:] = seconds[:, 1:] - seconds[:, :-1]
    return rows.rows(items), kinds, gap_feature(gaps), length


class _Shadow:
    """The vectors of one arena's users under the next version."""

    def __init__(self, arena: Arena, state_size: int) -> None:
        self.arena, self.owners = arena, arena.owners
        self.hidden = np.zeros((arena.capacity, state_size), np.float16)  # (C, S)
        self.done = np.zeros(arena.capacity, np.bool_)  # (C,)
        known = np.flatnonzero(arena.count)
        # Taken from the end: whoever was active last.
        self.queue = known[np.argsort(arena.touched_ms[known], kind="stable")].astype(np.int32)

    def fits(self) -> bool:
        """Whether its slots are still those of the same users; grown as the arena has."""
        if self.owners != self.arena.owners:
            return False
        missing = self.arena.capacity - len(self.done)
        if missing > 0:
            self.hidden = np.concatenate([self.hidden, np.zeros((missing, self.hidden.shape[1]), np.float16)])
            self.done = np.concatenate([self.done, np.zeros(missing, np.bool_)])
        return True

    def put(self, slots: NDArray[np.int32], state: NDArray[np.float32]) -> None:
        """Keep vectors (U, S)."""
        self.hidden[slots], self.done[slots] = state, True


class Staged:
    """A version that will serve soon.

    Args:
        model: It.
        items: The process's item numbers.

    Attributes:
        rows: Its rows by item number.
        settled: Users who were given their vectors by `settle`.
    """

    def __init__(self, model: ServingModel, items: ItemIndex) -> None:
        self.model, self.rows = model, ItemRows(model.vocabulary, items)
        self.settled = 0
        self._shadows: dict[int, _Shadow] = {}  # by the id of the arena, which they keep alive

    def prepare(self, arenas: Iterable[Arena], users: int) -> bool:
        """Do a little of what is left to do before the swap; returns whether nothing is.

        Args:
            arenas: Every arena of the process.
            users: Most users to make vectors of.
        """
        if not self.rows.map_some(_NAMES_AT_ONCE):
            return False
        shadows = [self._shadows.get(id(arena)) or self._begin(arena) for arena in arenas]
        waiting = [shadow for shadow in shadows if shadow.fits() and len(shadow.queue)]
        if not waiting:
            return True
        shadow = max(waiting, key=lambda shadow: len(shadow.queue))  # all arenas get on alike
        slots, shadow.queue = shadow.queue[-users:], shadow.queue[:-users]
        shadow.put(slots, replay(self.model, *_past(self.rows, shadow.arena, slots)))
        return False

    def follow(
        self,
        arena: Arena,
        slots: NDArray[np.int32],
        numbers: NDArray[np.int32],
        kinds: NDArray[np.uint8],
        gaps: NDArray[np.float32],
    ) -> None:
        """Step the vectors that are made already along with a batch (E,) that was just applied."""
        shadow = self._shadows.get(id(arena))
        if shadow is None or not shadow.fits():
            return
        at = np.flatnonzero(shadow.done[slots])
        if not len(at):
            return
        users, user = np.unique(slots[at], return_inverse=True)
        state = shadow.hidden[users].astype(np.float32)
        self.model.steps(state, user.astype(np.int32), self.rows.rows(numbers[at]), kinds[at], gaps[at])
        shadow.hidden[users] = state

    def take(self, arena: Arena, slots: NDArray[np.int32]) -> NDArray[np.int32]:
        """After the swap: give users (U,) in `slots` their vectors. Returns the slots of those it has none of."""
        shadow = self._shadows.get(id(arena))
        if shadow is None or not shadow.fits():
            return slots
        if arena.state_size != self.model.state_size:
            arena.resize_state(self.model.state_size)
        made = shadow.done[slots]
        ready = slots[made]
        arena.changing(ready)
        arena.hidden[ready], arena.model[ready] = shadow.hidden[ready], self.model.fingerprint
        shadow.done[ready] = False
        left: NDArray[np.int32] = slots[~made]
        return left

    def settle(self, users: int) -> bool:
        """After the swap: give some more users their vectors before their next event; returns whether all have them."""
        for key, shadow in list(self._shadows.items()):
            slots = np.flatnonzero(shadow.done)[:users].astype(np.int32) if shadow.fits() else ()
            if not len(slots):
                del self._shadows[key]
                continue
            arena = shadow.arena
            stale = arena.model[slots] != self.model.fingerprint
            self.take(arena, slots[stale])
            self.settled += int(stale.sum())
            shadow.done[slots] = False
            return False
        return True

    def _begin(self, arena: Arena) -> _Shadow:
        shadow = self._shadows[id(arena)] = _Shadow(arena, self.model.state_size)
        return shadow
