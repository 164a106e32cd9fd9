"""The replay buffer: the events a model is fine-tuned on, bounded, on disk, no event twice.

Everything is in memory as columns (17 bytes an event and the names) and in one file of frames: each `commit` appends
what came since the last one together with the next offset of every topic-partition, so data and position cannot part,
and a redelivered event is known by its offset. When the buffer is full it keeps

    the recent window      the newest events, whoever's they are
    their users' past      up to `context` earlier events of the users in the window, the nearest first: a training
                           window in the middle of a history starts from the state those events lead to
    a reservoir            the older events of a sample of users, whole histories: bottom-k of a seeded hash of the user
                           id, which is a uniform sample of all users ever seen and never takes one back it let go

and rewrites the file. Fullness is counted in accepted events, so what is kept depends on the seed and the log alone,
not on how the log was cut into batches.

References:
    Vitter, "Random sampling with a reservoir", ACM TOMS 1985; Cohen and Kaplan, "Summarizing data using bottom-k
    sketches", PODC 2007.
"""

import fcntl
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from state.errors import StateError
from state.replay_held import HeldEvents
from state.replay_log import FrameLog, encode_frame
from state.replay_retention import Shares, kept
from state.replay_sample import Sample, draw

RECENT_SHARE: Final = 0.4  # of the capacity; with the next two this leaves a fifth free after a compaction
CONTEXT_SHARE: Final = 0.2
RESERVOIR_SHARE: Final = 0.2
_EVERYBODY: Final = 2**64 - 1
_FILE: Final = "events.replay"


@dataclass(frozen=True, slots=True)
class ReplaySettings:
    """Bounds of a replay buffer.

    Attributes:
        capacity: Most events held; 17 bytes each in memory and on disk, plus names.
        context: Most earlier events kept of a user in the recent window.
        most_per_user: Most events the reservoir keeps of one user, the newest: one busy robot must not fill it.
        max_items: Most items whose count and newest time are remembered; those idle longest are forgotten first.
        seed: Chooses the reservoir's users.
        user_key: Fingerprint of the key its users are named under, 0 without; a buffer of another key is refused.
    """

    capacity: int = 1_000_000
    context: int = 200
    most_per_user: int = 2_000
    max_items: int = 1_000_000
    seed: int = 0
    user_key: int = 0

    def __post_init__(self) -> None:
        for name, least in (("capacity", 100), ("context", 0), ("most_per_user", 1), ("max_items", 1)):
            if getattr(self, name) < least:
                what = f"A replay buffer with {name}={getattr(self, name)} was asked for"
                raise StateError(what, f"{name} must be at least {least}", f"Give {least} or more")


