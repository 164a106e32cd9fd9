"""Sessions: what a user does without a long break, how long a break that is, and models that start anew with each.

Letters: N events, U users, B users of a batch, T steps, S state width, Q query width, G sessions.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.family.interface import EventBatch, Lesson, SequenceModel
from models.sequences import Histories
from state.errors import RecstreamError

USUAL_GAP: Final = 1800.0  # half an hour, what web analytics takes
_SHORTEST, _LONGEST = 60.0, 14 * 86_400.0
_FEWEST_GAPS: Final = 200  # fewer do not show two kinds of breaks
_GAPS: Final = 200_000  # so many show them well enough
_ROUNDS: Final = 100
_APART: Final = 2.0  # Ashman's D of two modes worth telling apart
_SMALLEST: Final = 0.02  # share of the gaps in the smaller of the two
_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


def parse_gap(text: str) -> float | None:
    """Seconds of a gap such as ``30m``, ``90s``, ``1.5h``, ``2d`` or ``1800``; None for ``auto``.

    Raises:
        RecstreamError: It is not such a gap.

    Example:
        >>> parse_gap("30m"), parse_gap("auto")
        (1800.0, None)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", text.strip().lower())
    if text.strip().lower() == "auto":
        return None
    if found is None or not float(found[1]):
        what = f"{text!r} is not a time between two sessions"
        raise RecstreamError(what, "it is a number above 0 and a unit, or auto", "Write --session-gap 30m or auto")
    return float(found[1]) * _UNITS[found[2]]


def usual_gap(source: Histories) -> tuple[float, str]:
    """The gap that best parts breaks inside sessions from those between them, in seconds, and how it was found.

    The logarithms of all gaps are taken for a mixture of two normal distributions; the gap is where a break is as
    likely to be of the one kind as of the other. Where the log does not show two kinds it is half an hour.

    References:
        Halfaker et al., "User session identification based on strong regularities in inter-activity time", WWW 2015;
        Ashman et al., "Detecting bimodality in astronomical datasets", AJ 1994 (D > 2: the modes are apart).

    Example:
        >>> rng = np.random.default_rng(0)
        >>> gaps = np.exp(np.where(rng.random(5000) < 0.8, rng.normal(3, 1, 5000), rng.normal(12, 1, 5000)))
        >>> source = Histories(*np.ones((2, 5000), int), gaps.astype(int), gaps.astype(int), np.array([0, 5000]))
        >>> 600 < usual_gap(source)[0] < 6000
        True
    """
    gaps = source.gaps_seconds[source.gaps_seconds > 0]
    if len(gaps) > _GAPS:
        gaps = np.random.default_rng(0).choice(gaps, _GAPS, replace=False)
    if len(gaps) < _FEWEST_GAPS or gaps.min() == gaps.max():
        return USUAL_GAP, f"half an hour: {len(gaps)} gaps do not show two kinds of breaks"
    logs = np.log(gaps.astype(np.float64))
    mean, deviation, share = _two_normals(logs)
    apart = abs(mean[1] - mean[0]) * np.sqrt(2) / np.hypot(*deviation)
    if apart < _APART or share.min() < _SMALLEST:
        return USUAL_GAP, "half an hour: the log does not show two kinds of breaks"
    between = np.linspace(mean[0], mean[1], 2001)
    odds = _log_density(between, mean, deviation, share)
    at = float(np.exp(between[int(np.argmin(np.abs(odds[0] - odds[1])))]))
    found = float(np.clip(at, _SHORTEST, _LONGEST))
    short, long = np.exp(mean)
    return found, f"breaks inside sessions are about {_words(short)}, between them {_words(long)}"


