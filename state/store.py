"""One partition's users, resident and cold, behind the one call the pipeline makes: users -> slots."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from state.arena import Arena, Slots
from state.capture import Capture
from state.cold import ColdPartition
from state.errors import StateError
from state.items import ItemIndex
from state.record import decode, encode
from state.snapshot import Snapshot

_SLACK: Final = 0.05  # share of the limit freed beyond it, so that eviction runs for thousands of users at a time


class UserStore:
    """The arena, and the cold store for the least recently touched users beyond `max_resident`.

    A user is either resident or cold. Only clean users (whose record the changelog has) go cold. Without a cold store
    every user is resident and `slots` is `arena.slots`. The last recommendations of a user who goes cold are lost.

    Args:
        arena: The partition's arena.
        index: Item numbers of this process.
        cold: The partition's cold store, or None.
        max_resident: Users to keep in the arena; may be exceeded by one batch and by dirty users.

    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from state.cold import ColdStore
    >>> with TemporaryDirectory() as folder:
    ...     disk = ColdStore(Path(folder))
    ...     store = UserStore(Arena(state_size=4, top_k=2), ItemIndex(), disk.partition(0), max_resident=2)
    ...     slots = store.slots(["ann", "bob", "cid"])
    ...     moved, split = store.evict(), (store.resident, store.cold)
    ...     slots = store.slots(["ann"])  # comes back
    ...     disk.close()
    >>> moved, split
    (2, (1, 2))
    """

    def __init__(
        self, arena: Arena, index: ItemIndex, cold: ColdPartition | None = None, max_resident: int | None = None
    ) -> None:
        self.arena, self.index, self._cold, self.max_resident = arena, index, cold, max_resident
        self._batch = 0
        self._touched_in = np.zeros(arena.capacity, np.int64)  # (C,) the batch a slot was last asked for in
        if cold is None:
            self.slots = arena.slots  # type: ignore[method-assign]

    @property
    def resident(self) -> int:
        """Users in the arena."""
        return len(self.arena)

    @property
    def cold(self) -> int:
        """Users in the cold store."""
        return 0 if self._cold is None else len(self._cold)

    def __len__(self) -> int:
        return self.resident + self.cold

    def slots(self, users: Sequence[str]) -> Slots:
        """Slots (E,) of `users`: cold ones are loaded, new ones get a slot; a user may occur several times.

        Raises:
            StateError: A cold record is corrupt.
        """
        slots = self.arena.find_many(users)
        missing = np.flatnonzero(slots < 0)
        if missing.size:
            self._warm(list(dict.fromkeys(users[i] for i in missing.tolist())))
            slots = self.arena.slots(users)
        else:
            self.arena.changing(slots)
        self._touch(slots)
        return slots

    def offsets_of(self, users: Sequence[str]) -> NDArray[np.int64]:
        """Last applied offsets (N, 3) of distinct users, -1 for strangers; everybody stays where they are."""
        slots = self.arena.find_many(users)
        offsets = np.where(slots[:, None] >= 0, self.arena.offsets[slots], -1)
        if self.cold and self._cold is not None:
            absent = np.flatnonzero(slots < 0)
            found = self._cold.read_many([users[i] for i in absent.tolist()])
            held = [(i, record) for i, record in zip(absent.tolist(), found, strict=True) if record is not None]
            rows, _ = decode([record for _, record in held], self.arena.state_size)  # a corrupt record is behind any
            offsets[[i for i, _ in held]] = rows["offsets"]
        return offsets

    def reached(self) -> NDArray[np.int64]:
        """The highest applied offset (3,) of each input topic among resident users, -1 for none.

        Those touched last are resident, so no cold user's is higher.
        """
        highest: NDArray[np.int64] = self.arena.offsets.max(axis=0, initial=-1)
        return highest

    def lower(self, kind: int, offset: int) -> list[str]:
        """Let no user's last applied offset of an input topic be above `offset`; returns those whose was.

        Resident ones are to be written. Cold ones are so at their next event: the changelog has the offset they had.
        """
        slots = np.flatnonzero(self.arena.offsets[:, kind] > offset).astype(np.int32)
        self.arena.changing(slots)
        self.arena.offsets[slots, kind] = offset
        self.arena.dirty[slots] = True
        lowered = [user for slot in slots.tolist() if (user := self.arena.users[slot]) is not None]
        for users, records in () if self._cold is None else self._cold.blocks():
            rows = self._rows(users, records)
            above = np.flatnonzero(rows["offsets"][:, kind] > offset)
            rows["offsets"][above, kind] = offset
            names = [users[i] for i in above.tolist()]
            self._cold.put_many(names, encode(rows[above]))  # type: ignore[union-attr]
            lowered += names
        return lowered

    def cold_record(self, user: str) -> bytes | None:
        """The record of a cold user, who stays cold; None for everybody else."""
        return None if self._cold is None else self._cold.read(user)

    def load_rows(self, users: Sequence[str], rows: NDArray[np.void]) -> None:
        """Put decoded records of distinct users into the store, replacing what it holds of them (restore)."""
        if self._cold is not None:
            self._cold.delete(users)
        slots = self.arena.load_rows(users, rows, self.index)
        if self._cold is not None:
            self._touch(slots)
            self.evict()

    def evict(self, protected: Slots | None = None) -> int:
        """Move least recently touched, clean, unprotected users to the cold store until the arena is within its limit.

        Slots of evicted users are reused: call it between batches, or protect the slots in use.

        Returns:
            Users moved.
        """
        if self._cold is None or self.max_resident is None or len(self.arena) <= self.max_resident:
            return 0
        return self._evict(len(self.arena) - int(self.max_resident * (1 - _SLACK)), protected)

    def forget(self, users: Sequence[str]) -> dict[str, int]:
        """Erase users, wherever they are; returns those that were known, with the number of their events."""
        users = list(dict.fromkeys(users))
        slots = self.arena.find_many(users)
        held = slots[slots >= 0]
        resident = [user for user, slot in zip(users, slots.tolist(), strict=True) if slot >= 0]
        known = dict(zip(resident, self.arena.count[held].tolist(), strict=True))
        self.arena.free(held)
        if self._cold is None:
            return known
        absent = [user for user, slot in zip(users, slots.tolist(), strict=True) if slot < 0]
        taken = zip(absent, self._cold.take_many(absent), strict=True)
        found = {user: record for user, record in taken if record is not None}
        rows, _ = decode(list(found.values()), self.arena.state_size)  # a corrupt record counts no events
        return known | dict(zip(found, rows["count"].tolist(), strict=True))

    def purge(self, users: Sequence[str], wanted: Callable[[], bool] = lambda: True) -> bool:
        """Remove what the cold store's files still hold of users that were forgotten; another thread may do it.

        Returns:
            Whether that was done to the end: it stops soon after `wanted` says no.
        """
        return self._cold is None or not users or self._cold.purge(users, wanted)

    def expire(self, before_ms: int) -> Iterator[list[str]]:
        """Erase users last touched before `before_ms` (Kafka time): resident ones, then cold ones, piece by piece.

        A generator of the users erased, so that a caller can let events through between pieces (at most 0.1 s each).
        Between two pieces the store may change; who is touched meanwhile stays.
        """
        gone = self.arena.expire(before_ms)
        cursor: str | None = None
        while self._cold is not None:
            cold, cursor = self._cold.expire(before_ms, cursor)
            gone += cold
            if cursor is None:
                break
            yield gone
            gone = []
        yield gone

    def capture(self) -> Capture:
        """All users as of now, to be copied beside the stream; the cold ones are read when that is written."""
        return Capture(self.arena, self.index, () if self._cold is None else self._cold.blocks())

    def restore(self, snapshot: Snapshot) -> int:
        """Load a snapshot into an empty store; returns its users.

        Raises:
            StateError: The snapshot is corrupt; the store is left empty.
        """
        snapshot.load(self.arena, self.index)
        try:
            for users, records in snapshot.cold_blocks():
                if self._cold is None:
                    self.arena.load_rows(users, self._rows(users, records), self.index)
                else:
                    self._cold.put_many(users, records)
        except StateError:
            self.clear()
            raise
        self._touch(np.zeros(0, np.int32))
        self.evict()
        return len(self)

    def clear(self) -> None:
        """Erase every user."""
        self.arena.clear()
        if self._cold is not None:
            for users, _ in self._cold.blocks():
                self._cold.delete(users)

    def _warm(self, users: list[str]) -> None:
        if not self.cold or self._cold is None:
            return
        taken = zip(users, self._cold.take_many(users), strict=True)
        found = {user: record for user, record in taken if record is not None}
        if found:
            self.arena.load_rows(list(found), self._rows(found, list(found.values())), self.index)

    def _rows(self, users: Collection[str], records: list[bytes]) -> NDArray[np.void]:
        rows, bad = decode(records, self.arena.state_size)
        if bad.any():
            what = f"{int(bad.sum())} of {len(users)} records of the cold store are corrupt"
            raise StateError(what, "the disk altered them", "restart the worker: the changelog has every user's state")
        return rows

    def _touch(self, slots: Slots) -> None:
        if self._touched_in.size < self.arena.capacity:
            grown = np.zeros(self.arena.capacity, np.int64)
            grown[: self._touched_in.size] = self._touched_in
            self._touched_in = grown
        self._batch += 1
        self._touched_in[slots] = self._batch

    def _evict(self, n: int, protected: Slots | None) -> int:
        names = self.arena.users
        movable = self.arena.occupied() & ~self.arena.dirty[: len(names)]
        if protected is not None:
            movable[protected] = False
        slots = np.flatnonzero(movable).astype(np.int32)
        if slots.size > n:
            slots = slots[np.argpartition(self._touched_in[slots], n - 1)[:n]]
        if slots.size and self._cold is not None:
            users = [user for slot in slots.tolist() if (user := names[slot]) is not None]
            self._cold.put_many(users, encode(self.arena.to_rows(slots, self.index)))
            self.arena.free(slots)
        return int(slots.size)