class ReplayBuffer:
    """Takes events in, keeps them over restarts, and gives samples to train on.

    Not safe for several threads; a `Sample` is a copy and may be used anywhere. One process at a time: a lock says so.

    Args:
        directory: Where the file lies; created if need be.
        settings: Its bounds. A buffer may be opened again with others; a smaller capacity takes effect at once.

    Attributes:
        seen: Events taken in since the buffer began, also those no longer held.
        log_id: Which buffer that is: another one, begun when this was lost, counts from 0 again.
        truncated_bytes: What a crash had left behind the last whole frame, cut off at open.

    Raises:
        StateError: Another process has it open, the disk refuses, or the file is of another kind.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder, ReplayBuffer(Path(folder)) as buffer:
        ...     first = buffer.append("clicks", 0, ["u", "v"], ["a", "b"], np.zeros(2, np.uint8), [5, 6], [0, 1])
        ...     again = buffer.append("clicks", 0, ["v", "v"], ["b", "a"], np.zeros(2, np.uint8), [6, 7], [1, 2])
        ...     buffer.commit()
        >>> first, again, len(buffer), buffer.offset("clicks", 0)
        (2, 1, 3, 3)
    """

    def __init__(self, directory: Path, settings: ReplaySettings | None = None) -> None:
        self.settings = settings or ReplaySettings()
        self.seen, self.log_id = 0, ""
        self._threshold = _EVERYBODY  # hashes above it are not in the reservoir
        self._offsets: dict[str, int] = {}
        self._held = HeldEvents(self.settings.capacity, self.settings.seed)
        self._written = self._written_users = self._written_items = 0
        self._unwritten_offsets: dict[str, int] = {}
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as exc:
            what = f"cannot use {directory}"
            raise StateError(what, str(exc), "choose a writable directory") from exc
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            os.close(self._lock)
            what = f"the replay buffer {directory} is in use"
            raise StateError(what, "another trainer has it open", "stop that one, or use another directory") from exc
        try:
            self._log = FrameLog(directory / _FILE)
            try:
                for head, columns in self._log.frames():
                    self._replay(head, columns)
            except StateError:
                self._log.close()
                raise
        except StateError:
            os.close(self._lock)
            raise
        self._mark_written()
        if not self.log_id:  # new, or of an earlier release
            self.log_id, self._named = secrets.token_hex(8), False
        self.truncated_bytes = self._log.truncated_bytes
        if len(self._held) >= self.settings.capacity:
            self._compact()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._held)

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return self._log.nbytes

    @property
    def items(self) -> int:
        """How many items it knows."""
        return len(self._held.items)

    @property
    def offsets(self) -> Mapping[str, int]:
        """Next offset of each ``topic:partition``, as of the newest event taken in."""
        return dict(self._offsets)

    def offset(self, topic: str, partition: int) -> int | None:
        """Where to go on reading a partition, None when nothing of it was read."""
        return self._offsets.get(f"{topic}:{partition}")

    def forget_offset(self, topic: str, partition: int) -> None:
        """Read a partition from its beginning again: its topic was deleted and made anew."""
        self._offsets[f"{topic}:{partition}"] = self._unwritten_offsets[f"{topic}:{partition}"] = 0

    def append(
        self,
        topic: str,
        partition: int,
        users: Sequence[str],
        items: Sequence[str],
        kinds: NDArray[np.uint8],
        times_ms: Sequence[int] | NDArray[np.int64],
        offsets: Sequence[int] | NDArray[np.int64],
        next_offset: int | None = None,
    ) -> int:
        """Take in events of one topic-partition, in offset order; those taken in before are left out.

        They are safe once `commit` has returned.

        Args:
            topic: Topic they came from.
            partition: Partition they came from.
            users: User ids (E).
            items: Item ids (E).
            kinds: (E,).
            times_ms: (E,) event times.
            offsets: (E,), rising.
            next_offset: Where to go on reading, when that is behind the last event (bad events were left out).

        Returns:
            How many events were new.
        """
        key = f"{topic}:{partition}"
        places, times = np.asarray(offsets, np.int64), np.asarray(times_ms, np.int64)
        first = int(np.searchsorted(places, self._offsets.get(key, 0)))
        at = first
        while at < len(places):
            stop = min(len(places), at + self.settings.capacity - len(self._held))
            held, new = self._held, slice(at, stop)
            held.put(held.users.numbers(users[new]), held.items.numbers(items[new]), kinds[new], times[new])
            self.seen += stop - at
            self._advance(key, int(places[stop - 1]) + 1)
            at = stop
            if len(self._held) >= self.settings.capacity:
                self._compact()
        if next_offset is not None:
            self._advance(key, next_offset)
        return len(places) - first

    def commit(self) -> None:
        """Make everything taken in so far survive a crash; only then may a consumer group's offsets move.

        Raises:
            StateError: The disk refuses.
        """
        if self._written == len(self._held) and not self._unwritten_offsets and self._named:
            return
        head = {
            "log": self.log_id,
            "user_key": self.settings.user_key,
            "offsets": self._unwritten_offsets,
            "users": self._held.users.names[self._written_users :],
            "items": self._held.items.names[self._written_items :],
        }
        self._log.append(encode_frame(head, self._held.columns(self._written)))
        self._mark_written()

    def forget(self, users: Iterable[str]) -> dict[str, int]:
        """Remove users' events, from the file too, together with whatever was not committed yet.

        Counts of items lose those events as well. `seen` does not: it orders events, and a few older ones then count as
        part of what came after a given moment.

        Returns:
            The known users, with how many events of them were held.

        Raises:
            StateError: The disk refuses; the file is as it was.
        """
        known = self._held.users.find(users)
        if not known:
            return {}
        columns = self._held.columns()
        counts = np.bincount(columns["users"], minlength=len(self._held.users))
        gone = np.zeros(len(self._held.users), np.bool_)
        gone[list(known.values())] = True
        keep = ~gone[columns["users"]]
        np.subtract.at(self._held.item_counts, columns["items"][~keep], 1)
        self._keep(keep)
        return {user: int(counts[number]) for user, number in known.items()}

    def pass_over(self, topic: str, partition: int, next_offset: int) -> None:
        """Everything of a partition below `next_offset` is done with; safe once `commit` has returned."""
        self._advance(f"{topic}:{partition}", next_offset)

    def sample(self, recent: int, reservoir: int, seed: int, since: int = 0) -> Sample:
        """Events to train on: the newest `recent` ones and up to `reservoir` older ones drawn at random.

        With them come all earlier events of the same users, not to learn from, but to start from the true state.

        Args:
            recent: Size of the recent window.
            reservoir: Most older events to learn from.
            seed: Randomness of the draw; the same seed and log give the same sample.
            since: Learn nothing of the first so many events ever seen.
        """
        held, offsets = self._held, dict(self._offsets)
        return draw(held, self._threshold, recent, reservoir, seed, since, self.seen, offsets, self.log_id)

    def close(self) -> None:
        """Release the file; what was not committed is not kept."""
        self._log.close()
        os.close(self._lock)

    def _advance(self, key: str, following: int) -> None:
        if following > self._offsets.get(key, -1):
            self._offsets[key] = self._unwritten_offsets[key] = following

    def _replay(self, head: Mapping[str, Any], columns: Mapping[str, NDArray[Any]]) -> None:
        """Apply a frame that was read from the file."""
        if head.get("user_key", 0) != self.settings.user_key:
            raise StateError(
                what=f"the replay buffer {self._log.path} names users under another pseudonym key",
                why="the key was set, changed or removed since it was written",
                fix=f"give the key it was written with, or delete {self._log.path.parent}: the trainer begins anew "
                "with the events that the topics still hold",
            )
        held = self._held
        held.users.extend(head["users"])
        held.items.extend(head["items"])
        held.put(columns["users"], columns["items"], columns["kinds"], columns["times_ms"])
        self.seen += len(columns["users"])
        self._offsets |= head["offsets"]
        self.log_id = head.get("log", self.log_id)
        if "seen" in head:  # the frame a compaction wrote: counts of events that are gone come with it
            self.seen = head["seen"]
            same_seed = head["seed"] == self.settings.seed
            self._threshold = head["threshold"] if same_seed else _EVERYBODY
            held.item_counts[:], held.item_last_ms[:] = columns["item_counts"], columns["item_last_ms"]

    def _mark_written(self) -> None:
        held = self._held
        self._written, self._written_users, self._written_items = len(held), len(held.users), len(held.items)
        self._unwritten_offsets, self._named = {}, True

    def _compact(self) -> None:
        settings, held = self.settings, self._held
        shares = Shares(*(int(share * settings.capacity) for share in (RECENT_SHARE, CONTEXT_SHARE, RESERVOIR_SHARE)))
        keep, self._threshold = kept(
            held.columns()["users"], held.hashes(), self._threshold, shares, settings.context, settings.most_per_user
        )
        self._keep(keep)

    def _keep(self, keep: NDArray[np.bool_]) -> None:
        self._held.keep(keep, self.settings.max_items)
        self._rewrite()

    def _rewrite(self) -> None:
        held = self._held
        columns = held.columns() | {"item_counts": held.item_counts, "item_last_ms": held.item_last_ms}
        head = {
            "log": self.log_id,
            "user_key": self.settings.user_key,
            "offsets": self._offsets,
            "users": held.users.names,
            "items": held.items.names,
            "seen": self.seen,
            "seed": self.settings.seed,
            "threshold": self._threshold,
        }
        self._log.replace(encode_frame(head, columns))
        self._mark_written()
