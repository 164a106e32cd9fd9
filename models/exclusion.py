"""Which items a list leaves out: those its user has had, or bought, or none; `auto` learns which from the events."""

from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from models.history import EXCLUDE_NONE, EXCLUDE_PURCHASED, EXCLUDE_SEEN
from state.items import ItemIndex

Exclude = Literal["auto", "none", "purchased", "seen"]
_REPEAT_SHARE: Final = 0.01  # auto: fewer repeats than this and seen items are left out
_REPEAT_MEMORY: Final = 10_000  # events over which the share of repeats is averaged
_POLICY: Final = {"none": EXCLUDE_NONE, "purchased": EXCLUDE_PURCHASED, "seen": EXCLUDE_SEEN}


class Exclusion:
    """The policy in force.

    Args:
        exclude: which items of a user's last 50 events are left out; `auto` leaves seen ones out while fewer than 1% of
            events repeat an item of their user's history.
    """

    def __init__(self, exclude: Exclude) -> None:
        self._exclude = exclude
        self.repeat_share = 0.0
        self._seen = 0

    @property
    def policy(self) -> int:
        """One of `models.history.EXCLUDE_*`."""
        if self._exclude == "auto":
            return EXCLUDE_SEEN if self.repeat_share < _REPEAT_SHARE else EXCLUDE_NONE
        return _POLICY[self._exclude]

    def watch(self, repeats: NDArray[np.bool_]) -> None:
        """Take in which events (E,) repeated an item of their user's history."""
        if len(repeats):
            self._seen = min(self._seen + len(repeats), _REPEAT_MEMORY)
            weight = min(1.0, len(repeats) / self._seen)
            self.repeat_share += weight * (np.count_nonzero(repeats) / len(repeats) - self.repeat_share)


class NamedItems:
    """Leaves out items known by their hash alone, which nobody can be shown.

    They come from restored histories and stay so until an event, the catalogue or a vocabulary names them.
    """

    def __init__(self, items: ItemIndex) -> None:
        self._items = items
        self._named = np.ones(1, np.bool_)  # by item number: its id was known when last looked; 0 ends a list

    def only(
        self, numbers: NDArray[np.int32], scores: NDArray[np.float32]
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Lists (L, K) and their scores without such items, the others moved up."""
        ids = self._items.ids
        known = len(self._named)
        if len(ids) > known:
            new = (item_id is not None for item_id in ids[known:])
            self._named = np.concatenate([self._named, np.fromiter(new, np.bool_, len(ids) - known)])
        unnamed = ~self._named[numbers]
        if not unnamed.any():
            return numbers, scores
        for number in np.unique(numbers[unnamed]).tolist():  # they may have been named since
            self._named[number] = ids[number] is not None
        unnamed = ~self._named[numbers]
        order = np.argsort(unnamed, axis=1, kind="stable")
        numbers, scores = np.where(unnamed, 0, numbers), np.where(unnamed, np.float32(-np.inf), scores)
        return np.take_along_axis(numbers, order, axis=1), np.take_along_axis(scores, order, axis=1)
