"""Counts of item pairs, growing event by event: which items followed which, and how much.

An open-addressing hash table finds a pair in O(1); a linked list per source item gives its successors. Both hold
indices into the same edge arrays, so adding a pair costs about 0.1 us and reading a row costs its number of successors.

Letters: E pairs, V item rows, B queries, Q items of a query.
"""

from typing import Final

import numba as nb
import numpy as np
from numpy.typing import NDArray

_jit = nb.njit(cache=True, nogil=True)
_FEWEST: Final = 1024
_HASH = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio (Knuth's multiplicative hashing)


@_jit  # type: ignore[untyped-decorator]
def _place(table: NDArray[np.int32], edges: NDArray[np.int32], source: int, target: int) -> int:
    """Where the pair stands in the table, or the free place where it belongs."""
    mask = np.uint64(len(table) - 1)
    at = ((np.uint64(source) << np.uint64(32)) | np.uint64(target)) * _HASH
    at = (at ^ (at >> np.uint64(29))) & mask
    while table[at] >= 0 and (edges[table[at], 0] != source or edges[table[at], 1] != target):
        at = (at + np.uint64(1)) & mask
    return int(at)


@_jit  # type: ignore[untyped-decorator]
def _rehash(table: NDArray[np.int32], edges: NDArray[np.int32], size: int) -> None:
    for edge in range(size):
        table[_place(table, edges, edges[edge, 0], edges[edge, 1])] = edge


@_jit  # type: ignore[untyped-decorator]
def _add(
    table: NDArray[np.int32],
    edges: NDArray[np.int32],  # (capacity, 3): source, target, next edge of the same source
    weights: NDArray[np.float32],
    head: NDArray[np.int32],  # (V,)
    size: int,
    sources: NDArray[np.int64],  # (E,)
    targets: NDArray[np.int64],
    added: NDArray[np.float32],
) -> int:
    for number in range(len(sources)):
        source, target = sources[number], targets[number]
        if source == 0 or target == 0:
            continue
        at = _place(table, edges, source, target)
        if table[at] < 0:
            table[at] = size
            edges[size, 0], edges[size, 1], edges[size, 2] = source, target, head[source]
            head[source] = size
            size += 1
        weights[table[at]] += added[number]
    return size


@_jit  # type: ignore[untyped-decorator]
def _accumulate(
    edges: NDArray[np.int32],
    weights: NDArray[np.float32],
    head: NDArray[np.int32],
    rows: NDArray[np.int64],  # (B, Q)
    factors: NDArray[np.float32],  # (Q,)
    out: NDArray[np.float32],  # (B, V)
) -> None:
    for query in range(rows.shape[0]):
        for place in range(rows.shape[1]):
            edge = head[rows[query, place]] if rows[query, place] else -1
            while edge >= 0:
                out[query, edges[edge, 1]] += factors[place] * weights[edge]
                edge = edges[edge, 2]


class PairCounts:
    """Weights of ordered item pairs.

    Args:
        items: V.

    Example:
        >>> counts = PairCounts(4)
        >>> counts.add(np.array([1, 1, 2]), np.array([2, 2, 3]), np.ones(3, np.float32))
        >>> counts.sums(np.array([[1, 0], [1, 2]]), np.ones(2, np.float32))[:, 1:].tolist()
        [[0.0, 2.0, 0.0], [0.0, 2.0, 1.0]]
    """

    def __init__(self, items: int) -> None:
        self.items = items
        self.size = 0
        self._head = np.full(items, -1, np.int32)
        self._edges = np.zeros((0, 3), np.int32)  # source, target, next edge of the same source
        self._weights = np.zeros(0, np.float32)
        self._reserve(_FEWEST)

    def add(self, sources: NDArray[np.int64], targets: NDArray[np.int64], weights: NDArray[np.float32]) -> None:
        """Add a weight to each pair (E,); pairs with an unknown item (0) are ignored."""
        if self.size + len(sources) > len(self._weights):
            distinct = len(sources) if len(sources) < _FEWEST else len(np.unique(sources * self.items + targets))
            if self.size + distinct > len(self._weights):
                self._reserve(max(2 * len(self._weights), self.size + distinct))
        arrays = (self._table, self._edges, self._weights, self._head)
        self.size = _add(*arrays, self.size, sources, targets, weights)

    def sums(self, rows: NDArray[np.int64], factors: NDArray[np.float32]) -> NDArray[np.float32]:
        """For queries (B, Q) of item rows, each item's weight after them times the factors (Q,), summed: (B, V)."""
        out = np.zeros((len(rows), self.items), np.float32)
        _accumulate(self._edges, self._weights, self._head, rows, factors, out)
        return out

    def pairs(self) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Sources and targets (E, 2) and weights (E,), in the order they were first seen."""
        return self._edges[: self.size, :2].copy(), self._weights[: self.size].copy()

    def _reserve(self, capacity: int) -> None:
        edges, weights = np.zeros((capacity, 3), np.int32), np.zeros(capacity, np.float32)
        if self.size:
            edges[: self.size], weights[: self.size] = self._edges[: self.size], self._weights[: self.size]
        self._edges, self._weights = edges, weights
        self._table = np.full(1 << int(2 * capacity - 1).bit_length(), -1, np.int32)  # at most half full
        _rehash(self._table, self._edges, self.size)
