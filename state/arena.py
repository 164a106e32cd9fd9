"""The arena: one partition's resident users as a struct of arrays, so that a batch of users is one numpy operation.

Letters: C capacity, S state size, K recommendations kept, E or B events or users of a batch.
"""

from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from state.items import ItemIndex
from state.record import RING, Rows, record_dtype

Slots = NDArray[np.int32]
"""(E,) positions of users in the arena's arrays."""

_MAX_SECONDS: Final = 0xFFFFFFFF  # ring times are u4 seconds: good until the year 2106


class _SlotOf(dict[str, int]):
    """user -> slot; a missing user is given a free slot or the next one, so known users cost no Python code."""

    __slots__ = ("free", "users")

    def __init__(self) -> None:
        super().__init__()
        self.users: list[str | None] = []
        self.free: list[int] = []

    def __missing__(self, user: str) -> int:
        if self.free:
            slot = self.free.pop()
            self.users[slot] = user
        else:
            slot = len(self.users)
            self.users.append(user)
        self[user] = slot
        return slot


class Arena:
    """State of one partition's users.

    Slots are given by `slots`, stay with their user until `free` or `expire`, and are then reused. The public arrays
    are replaced when the arena grows (inside `slots` and `load_rows`), so look them up again after those calls.

    Attributes:
        hidden: (C, S) f2 hidden vector.
        model: (C,) u4 fingerprint of the model version that made it, 0 = none.
        items: (C, 50) i4 ring of item numbers; event n is at n % 50.
        times: (C, 50) u4 their epoch seconds.
        kinds: (C, 50) u1 their kinds.
        count: (C,) u4 events applied.
        kind_counts: (C, 3) u4 of them by kind.
        last_ms: (C,) i8 time of the last applied event, -1 = none.
        touched_ms: (C,) i8 Kafka timestamp of the last applied event, -1 = none.
        offsets: (C, 3) i8 last applied offset of each input topic, -1 = none.
        recs: (C, K) i4 item numbers last recommended (not stored in records).
        recs_model: (C,) u4 fingerprint of the version that recommended them, 0 = none yet.
        dirty: (C,) changed since the caller last cleared it.
        users: user of each slot ever given, None where the slot is free.
        owners: changes whenever a slot changes hands or is given another state: `free`, `clear`, `load_rows`.
        watcher: told the slots whose rows are about to change, None for all of them (`state.capture`).

    >>> index, arena = ItemIndex(), Arena(state_size=4, top_k=2)
    >>> slots = arena.slots(["ann", "bob"])
    >>> arena.apply(slots, index.numbers(["x", "y"]), np.array([0, 2]), np.array([5000, 6000]), np.array([0, 1]), 6001)
    >>> arena.recent(slots)[0][:, 0].tolist(), arena.last_seconds(slots).tolist(), arena.dirty_slots().tolist()
    ([1, 2], [5, 6], [0, 1])
    """

    def __init__(self, state_size: int, top_k: int, capacity: int = 1024) -> None:
        self.state_size, self.top_k, self.capacity = state_size, top_k, max(capacity, 1)
        self._slot_of = _SlotOf()
        self.owners = 0
        self.watcher: Callable[[Slots | None], None] | None = None
        c = self.capacity
        self.hidden: NDArray[np.float16] = np.zeros((c, state_size), np.float16)
        self.model: NDArray[np.uint32] = np.zeros(c, np.uint32)
        self.items: NDArray[np.int32] = np.zeros((c, RING), np.int32)
        self.times: NDArray[np.uint32] = np.zeros((c, RING), np.uint32)
        self.kinds: NDArray[np.uint8] = np.zeros((c, RING), np.uint8)
        self.count: NDArray[np.uint32] = np.zeros(c, np.uint32)
        self.kind_counts: NDArray[np.uint32] = np.zeros((c, 3), np.uint32)
        self.last_ms: NDArray[np.int64] = np.full(c, -1, np.int64)
        self.touched_ms: NDArray[np.int64] = np.full(c, -1, np.int64)
        self.offsets: NDArray[np.int64] = np.full((c, 3), -1, np.int64)
        self.recs: NDArray[np.int32] = np.zeros((c, top_k), np.int32)
        self.recs_model: NDArray[np.uint32] = np.zeros(c, np.uint32)
        self.dirty: NDArray[np.bool_] = np.zeros(c, np.bool_)

    @property
    def users(self) -> list[str | None]:
        """User of each slot ever given, None where the slot is free; not to be changed."""
        return self._slot_of.users

    def __len__(self) -> int:
        return len(self._slot_of)

    def __contains__(self, user: object) -> bool:
        return user in self._slot_of

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays (users' names and the dict come on top, about 150 bytes a user)."""
        return sum(getattr(self, name).nbytes for name in _FILL)

    def slots(self, users: Sequence[str]) -> Slots:
        """Slots (E,) of `users`, giving new users one each, to change their rows; a user may occur several times."""
        slots = np.fromiter(map(self._slot_of.__getitem__, users), np.int32, len(users))
        if len(self._slot_of.users) > self.capacity:
            self._grow(len(self._slot_of.users))
        self.changing(slots)
        return slots

    def changing(self, slots: Slots | None) -> None:
        """To be called before the rows of `slots` change, None for all; slots just asked for have been told."""
        if self.watcher is not None:
            self.watcher(slots)

    def add(self, users: Sequence[str]) -> Slots:
        """Slots (N,) of distinct users; as `slots`, five times as fast when the arena is empty."""
        if self._slot_of.users or len(set(users)) < len(users):
            return self.slots(users)
        self._slot_of.update(zip(users, range(len(users)), strict=True))
        self._slot_of.users.extend(users)
        if len(users) > self.capacity:
            self._grow(len(users))
        return np.arange(len(users), dtype=np.int32)

    def find(self, user: str) -> int:
        """The user's slot, or -1."""
        return self._slot_of.get(user, -1)

    def find_many(self, users: Sequence[str]) -> Slots:
        """Slots (E,) of `users`, -1 for those that have none."""
        return np.fromiter(map(self._slot_of.get, users, repeat(-1)), np.int32, len(users))

    def occupied(self) -> NDArray[np.bool_]:
        """Whether each slot ever given has a user: (len(users),)."""
        occupied = np.ones(len(self._slot_of.users), np.bool_)
        occupied[self._slot_of.free] = False
        return occupied

    def free(self, slots: Slots) -> None:
        """Forget the users of `slots`; the slots will be given to others. Slots that are free already stay free."""
        users = self._slot_of.users
        self.changing(slots)
        self.owners += len(slots) > 0
        for slot in slots.tolist():
            user = users[slot]
            if user is not None:
                del self._slot_of[user]
                users[slot] = None
                self._slot_of.free.append(slot)
        for name, fill in _FILL.items():
            getattr(self, name)[slots] = fill

    def clear(self) -> None:
        """Forget every user."""
        self.changing(None)
        self._slot_of = _SlotOf()
        self.owners += 1
        for name, fill in _FILL.items():
            getattr(self, name)[:] = fill

    def expire(self, before_ms: int) -> list[str]:
        """Free users last touched before `before_ms` (Kafka time) and return them; users without any event go too."""
        users = self._slot_of.users
        old = np.flatnonzero(self.occupied() & (self.touched_ms[: len(users)] < before_ms)).astype(np.int32)
        gone = [user for slot in old.tolist() if (user := users[slot]) is not None]
        self.free(old)
        return gone

    def apply(
        self,
        slots: Slots,
        items: NDArray[np.int32],
        kinds: NDArray[np.integer[Any]],
        times_ms: NDArray[np.int64],
        offsets: NDArray[np.int64],
        touched_ms: NDArray[np.int64] | int,
    ) -> None:
        """Append one wave of events, one for each of distinct users; all arrays (B,).

        The hidden vector, its model and the recommendations are the caller's to write.

        Args:
            slots: Distinct slots.
            items: Item numbers.
            kinds: Kinds 0-2, which also tell the input topic.
            times_ms: Event times; negative ones count as 0.
            offsets: Offsets on the kind's topic.
            touched_ms: Kafka timestamps, or one for all.
        """
        slots = slots.astype(np.int64)
        count = self.count[slots]
        at = slots * RING + count % RING
        of_kind = slots * 3 + kinds
        times_ms = np.clip(times_ms, 0, 1000 * _MAX_SECONDS)
        self.items.reshape(-1)[at] = items
        self.times.reshape(-1)[at] = times_ms // 1000
        self.kinds.reshape(-1)[at] = kinds
        self.count[slots] = count + 1
        self.kind_counts.reshape(-1)[of_kind] += 1
        self.last_ms[slots] = times_ms
        self.touched_ms[slots] = touched_ms
        self.offsets.reshape(-1)[of_kind] = offsets
        self.dirty[slots] = True

    def last_seconds(self, slots: Slots) -> NDArray[np.int64]:
        """Epoch seconds (B,) of each user's last applied event, -1 when there was none."""
        seconds: NDArray[np.int64] = self.last_ms[slots] // 1000
        return seconds

    def recent(
        self, slots: Slots, n: int = RING
    ) -> tuple[NDArray[np.int32], NDArray[np.uint8], NDArray[np.uint32], NDArray[np.int64]]:
        """Each user's last `n` (at most 50) events, oldest first.

        Returns:
            items (B, n) numbers, kinds (B, n), times (B, n) epoch seconds, all left-aligned then zero, and length (B,).
        """
        n = min(n, RING)
        count = self.count[slots].astype(np.int64)
        length = np.minimum(count, n)
        column = np.arange(n)
        at = ((count - length)[:, None] + column) % RING  # (B, n)
        at += slots.astype(np.int64)[:, None] * RING
        items, kinds = self.items.reshape(-1).take(at), self.kinds.reshape(-1).take(at)
        times = self.times.reshape(-1).take(at)
        if (length < n).any():
            beyond = column >= length[:, None]
            items[beyond] = kinds[beyond] = times[beyond] = 0
        return items, kinds, times, length

    def dirty_slots(self) -> Slots:
        """Slots of users changed since their `dirty` was cleared, ascending."""
        return np.flatnonzero(self.dirty[: len(self._slot_of.users)]).astype(np.int32)

    def to_rows(self, slots: Slots, index: ItemIndex) -> Rows:
        """Records (B,) of the users in `slots`, to be sealed by `record.encode`; the users are `arena.users[slot]`."""
        rows: Rows = np.zeros(len(slots), record_dtype(self.state_size))
        for name in COPIED_FIELDS:
            rows[name] = getattr(self, name)[slots]
        rows["items"] = index.hashes[self.items[slots]]
        return rows

    def load_rows(self, users: Sequence[str], rows: Rows, index: ItemIndex) -> Slots:
        """Put decoded records of distinct users into the arena, in bulk, replacing what it held of them, marked clean.

        Returns:
            Their slots (N,).
        """
        slots = self.add(users)
        self.owners += len(slots) > 0
        at: Slots | slice = as_slice(slots)
        for name in COPIED_FIELDS:
            getattr(self, name)[at] = rows[name]
        self.items[at] = index.numbers_of(rows["items"])
        self.recs[at] = self.recs_model[at] = 0
        self.dirty[at] = False
        return slots

    def resize_state(self, state_size: int) -> None:
        """Give hidden vectors another width: all zeroed, of no model, to be rebuilt from the recent items."""
        self.changing(None)
        self.state_size = state_size
        self.hidden = np.zeros((self.capacity, state_size), np.float16)
        self.model[:] = 0

    def _grow(self, needed: int) -> None:
        capacity = self.capacity
        while capacity < needed:
            capacity *= 2
        for name, fill in _FILL.items():
            old = getattr(self, name)
            new = np.zeros((capacity, *old.shape[1:]), old.dtype)
            new[: self.capacity] = old
            if fill:
                new[self.capacity :] = fill
            setattr(self, name, new)
        self.capacity = capacity


def as_slice(slots: Slots) -> Slots | slice:
    """A slice where the slots are consecutive: copying into one is several times faster than scattering."""
    n = len(slots)
    if n and int(slots[-1]) - int(slots[0]) == n - 1 and bool((np.diff(slots) == 1).all()):
        return slice(int(slots[0]), int(slots[0]) + n)
    return slots


COPIED_FIELDS: Final = ("model", "count", "kind_counts", "last_ms", "touched_ms", "offsets", "hidden", "times", "kinds")
_FILL: Final = {
    **dict.fromkeys((*COPIED_FIELDS, "items", "recs", "recs_model", "dirty"), 0),
    **dict.fromkeys(("last_ms", "touched_ms", "offsets"), -1),
}
