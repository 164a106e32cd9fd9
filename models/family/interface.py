"""The interface of every model of the family: a bounded state per user, one step per event, scores of every item.

Letters: B users or windows, T steps, S state width, Q query width, V item rows including row 0 (unknown), N events.

A model is used in two ways that must agree. In the stream each user has a state of S numbers; `step` advances the
states of B different users by one event each, `query` turns states into query vectors, `item_scores` ranks every item.
In training and evaluation `sequence` gives the query after every event of whole windows at once:

    sequence(events)[:, t] == query(step(... step(initial_state(B), events[:, 0]) ..., events[:, t]))
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from models.family.catalogue import Catalogue
from models.sequences import Histories
from state.errors import RecstreamError

if TYPE_CHECKING:
    from models.family.heads import TaskHeads

FORMAT: Final = 1
_HOUR_MS: Final = 3_600_000
_EPOCH_WEEKDAY: Final = 72  # the epoch was a Thursday: hours since Monday 00:00 UTC
WEEK_HOURS: Final = 168


@dataclass(frozen=True, slots=True)
class EventBatch:
    """Events side by side: (B,) for a step, (B, T) for windows, zero padded on the right.

    Attributes:
        items: Item rows, int64; 0 for items outside the vocabulary.
        kinds: 0 click, 1 view, 2 purchase, 3 not known, int64.
        gaps_seconds: Seconds since the user's previous event, float32; 0 for the first, negative where not known.
        clock: Hour of the week, 0 (Monday 00:00 UTC) to 167, int64.
    """

    items: Tensor
    kinds: Tensor
    gaps_seconds: Tensor
    clock: Tensor

    def at(self, step: int) -> "EventBatch":
        """The events (B,) of one step of windows."""
        return EventBatch(*(getattr(self, name)[:, step] for name in self.__slots__))

    def rows(self, where: Tensor) -> "EventBatch":
        """Some of the windows."""
        return EventBatch(*(getattr(self, name)[where] for name in self.__slots__))

    def to(self, device: str) -> "EventBatch":
        """The same events on a device."""
        return EventBatch(*(getattr(self, name).to(device) for name in self.__slots__))


def clock_of(times_ms: NDArray[np.int64]) -> NDArray[np.int64]:
    """Hours of the week, 0 (Monday 00:00 UTC) to 167, of moments."""
    return (times_ms // _HOUR_MS + _EPOCH_WEEKDAY) % WEEK_HOURS


def gather(source: Histories, windows: NDArray[np.int64]) -> EventBatch:
    """The events of windows (W, 2), first event and number of steps, as a batch (W, T) padded to the longest."""
    begin, steps = windows[:, :1], windows[:, 1:]
    column = np.arange(max(int(steps.max(initial=0)), 1))[None, :]  # (1, T)
    real = column < steps  # (W, T)
    where = np.where(real, begin + column, np.minimum(begin, max(len(source) - 1, 0)))
    clock = clock_of(source.times_ms[where])
    return EventBatch(
        torch.from_numpy((source.items[where] * real).astype(np.int64)),
        torch.from_numpy((source.kinds[where] * real).astype(np.int64)),
        torch.from_numpy((source.gaps_seconds[where] * real).astype(np.float32)),
        torch.from_numpy((clock * real).astype(np.int64)),
    )


@dataclass(frozen=True, slots=True)
class Tasks:
    """What a neural model learns to foretell beside the next item (`models.family.heads`).

    Attributes:
        heads: Among ``type`` (of the next event), ``click``, ``view``, ``purchase`` (the item of the next event of that
            type) and ``rating`` (of the next event, given its item).
        horizon: The item of the next event but one, but two, ... up to so many events ahead; 1 for the next alone.
    """

    heads: tuple[str, ...] = ()
    horizon: int = 1

    def __bool__(self) -> bool:
        return bool(self.heads) or self.horizon > 1


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a model is fitted to.

    Attributes:
        past: The events to learn from.
        source: ``past`` with the held-out events behind it, users with the same numbers.
        judged: (N,) which events of ``source`` are held out, to make choices by (early stopping, settings).
        catalogue: What is known of the items, V rows.
        seed: Randomness of the fit.
        effort: Factor on the training budget; 1 is a few minutes on one core for the largest data.
        timed: Whether times (and so gaps and hours) mean anything.
        tasks: What neural models learn beside the next item; others do not.
        ratings: Of the events of ``past`` (P,), NaN where there is none; None without ratings.
        session_gap: Seconds without an event after which neural models are told that a session opens; 0 for never.
        augment: How neural models' training histories are varied (`models.family.augmentation`).
        device: Where neural models are trained; they are chosen by their ranks and handed back on the CPU.
        report: Called with the share of the work done and a note; True stops and keeps the best so far.
    """

    past: Histories
    source: Histories
    judged: NDArray[np.bool_]
    catalogue: Catalogue
    seed: int = 0
    effort: float = 1.0
    timed: bool = True
    tasks: Tasks = Tasks()
    ratings: NDArray[np.float32] | None = None
    session_gap: float = 0.0
    augment: tuple[str, ...] = ()
    device: str = "cpu"
    report: Callable[[float, str], bool | None] = field(default=lambda share, note: None)