def _two_normals(
    values: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Means, deviations and shares (2,) of two normal distributions, the lower first (expectation maximisation)."""
    mean = np.quantile(values, [0.2, 0.9])
    deviation, share = np.full(2, max(values.std() / 2, 1e-3)), np.full(2, 0.5)
    for _ in range(_ROUNDS):
        odds = _log_density(values, mean, deviation, share)
        of = np.exp(odds - np.logaddexp(odds[0], odds[1]))  # (2, N)
        size = np.maximum(of.sum(1), 1e-9)
        before, mean = mean, of @ values / size
        deviation = np.maximum(np.sqrt((of * (values[None] - mean[:, None]) ** 2).sum(1) / size), 1e-2)
        share = size / len(values)
        if np.abs(mean - before).max() < 1e-4:
            break
    order = np.argsort(mean)
    return mean[order], deviation[order], share[order]


def _log_density(
    values: NDArray[np.float64],
    mean: NDArray[np.float64],
    deviation: NDArray[np.float64],
    share: NDArray[np.float64],
) -> NDArray[np.float64]:
    apart = (values[None] - mean[:, None]) / deviation[:, None]
    density: NDArray[np.float64] = np.log(np.maximum(share / deviation, 1e-300))[:, None] - apart**2 / 2
    return density


def _words(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def by_session(source: Histories, gap_seconds: float) -> Histories:
    """The same events with every session as a user of its own.

    A session opens with a user's first event and after a gap of at least ``gap_seconds``; a gap not known opens none.
    """
    opens = source.gaps_seconds >= gap_seconds
    opens[source.starts[:-1][np.diff(source.starts) > 0]] = True
    return replace(source, starts=np.append(np.flatnonzero(opens), len(source)))


class InSessions(SequenceModel):
    """A model for which every session is a user of its own: its state starts anew after a long break.

    The new session only begins with its first event: before it, nobody knows that the break will be long.

    Args:
        inner: The model.
        gap_seconds: Length of the break.
    """

    name: ClassVar[str] = "in-sessions"

    def __init__(self, inner: SequenceModel, gap_seconds: float) -> None:
        self.inner, self.gap_seconds = inner, gap_seconds
        self.items, self.context = inner.items, inner.context
        self.pointwise, self.online = inner.pointwise, inner.online
        self._session: dict[int, int] = {}  # each user's latest
        self._sessions = 0

    @property
    def state_size(self) -> int:
        return self.inner.state_size

    def fit(self, lesson: Lesson) -> None:
        past = by_session(lesson.past, self.gap_seconds)
        self.inner.fit(replace(lesson, past=past, source=by_session(lesson.source, self.gap_seconds)))
        active = np.flatnonzero(np.diff(lesson.past.starts) > 0)
        latest = np.searchsorted(past.starts, lesson.past.starts[1:][active]) - 1
        self._session = dict(zip(active.tolist(), latest.tolist(), strict=True))
        self._sessions = past.users

    def initial_state(self, users: int) -> Tensor:
        return self.inner.initial_state(users)

    def step(self, state: Tensor, events: EventBatch) -> Tensor:
        opens = events.gaps_seconds >= self.gap_seconds
        return self.inner.step(torch.where(opens[:, None], self.initial_state(len(state)), state), events)

    def query(self, state: Tensor) -> Tensor:
        return self.inner.query(state)

    def greeting(self, clock: Tensor) -> Tensor:
        return self.inner.greeting(clock)

    def sequence(self, events: EventBatch) -> Tensor:
        window, begin, steps = self._cut(events)
        place = begin[:, None] + torch.arange(int(steps.max()))[None]  # (G, T')
        real = place < (begin + steps)[:, None]
        found = self.inner.sequence(_taken(events, window, place, real))  # (G, T', Q)
        out = found.new_zeros(*events.items.shape, found.shape[2])
        out[window[:, None].expand_as(place)[real], place[real]] = found[real]
        return out

    def last(self, events: EventBatch, steps: Tensor) -> Tensor:
        place = torch.arange(events.items.shape[1])[None]
        opens = (events.gaps_seconds >= self.gap_seconds) & (place < steps[:, None])
        begin = (opens * place).amax(1)  # (B,) where the session of the last event opens, 0 without any break
        number = steps - begin
        at = begin[:, None] + torch.arange(int(number.max()))[None]
        real = at < steps[:, None]
        return self.inner.last(_taken(events, torch.arange(len(steps)), at, real), number)

    def item_scores(self, queries: Tensor) -> Tensor:
        return self.inner.item_scores(queries)

    def learn(
        self,
        queries: Tensor,
        users: NDArray[np.int64],
        rows: NDArray[np.int64],
        gaps_seconds: NDArray[np.int64] | None = None,
    ) -> None:
        sessions = np.zeros(len(users), np.int64)
        opens = np.zeros(len(users), np.bool_) if gaps_seconds is None else gaps_seconds >= self.gap_seconds
        for number, user in enumerate(users.tolist()):
            if opens[number] or user not in self._session:
                opens[number] = True
                self._session[user] = self._sessions
                self._sessions += 1
            sessions[number] = self._session[user]
        fresh = self.query(self.initial_state(1))
        asked = torch.where(torch.from_numpy(opens)[:, None], fresh, queries)
        self.inner.learn(asked, sessions, rows, gaps_seconds)

    def item_vectors(self, rows: Tensor) -> Tensor:
        return self.inner.item_vectors(rows)

    @property
    def task_heads(self) -> Any:
        return self.inner.task_heads

    def settings(self) -> dict[str, Any]:
        return {"inner": self.inner.name, "settings": self.inner.settings(), "gap_seconds": self.gap_seconds}

    def tensors(self) -> dict[str, Tensor]:
        latest = np.array(list(self._session.items()), np.int64).reshape(-1, 2)
        own = {"sessions/latest": torch.from_numpy(latest), "sessions/number": torch.tensor(self._sessions)}
        return {**own, **{f"inner/{name}": tensor for name, tensor in self.inner.tensors().items()}}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self._session = {int(user): int(session) for user, session in tensors["sessions/latest"].tolist()}
        self._sessions = int(tensors["sessions/number"])
        mine = {name: tensor for name, tensor in tensors.items() if name.startswith("inner/")}
        self.inner.restore({name.removeprefix("inner/"): tensor for name, tensor in mine.items()})

    def _cut(self, events: EventBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Sessions of windows (B, T): the window (G,), first event and number of events of each."""
        opens = events.gaps_seconds >= self.gap_seconds
        opens[:, 0] = True
        window, begin = opens.nonzero(as_tuple=True)
        length = events.items.shape[1]
        after = torch.cat((begin[1:], begin.new_tensor([length])))
        final = torch.cat((window[1:] != window[:-1], window.new_ones(1, dtype=torch.bool)))
        return window, begin, torch.where(final, length, after) - begin


def _taken(events: EventBatch, window: Tensor, place: Tensor, real: Tensor) -> EventBatch:
    """Events at places (G, T) of windows (G,), zero where they are not real."""
    at = place.clamp(max=events.items.shape[1] - 1)
    return EventBatch(*(getattr(events, name)[window[:, None], at] * real for name in EventBatch.__slots__))
