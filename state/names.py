"""Names <-> dense numbers from 0, in order of appearance: user and item ids of the replay buffer."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray


class _NumberOf(dict[str, int]):
    """A dict that numbers a missing name, so that a batch of known names is looked up without Python code."""

    __slots__ = ("_names",)

    def __init__(self, names: list[str]) -> None:
        super().__init__(zip(names, range(len(names)), strict=True))
        self._names = names

    def __missing__(self, name: str) -> int:
        number = self[name] = len(self._names)
        self._names.append(name)
        return number


class Names:
    """Names <-> numbers 0, 1, 2, ... in order of appearance.

    >>> names = Names()
    >>> names.numbers(["b", "a", "b"]).tolist(), names.retain(np.array([False, True])).tolist(), names.names
    ([0, 1, 0], [-1, 0], ['a'])
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self._number_of = _NumberOf(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def numbers(self, names: Sequence[str]) -> NDArray[np.int32]:
        """Numbers (N,) of names; new ones get the next numbers."""
        return np.fromiter(map(self._number_of.__getitem__, names), np.int32, len(names))

    def find(self, names: Iterable[str]) -> dict[str, int]:
        """Numbers of those names that have one."""
        return {name: number for name in names if (number := self._number_of.get(name)) is not None}

    def extend(self, names: Sequence[str]) -> None:
        """Number names that were numbered in this order before."""
        self.numbers(names)

    def retain(self, mask: NDArray[np.bool_]) -> NDArray[np.int32]:
        """Keep the names of `mask`; returns the new number of each old one (those let go are meaningless)."""
        self.names = [name for name, kept in zip(self.names, mask.tolist(), strict=True) if kept]
        self._number_of = _NumberOf(self.names)
        return (np.cumsum(mask) - 1).astype(np.int32)
