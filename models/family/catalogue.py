"""What is known of items besides their ids: text and attributes, by item row."""

from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Texts and attributes of V item rows, row 0 (unknown) included.

    Attributes:
        texts: (V,) title and other words of each item, empty where nothing is known.
        attributes: Attribute values (category, genre, brand) of each item (V,), each with its column's name before it.
    """

    texts: list[str] = field(default_factory=list)
    attributes: list[tuple[str, ...]] = field(default_factory=list)

    @classmethod
    def empty(cls, rows: int) -> Self:
        """A catalogue that knows nothing of ``rows`` items."""
        return cls([""] * rows, [()] * rows)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def has_text(self) -> bool:
        """Whether any item has words."""
        return any(self.texts)

    def attribute_table(self, most: int = 2000) -> tuple[NDArray[np.float32], list[str]]:
        """Attributes as a table (V, A) whose rows sum to 1 (0 without any), and the A most frequent values.

        Args:
            most: Largest A; rarer values are left out.
        """
        counts: dict[str, int] = {}
        for values in self.attributes:
            for value in values:
                counts[value] = counts.get(value, 0) + 1
        # A value of one item only says what its id says.
        names = sorted((name for name, count in counts.items() if count > 1), key=lambda name: (-counts[name], name))
        column = {name: number for number, name in enumerate(names[:most])}
        table = np.zeros((len(self), len(column)), np.float32)
        for row, values in enumerate(self.attributes):
            for value in values:
                if value in column:
                    table[row, column[value]] = 1
        table /= np.maximum(table.sum(1, keepdims=True), 1)
        return table, list(column)
