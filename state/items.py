"""Dense, process-local numbers for item ids, and the 64-bit hashes that stand for items in stored records.

Arrays hold int32 numbers (a gather away from anything); records on disk and in Kafka hold hashes, which every
process agrees on. A hash table with open addressing, looked up a chunk at a time in numpy, turns hashes back into
numbers: 10 M hashes of 50,000 items take 0.1 s, where a Python dict takes several seconds.
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

import numpy as np
from numpy.typing import NDArray

_CHUNK: Final = 1 << 15  # hashes looked up at once: the chunk's temporaries stay in the L2 cache
_MIN_SIZE: Final = 1 << 12


def item_hash(item_id: str) -> int:
    """The item's 64-bit identity in stored records, the same in every process and release.

    blake2b with an 8-byte digest, little endian; never 0, which stands for "no item". Among one million items two share
    a hash with probability 3e-8; they would then be treated as one item.

    >>> item_hash("i9") == item_hash("i9"), item_hash("i9") == item_hash("i8")
    (True, False)
    """
    digest = blake2b(item_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1


class _NumberOf(dict[str, int]):
    """A dict that asks the index for a missing id, so that a batch of known ids is looked up without Python code."""

    __slots__ = ("_index",)

    def __init__(self, index: "ItemIndex") -> None:
        super().__init__()
        self._index = index

    def __missing__(self, item_id: str) -> int:
        number = self._index._intern(item_id)
        self[item_id] = number
        return number


class ItemIndex:
    """Item ids <-> numbers 1, 2, 3, ... in order of appearance; number 0 is "no item".

    An item may be known by its hash alone (read from a record before any event named it); when its id appears it
    keeps its number. Numbers are never reused.

    >>> index = ItemIndex()
    >>> index.numbers(["a", "b", "a"]).tolist(), index.get("b"), index.get("never seen")
    ([1, 2, 1], 2, 0)
    >>> other = ItemIndex()
    >>> other.numbers_of(index.hashes[[2, 0]]).tolist(), other.ids[1], other.number("b"), other.ids[1]
    ([1, 0], None, 1, 'b')
    """

    def __init__(self) -> None:
        self.ids: list[str | None] = [None]
        self._number_of = _NumberOf(self)
        self._hash_buffer = np.zeros(_MIN_SIZE, np.uint64)
        # Linear probing; a cell holds a number, 0 when empty. Number 0 has hash 0: an empty cell "matches" hash 0.
        self._table = np.zeros(4 * _MIN_SIZE, np.int32)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def hashes(self) -> NDArray[np.uint64]:
        """Hash of every number: (len,); entry 0 is 0. A view, valid until the next id is interned."""
        return self._hash_buffer[: len(self.ids)]

    def get(self, item_id: str) -> int:
        """Return the number of `item_id`, or 0 when it was never interned by its id."""
        return self._number_of.get(item_id, 0)

    def number(self, item_id: str) -> int:
        """Return the number of `item_id`, giving it the next one when it is new."""
        return self._number_of[item_id]

    def numbers(self, ids: Sequence[str]) -> NDArray[np.int32]:
        """Numbers (N,) of `ids`; new ids get the next numbers."""
        return np.fromiter(map(self._number_of.__getitem__, ids), np.int32, len(ids))

    def numbers_of(self, hashes: NDArray[np.uint64]) -> NDArray[np.int32]:
        """Numbers of item hashes, the same shape; unknown hashes get the next numbers (with id None), 0 stays 0."""
        flat = np.ascontiguousarray(hashes, np.uint64).reshape(-1)
        numbers = np.empty(flat.size, np.int32)
        for start in range(0, flat.size, _CHUNK):
            self._lookup(flat[start : start + _CHUNK], numbers[start : start + _CHUNK])
        return numbers.reshape(np.shape(hashes))

    def ids_of(self, hashes: NDArray[np.uint64]) -> list[str | None]:
        """Ids of a few item hashes (N,), None for those whose id no one has named; reads only, about 1 us each."""
        mask, known = self._table.size - 1, self._hash_buffer
        ids = []
        for wanted in hashes.tolist():
            cell = wanted & mask
            while (number := int(self._table[cell])) and int(known[number]) != wanted:
                cell = (cell + 1) & mask
            ids.append(self.ids[number])
        return ids

    def learn(self, ids: Sequence[str | None], hashes: NDArray[np.uint64]) -> NDArray[np.int32]:
        """Numbers (N,) of items given as pairs of id (None: unknown) and hash, as a snapshot stores them."""
        numbers = self.numbers_of(hashes)
        known, number_of = self.ids, self._number_of
        for item_id, number in zip(ids, numbers.tolist(), strict=True):
            if item_id is not None and known[number] is None and number:
                known[number] = item_id
                number_of[item_id] = number
        return numbers

    def _intern(self, item_id: str) -> int:
        new = len(self.ids)
        self._reserve(new + 1)
        wanted = item_hash(item_id)
        mask = self._table.size - 1
        cell = wanted & mask
        while number := int(self._table[cell]):
            if int(self._hash_buffer[number]) == wanted:
                if self.ids[number] is None:
                    self.ids[number] = item_id
                return number
            cell = (cell + 1) & mask
        self._table[cell] = new
        self._hash_buffer[new] = wanted
        self.ids.append(item_id)
        return new

    def _lookup(self, hashes: NDArray[np.uint64], numbers: NDArray[np.int32]) -> None:
        """Fill `numbers`, adding hashes that are not in the table."""
        mask = np.uint64(self._table.size - 1)
        cells = (hashes & mask).view(np.int64)
        # mode="clip" spares numpy its bounds-check copy; every cell and number is in range by construction.
        self._table.take(cells, out=numbers, mode="clip")
        wrong = np.flatnonzero(self._hash_buffer.take(numbers, mode="clip") != hashes)
        unknown = []
        while wrong.size:
            met = numbers[wrong]
            unknown.append(wrong[met == 0])
            wrong = wrong[met != 0]
            cells[wrong] = (cells[wrong] + 1) & (self._table.size - 1)
            numbers[wrong] = self._table[cells[wrong]]
            wrong = wrong[self._hash_buffer[numbers[wrong]] != hashes[wrong]]
        new = np.concatenate(unknown) if unknown else wrong
        if new.size:
            new.sort()
            distinct, first, inverse = np.unique(hashes[new], return_index=True, return_inverse=True)
            appearance = np.argsort(np.argsort(first))  # numbers follow the order of appearance, not of the hashes
            numbers[new] = (len(self.ids) + appearance[inverse]).astype(np.int32)
            ordered = np.empty_like(distinct)
            ordered[appearance] = distinct
            self._add(ordered)

    def _add(self, hashes: NDArray[np.uint64]) -> None:
        """Append distinct, unknown, non-zero hashes as new numbers."""
        start, stop = len(self.ids), len(self.ids) + hashes.size
        self._reserve(stop)
        self._hash_buffer[start:stop] = hashes
        self.ids.extend([None] * hashes.size)
        self._place(np.arange(start, stop, dtype=np.int32))

    def _reserve(self, stop: int) -> None:
        """Make room for the numbers below `stop`."""
        if stop > self._hash_buffer.size:
            grown = np.zeros(1 << (stop - 1).bit_length(), np.uint64)
            grown[: len(self.ids)] = self.hashes
            self._hash_buffer = grown
        if 4 * stop > self._table.size:  # at most a quarter full: 1.2 probes to find a hash
            self._table = np.zeros(8 << (stop - 1).bit_length(), np.int32)
            self._place(np.arange(1, len(self.ids), dtype=np.int32))

    def _place(self, pending: NDArray[np.int32]) -> None:
        """Write numbers into the first free cell of their probe sequences, all at once, cell by cell."""
        mask = self._table.size - 1
        cells = (self._hash_buffer[pending] & np.uint64(mask)).view(np.int64)
        while pending.size:
            free = self._table[cells] == 0
            self._table[cells[free]] = pending[free]  # several for one cell: the last stays, the others move on
            left = self._table[cells] != pending
            pending, cells = pending[left], (cells[left] + 1) & mask
