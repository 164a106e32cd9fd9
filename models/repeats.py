"""What a model adds to the scores of items its user had lately: the part of `models.network` that needs the history.

It takes item numbers and looks up the model's rows itself: at 50 items an event, arrays of rows made beforehand cost
more than the products they are added to.

Letters: E events, B histories, X length of a history, R latest events told apart, V rows of the model, C item numbers.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.kernels import jit


class LastItems(NamedTuple):
    """Which items the users of some events had last.

    Attributes:
        histories: (B, X) item numbers, newest first.
        lengths: (B,) how many of them there are.
        at: (E,) the history of each event.
        newest: (E,) the item of one more event that has come since, -1 where none has.
        row_of: (C,) row of each item number, 0 for items outside the vocabulary.
    """

    histories: NDArray[np.int32]
    lengths: NDArray[np.int32]
    at: NDArray[np.int64]
    newest: NDArray[np.int32]
    row_of: NDArray[np.int32]

    @classmethod
    def before(cls, histories: NDArray[np.int32], lengths: NDArray[np.int32], row_of: NDArray[np.int32]) -> "LastItems":
        """One history (E, X) for each event, as it stands."""
        return cls(histories, lengths, np.arange(len(histories)), np.full(len(histories), -1, np.int32), row_of)

    @classmethod
    def of_rows(cls, rows: NDArray[np.int32]) -> "LastItems":
        """Rows (E, X) of each event's last items, newest first, 0 for none."""
        width = np.full(len(rows), rows.shape[1], np.int32)
        return cls.before(rows, width, np.arange(rows.max(initial=0) + 1, dtype=np.int32))

    def of(self, events: slice | NDArray[np.int64]) -> "LastItems":
        """Those of some of the events."""
        return self._replace(at=self.at[events], newest=self.newest[events])


@jit  # type: ignore[untyped-decorator]
def add_repeats(
    scores: NDArray[np.float32],  # (E, V) changed; entry 0 of a row is of no use
    repeats: NDArray[np.float32],  # (R,) added to the score of the item of the d-th last event
    last: LastItems,
) -> None:
    """Add to the score of each of the last items."""
    for e in range(last.at.shape[0]):
        history = np.uintp(last.at[e])
        since = 0
        if last.newest[e] >= 0:
            scores[e, np.uintp(last.row_of[np.uintp(last.newest[e])])] += repeats[0]
            since = 1
        for d in range(min(last.lengths[history], repeats.shape[0] - since)):
            item = np.uintp(last.histories[history, np.uintp(d)])
            scores[e, np.uintp(last.row_of[item])] += repeats[np.uintp(d + since)]
