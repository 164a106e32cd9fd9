"""What the kind of an event says besides its type: that the type is not known, that a session opens, that no time is.

The neural models have one learnt vector per code. Codes beyond the three types are only used where a log needs them, so
a model of a complete log has three vectors and no parameter more.

    code = kind + 4 * (a session opens) + 8 * (the gap is not known),   kind 3 standing for an unknown type
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from models.family.interface import Lesson
from models.sequences import Histories
from models.tables import UNKNOWN_KIND

MISSING_KIND: Final = UNKNOWN_KIND
MISSING_GAP: Final = -1
_TYPES: Final = 3
_ROWS: Final = 12  # 4 kinds, times: inside a session, opening one, time unknown
Column = TypeVar("Column", Tensor, NDArray[np.int64])


@dataclass(frozen=True, slots=True)
class Coding:
    """How events' kinds and gaps become the codes a model has vectors for.

    Attributes:
        wide: Whether there are codes for what is missing and for sessions.
        session_gap: Seconds without an event after which a session opens; 0 for never.

    Example:
        >>> kinds, gaps = np.array([0, 3, 2]), np.array([0, 3600, -1])
        >>> Coding(True, 1800.0).codes(kinds, gaps).tolist()
        [0, 7, 10]
        >>> Coding().codes(kinds, gaps).tolist()
        [0, 0, 2]
    """

    wide: bool = False
    session_gap: float = 0.0

    @classmethod
    def of(cls, lesson: Lesson) -> Self:
        """The coding that a log needs."""
        source = lesson.source
        missing = bool((source.kinds >= MISSING_KIND).any() or (source.gaps_seconds < 0).any())
        return cls(missing or lesson.session_gap > 0, float(lesson.session_gap))

    @classmethod
    def read(cls, plain: Mapping[str, Any] | None) -> Self:
        """From `plain`; None is the narrow one."""
        return cls(**(plain or {}))

    def plain(self) -> dict[str, Any]:
        """As plain values, for a model's settings."""
        return {"wide": self.wide, "session_gap": self.session_gap}

    @property
    def rows(self) -> int:
        """Number of codes."""
        return _ROWS if self.wide else _TYPES

    def codes(self, kinds: Column, gaps_seconds: Column) -> Column:
        """Codes (...) of events' kinds and gaps (...); a narrow coding takes unknown types for clicks."""
        if not self.wide:
            return kinds * (kinds < _TYPES)
        unknown = gaps_seconds < 0
        opens = (gaps_seconds >= self.session_gap) & (not self.session_gap <= 0)
        return kinds + 4 * opens + 8 * unknown

    def coded(self, source: Histories) -> Histories:
        """The histories with codes as kinds."""
        codes = self.codes(source.kinds.astype(np.int64), source.gaps_seconds)
        return replace(source, kinds=codes.astype(np.uint8))