class SequenceModel(ABC):
    """A sequential recommender with a bounded state per user.

    Attributes:
        name: Name on the command line.
        items: V, item rows with row 0.
        context: Number of a user's latest events that can matter to `query`.
        pointwise: `sequence` costs a whole pass per step, so `last` is used where only the end of a window is wanted.
        online: `learn` works event by event, between fits.
    """

    name: ClassVar[str]
    pointwise: bool = False
    online: bool = False
    context: int
    items: int

    @property
    @abstractmethod
    def state_size(self) -> int:
        """S: float32 numbers of state per user, whatever the length of the history."""

    @abstractmethod
    def fit(self, lesson: Lesson) -> None:
        """Learn from ``lesson.past``, making choices by the judged events."""

    @abstractmethod
    def step(self, state: Tensor, events: EventBatch) -> Tensor:
        """States (B, S) after one event (B,) of each user; the given states are left as they are."""

    @abstractmethod
    def sequence(self, events: EventBatch) -> Tensor:
        """Queries (B, T, Q) after every event of windows (B, T) that start from the initial state."""

    @abstractmethod
    def item_scores(self, queries: Tensor) -> Tensor:
        """Scores (B, V) of every item for queries (B, Q), a fresh tensor; row 0 is minus infinity."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Keyword arguments that build this model again, as plain values."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Everything learnt."""

    @abstractmethod
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` gave."""

    def initial_state(self, users: int) -> Tensor:
        """The state before the first event: zeros (B, S)."""
        return torch.zeros(users, self.state_size)

    def query(self, state: Tensor) -> Tensor:
        """Query vectors (B, Q) of states (B, S)."""
        return state

    def greeting(self, clock: Tensor) -> Tensor:
        """Queries (B, Q) for users without any event, asked at these hours of the week (B,)."""
        return self.query(self.initial_state(1)).repeat(len(clock), 1)

    def scores(self, state: Tensor) -> Tensor:
        """Scores (B, V) of every item for users in these states."""
        return self.item_scores(self.query(state))

    def last(self, events: EventBatch, steps: Tensor) -> Tensor:
        """Queries (B, Q) after the first ``steps`` (B,) >= 1 events of windows (B, T)."""
        return self.sequence(events)[torch.arange(len(steps)), steps - 1]

    def learn(
        self,
        queries: Tensor,
        users: NDArray[np.int64],
        rows: NDArray[np.int64],
        gaps_seconds: NDArray[np.int64] | None = None,
    ) -> None:
        """Learn that users' next items were ``rows`` (E,) when their queries (E, Q) were these, in order of time.

        Args:
            queries: (E, Q).
            users: (E,).
            rows: (E,).
            gaps_seconds: (E,) since each user's event before; None where no time is known.

        Raises:
            RecstreamError: The model only learns by `fit`.
        """
        del queries, users, rows, gaps_seconds
        what = f"The model {self.name} does not learn event by event"
        raise RecstreamError(what, "its parameters come from a fit", "Fit it again on the longer log")

    def item_vectors(self, rows: Tensor) -> Tensor:
        """Vectors (N, D) of item rows (N,), for the heads of neural models.

        Raises:
            RecstreamError: The model has no vectors.
        """
        del rows
        what = f"The model {self.name} has no item vectors"
        raise RecstreamError(
            what, "only the neural models have", "Use rnn, lstm, gru, time-lstm, transformer or fusion"
        )

    @property
    def task_heads(self) -> "TaskHeads | None":
        """What foretells more than the next item, where the fit was asked for it (`Lesson.tasks`)."""
        return None

    @property
    def parameters(self) -> int:
        """Number of learnt values."""
        return sum(tensor.numel() for tensor in self.tensors().values())

    def save(self, path: Path) -> None:
        """Write the model as one safetensors file; no pickle, nothing executable."""
        header = {"format": str(FORMAT), "model": self.name, "settings": json.dumps(self.settings())}
        save_file({name: tensor.contiguous() for name, tensor in self.tensors().items()}, path, metadata=header)


def read_saved(path: Path) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """A saved model's name, settings and tensors.

    Raises:
        RecstreamError: There is no such file, or it is not a saved model.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != str(FORMAT):
                what = f"{path} is not a model this release can read"
                raise RecstreamError(what, f"its format is {header.get('format')!r}, not {FORMAT}", "Save it again")
            return header["model"], json.loads(header["settings"]), {key: file.get_tensor(key) for key in file.keys()}
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        what = f"{path} cannot be read as a saved model"
        raise RecstreamError(what, str(error), "Check the path, or save the model again") from error
