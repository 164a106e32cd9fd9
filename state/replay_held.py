"""The events a replay buffer holds, in memory: columns, ids by number, counts by item.

Letters: N events in order of arrival, U users, I items.
"""

from hashlib import blake2b
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from state.names import Names

_COLUMNS: Final = {"users": np.int32, "items": np.int32, "kinds": np.uint8, "times_ms": np.int64}


class HeldEvents:
    """Events as columns, and of each item how many there ever were and when the newest.

    Args:
        capacity: Most events there will be.
        seed: Of the users' hashes.

    Attributes:
        users: User ids by number.
        items: Item ids by number; those put in are numbered here first.
    """

    def __init__(self, capacity: int, seed: int) -> None:
        self._capacity = capacity
        self._hash_key = seed.to_bytes(8, "little", signed=True)
        self._size = 0
        self._columns: dict[str, NDArray[Any]] = {name: np.empty(4096, dtype) for name, dtype in _COLUMNS.items()}
        self.users, self.items = Names(), Names()
        self._user_hashes = np.zeros(0, np.uint64)
        self._item_counts, self._item_last_ms = np.zeros(1024, np.int64), np.zeros(1024, np.int64)

    def __len__(self) -> int:
        return self._size

    def columns(self, since: int = 0) -> dict[str, NDArray[Any]]:
        """`users`, `items`, `kinds` and `times_ms` (N - since,) of the events behind the first `since`; not copies."""
        return {name: array[since : self._size] for name, array in self._columns.items()}

    @property
    def item_counts(self) -> NDArray[np.int64]:
        """Events of each item (I,), those no longer held among them; no copy."""
        return self._item_counts[: len(self.items)]

    @property
    def item_last_ms(self) -> NDArray[np.int64]:
        """Time of each item's newest event (I,); no copy."""
        return self._item_last_ms[: len(self.items)]

    def put(
        self,
        users: NDArray[np.int32],
        items: NDArray[np.int32],
        kinds: NDArray[np.uint8],
        times_ms: NDArray[np.int64],
    ) -> None:
        """Add events (E,), users and items by number."""
        stop = self._size + len(users)
        if stop > len(self._columns["users"]):
            size = max(stop, min(2 * stop, self._capacity))
            self._columns = {name: _grown(array, size) for name, array in self._columns.items()}
        for name, values in zip(_COLUMNS, (users, items, kinds, times_ms), strict=True):
            self._columns[name][self._size : stop] = values
        if len(self.items) > len(self._item_counts):
            size = 2 * len(self.items)
            self._item_counts, self._item_last_ms = (
                _grown(array, size, fill=0) for array in (self._item_counts, self._item_last_ms)
            )
        np.add.at(self._item_counts, items, 1)
        np.maximum.at(self._item_last_ms, items, times_ms)
        self._size = stop

    def hashes(self) -> NDArray[np.uint64]:
        """Seeded hash of every user (U,); each is computed once."""
        known = len(self._user_hashes)
        if known < len(self.users):
            new = np.fromiter(map(self._hash, self.users.names[known:]), np.uint64, len(self.users) - known)
            self._user_hashes = np.concatenate((self._user_hashes, new))
        return self._user_hashes

    def _hash(self, user: str) -> int:
        digest = blake2b(user.encode("utf-8", "surrogatepass"), digest_size=8, key=self._hash_key).digest()
        return int.from_bytes(digest, "little")

    def keep(self, keep: NDArray[np.bool_], max_items: int) -> None:
        """Let go of all events but those of a mask (N,), of users without any, and of items idle for too long."""
        held = {name: array[keep] for name, array in self.columns().items()}
        self.hashes()
        remain = np.bincount(held["users"], minlength=len(self.users)) > 0
        self._user_hashes = self._user_hashes[remain]
        held["users"] = self.users.retain(remain)[held["users"]]
        item_mask = self._items_kept(held["items"], max_items)
        held["items"] = self.items.retain(item_mask)[held["items"]]
        known = len(item_mask)
        for array in (self._item_counts, self._item_last_ms):
            remaining = array[:known][item_mask]
            array[:] = 0
            array[: len(remaining)] = remaining
        self._size = len(held["users"])
        for name, values in held.items():
            self._columns[name][: self._size] = values

    def _items_kept(self, items: NDArray[np.int32], max_items: int) -> NDArray[np.bool_]:
        known = len(self.items)
        held = np.bincount(items, minlength=known) > 0
        if known > max_items:
            age = np.lexsort((np.arange(known), -self._item_last_ms[:known], ~held))  # held ones, then the newest
            mask = np.zeros(known, np.bool_)
            mask[age[: max(max_items, int(held.sum()))]] = True
            return mask
        return np.ones(known, np.bool_)


def _grown(array: NDArray[Any], size: int, fill: int | None = None) -> NDArray[Any]:
    grown = np.empty(size, array.dtype) if fill is None else np.full(size, fill, array.dtype)
    grown[: len(array)] = array
    return grown
