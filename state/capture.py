"""A partition's users as of one moment, copied piece by piece while the stream goes on.

Copying a million users at once takes 0.2 to 0.4 s, and 1.8 s where the memory is new to the process; events would wait
so long. Instead the arena tells a capture which rows are about to change, and those are copied first (copy on write);
the rest follows in pieces of 3 ms between two batches. Whenever a row is copied, it is as it was in the beginning.

Rows stay in the order in which they were copied: to put each in its place, in arrays of the whole size, would touch
all of that new memory with the first thousand users who come along, 0.1 to 2.3 s of page faults at once.

Memory: a second copy of the partition's arrays, as the pieces come, until the snapshot is written.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from state.arena import COPIED_FIELDS, Arena, Slots, as_slice
from state.errors import StateError
from state.items import ItemIndex

ColdBlocks = Iterable[tuple[list[str], list[bytes]]]
"""Blocks of cold users and their sealed records."""


class Capture:
    """The users of an arena as they are now, for `snapshot.prepare`.

    Made, copied and told of changes between two batches, by whoever changes the arena; read by any thread once it is
    complete. An arena has one capture at a time: a new one takes the place of one that is not complete.

    Args:
        arena: The partition's arena.
        index: Its item numbers.
        cold: Blocks of users of the cold store, as of now; read once, when the capture is written.

    Attributes:
        state_size: Width S of the hidden vectors.
        users: N names.
        pieces: The arena's arrays, which together have (N, ...) each, in the order of `users`.
        index: The item numbers; those below `items` occur in the arrays, and never change.
        abandoned: Set it where the capture is no longer wanted: the arena is let go at its next change.

    >>> arena, index = Arena(state_size=4, top_k=2), ItemIndex()
    >>> slots = arena.slots(["ann", "bob"])
    >>> captured = Capture(arena, index)
    >>> arena.apply(arena.slots(["bob"]), index.numbers(["x"]), np.array([0]), np.array([5000]), np.array([0]), 5001)
    >>> captured.copy(), captured.users, [piece["count"].tolist() for piece in captured.pieces], arena.count[1].item()
    (True, ['bob', 'ann'], [[], [0], [0]], 1)
    """

    def __init__(self, arena: Arena, index: ItemIndex, cold: ColdBlocks = ()) -> None:
        self._arena = arena
        self._left = arena.occupied()  # (slots given so far,) has a user who is not copied yet
        self._at = 0  # no slot before this one is left
        self.state_size, self.index, self.items, self.cold = arena.state_size, index, len(index), cold
        self.users: list[str] = []
        self.pieces: list[dict[str, NDArray[Any]]] = []
        self._take(np.zeros(0, np.int32))  # the columns of no users have types and widths too
        self.abandoned = False
        arena.watcher = None if self.complete else self._changing

    @property
    def complete(self) -> bool:
        """Whether everything is copied."""
        return self._at == len(self._left)

    def copy(self, rows: int | None = None) -> bool:
        """Copy so many rows more, all by default; returns whether that was the rest (0.3 us a row).

        Raises:
            StateError: Another capture has taken its place.
        """
        if self.complete:
            return True
        if self._arena.watcher != self._changing:
            what, why = "a capture cannot be completed", "its arena tells it of changes no more"
            raise StateError(what, why, "copy it to the end, or leave it, before another is begun")
        stop = len(self._left) if rows is None else min(self._at + rows, len(self._left))
        left = np.flatnonzero(self._left[self._at : stop]) + self._at
        self._take(left.astype(np.int32))
        self._at = stop
        if self.complete:
            self._arena.watcher = None
        return self.complete

    def _changing(self, slots: Slots | None) -> None:
        """Rows of `slots`, None for all, are about to change: copy those that are not copied yet."""
        if self.abandoned:
            self._arena.watcher = None
        elif slots is None:
            self.copy()
        else:
            slots = slots[slots < len(self._left)]
            left = slots[self._left[slots]]
            if left.size:
                self._take(np.unique(left))

    def _take(self, slots: Slots) -> None:
        """Copy the rows of distinct slots."""
        names, at = self._arena.users, as_slice(slots)
        self.users += [names[slot] or "" for slot in slots.tolist()]
        arrays = {name: getattr(self._arena, name)[at] for name in (*COPIED_FIELDS, "items")}
        self.pieces.append({name: array.copy() if isinstance(at, slice) else array for name, array in arrays.items()})
        self._left[slots] = False
