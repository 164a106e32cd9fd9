"""Session kNN: what users with similar recent items did next.

Letters: E events of the log, V item rows, S sessions, B queries, L latest items of a query.

The log is kept as linked lists, so that learning an event costs O(1): from each event to the one before it of the same
item, and to the one after it in the same session.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Final

import numba as nb
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.family.counting import RecentItems
from models.family.interface import Lesson
from models.network import UNKNOWN_ROW

_LATEST: Final = 20
_SESSION: Final = 50  # events after which a user's session is cut
_RECENT: Final = 300  # newest events of an item that are looked at
_NEIGHBOURS: Final = 100
_AHEAD: Final = 10  # events of a neighbour that vote
_FEWEST: Final = 1024
_jit = nb.njit(cache=True, nogil=True)


@_jit  # type: ignore[untyped-decorator]
def _append(
    log: NDArray[np.int32],  # (capacity, 4): item, session, earlier event of the item, next event of the session
    size: int,
    newest: NDArray[np.int32],  # (V,) newest event of each item, -1
    last: NDArray[np.int32],  # (S,) last event of each session, -1
    sessions: NDArray[np.int64],
    items: NDArray[np.int64],
) -> None:
    for number in range(len(items)):
        event, item, session = size + number, items[number], sessions[number]
        log[event, 0], log[event, 1], log[event, 2], log[event, 3] = item, session, newest[item], -1
        newest[item] = event
        if last[session] >= 0:
            log[last[session], 3] = event
        last[session] = event


@_jit  # type: ignore[untyped-decorator]
def _vote(
    log: NDArray[np.int32],
    newest: NDArray[np.int32],
    sessions: int,
    rows: NDArray[np.int64],  # (B, L) newest first
    out: NDArray[np.float32],  # (B, V)
) -> None:
    similarity = np.zeros(sessions, np.float32)
    shared = np.zeros(sessions, np.int32)  # the event where the neighbour met the query's newest shared item
    touched = np.zeros(rows.shape[1] * _RECENT, np.int32)
    for query in range(rows.shape[0]):
        count = 0
        for place in range(rows.shape[1]):
            item = rows[query, place]
            if item == 0:
                continue
            event = newest[item]
            looked = 0
            while event >= 0 and looked < _RECENT:
                session = log[event, 1]
                if similarity[session] == 0:
                    touched[count] = session
                    shared[session] = event
                    count += 1
                similarity[session] += np.float32(1.0) / np.float32(place + 1)
                event = log[event, 2]
                looked += 1
        found = similarity[touched[:count]]
        order = np.argsort(-found, kind="mergesort")
        for number in range(min(count, _NEIGHBOURS)):
            session = touched[order[number]]
            event, distance = log[shared[session], 3], 1
            while event >= 0 and distance <= _AHEAD:
                out[query, log[event, 0]] += similarity[session] / np.float32(distance)
                event = log[event, 3]
                distance += 1
        for number in range(count):
            similarity[touched[number]] = 0


class SessionKnn(RecentItems):
    """Vector multiplication session kNN, sequence-aware: neighbours vote for what followed the newest shared item.

    A session is similar by the items it shares with the query's L latest, the i-th latest weighing 1 / i. The 100 most
    similar vote with 1 / distance for the ten events after the newest shared one, so a user's own past never votes for
    itself.

    Args:
        items: V.

    References:
        Ludewig and Jannach, "Evaluation of session-based recommendation algorithms", UMUAI 2018 (VS-KNN); Garg et al.,
        "Sequence and time aware neighborhood for session-based recommendations", SIGIR 2019 (STAN).
    """

    name: ClassVar[str] = "session-knn"

    def __init__(self, items: int) -> None:
        super().__init__(items, _LATEST)
        self._clear()

    def _clear(self) -> None:
        self._log = np.zeros((_FEWEST, 4), np.int32)
        self._size = 0
        self._newest = np.full(self.items, -1, np.int32)
        self._last = np.full(_FEWEST, -1, np.int32)
        self._open: dict[int, tuple[int, int]] = {}  # user -> session, events in it
        self._sessions = 0

    def fit(self, lesson: Lesson) -> None:
        past = lesson.past
        self._clear()
        self.count(lesson)
        number = np.diff(past.starts)
        users = np.repeat(np.arange(past.users), number)
        place = np.arange(len(past)) - np.repeat(past.starts[:-1], number)
        pieces = -(-number // _SESSION)
        session = np.repeat(np.cumsum(pieces) - pieces, number) + place // _SESSION
        order = np.argsort(past.times_ms, kind="stable")
        self._extend(session[order], past.items[order].astype(np.int64), int(pieces.sum()))
        ends = past.starts[1:][number > 0] - 1
        self._open = {
            int(user): (int(at), int(count))
            for user, at, count in zip(users[ends], session[ends], place[ends] % _SESSION + 1, strict=True)
        }

    def learn(
        self,
        queries: Tensor,
        users: NDArray[np.int64],
        rows: NDArray[np.int64],
        gaps_seconds: NDArray[np.int64] | None = None,
    ) -> None:
        del queries, gaps_seconds
        sessions = np.zeros(len(users), np.int64)
        total = self._sessions
        for number, user in enumerate(users.tolist()):
            session, count = self._open.get(user, (-1, _SESSION))
            if count >= _SESSION:
                session, count, total = total, 0, total + 1
            self._open[user] = (session, count + 1)
            sessions[number] = session
        self._extend(sessions, rows, total)
        self.note(rows)

    def _extend(self, sessions: NDArray[np.int64], rows: NDArray[np.int64], total: int) -> None:
        if self._size + len(rows) > len(self._log):
            log = np.zeros((max(2 * len(self._log), self._size + len(rows)), 4), np.int32)
            log[: self._size] = self._log[: self._size]
            self._log = log
        if total > len(self._last):
            self._last = np.append(self._last, np.full(max(len(self._last), total - len(self._last)), -1, np.int32))
        _append(self._log, self._size, self._newest, self._last, sessions, rows)
        self._newest[UNKNOWN_ROW] = -1
        self._size, self._sessions = self._size + len(rows), total

    def item_scores(self, queries: Tensor) -> Tensor:
        out = np.zeros((len(queries), self.items), np.float32)
        _vote(self._log, self._newest, max(self._sessions, 1), queries.numpy().astype(np.int64), out)
        return self.backed_off(out)

    def tensors(self) -> dict[str, Tensor]:
        open_ = np.array([(user, *at) for user, at in self._open.items()], np.int64).reshape(-1, 3)
        arrays: dict[str, NDArray[Any]] = {
            "log": self._log[: self._size],
            "newest": self._newest,
            "last": self._last[: self._sessions],
            "open": open_,
        }
        return {**super().tensors(), **{name: torch.from_numpy(array.copy()) for name, array in arrays.items()}}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        super().restore(tensors)
        self._log, self._newest, self._last = (tensors[name].numpy().copy() for name in ("log", "newest", "last"))
        self._size, self._sessions = len(self._log), len(self._last)
        self._open = {int(user): (int(session), int(count)) for user, session, count in tensors["open"].numpy()}
