"""What a training pass gets out of the replay buffer: events, and which of them to learn from.

Letters: N events of the sample, U users, I items the buffer knows.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from state.errors import StateError
from state.replay_held import HeldEvents
from state.replay_log import FrameLog, encode_frame, sync_directory

BLOCK: Final = 64  # neighbouring events of one user that the reservoir draws together: about a training window


@dataclass(frozen=True, slots=True)
class Sample:
    """Events in order of arrival, whole histories as far as the buffer holds them.

    Attributes:
        users: User numbers (N,) int32, dense from 0, in order of the buffer's first sight.
        items: Item numbers (N,) int32 into `item_ids`.
        kinds: (N,) uint8.
        times_ms: (N,) int64.
        learn: (N,) which events to learn from; the others only build the state before them.
        recent: (N,) which events are of the recent window; all of them are to learn from too.
        user_hashes: Seeded hash of each user's id (U,) uint64, the same from sample to sample.
        item_ids: Every item the buffer knows (I), in the sample or not.
        item_counts: (I,) int64, events of each item since the buffer began.
        item_last_ms: (I,) int64, time of each item's newest event.
        offsets: Next offset of each ``topic:partition``: what the buffer had seen when the sample was taken.
        seen: Events the buffer had taken in since it began.
        seed: What the reservoir part was drawn with.
        log_id: Which buffer `seen` counts the events of; empty for none.
    """

    users: NDArray[np.int32]
    items: NDArray[np.int32]
    kinds: NDArray[np.uint8]
    times_ms: NDArray[np.int64]
    learn: NDArray[np.bool_]
    recent: NDArray[np.bool_]
    user_hashes: NDArray[np.uint64]
    item_ids: list[str]
    item_counts: NDArray[np.int64]
    item_last_ms: NDArray[np.int64]
    offsets: Mapping[str, int]
    seen: int
    seed: int
    log_id: str = ""

    def __len__(self) -> int:
        return len(self.users)

    def save(self, path: Path) -> None:
        """Write the sample atomically, checksummed; a crash leaves the whole file or none.

        Raises:
            StateError: The disk refuses.
        """
        names = ("seen", "seed", "log_id")
        head = {"items": self.item_ids, "offsets": dict(self.offsets), **{name: getattr(self, name) for name in names}}
        temporary = path.with_suffix(".new")
        temporary.unlink(missing_ok=True)
        log = FrameLog(temporary)
        try:
            log.append(encode_frame(head, {name: getattr(self, name) for name in _COLUMNS}))
        finally:
            log.close()
        os.replace(temporary, path)
        sync_directory(path.parent)

    @classmethod
    def load(cls, path: Path) -> "Sample":
        """Read a sample back.

        Raises:
            StateError: The file is missing or damaged.
        """
        fix = "delete the file; the next pass takes a new sample"
        what = f"the sample {path} cannot be used"
        if not path.exists():
            raise StateError(what, "it does not exist", fix)
        log = FrameLog(path)
        try:
            frames = list(log.frames())
        finally:
            log.close()
        if len(frames) != 1:
            raise StateError(what, "it is cut short or its checksum differs", fix)
        head, columns = frames[0]
        columns |= {name: columns[name].astype(np.bool_) for name in ("learn", "recent")}
        return cls(
            **{name: columns[name] for name in _COLUMNS},
            item_ids=head["items"],
            offsets=head["offsets"],
            seen=head["seen"],
            seed=head["seed"],
            log_id=head.get("log_id", ""),  # of an earlier release
        )


_COLUMNS: Final = (
    "users", "items", "kinds", "times_ms", "learn", "recent", "user_hashes", "item_counts", "item_last_ms"
)  # fmt: skip


def draw(
    held: HeldEvents,
    threshold: int,
    recent: int,
    reservoir: int,
    seed: int,
    since: int,
    seen: int,
    offsets: Mapping[str, int],
    log_id: str,
) -> Sample:
    """Choose events to learn from, and all earlier events of the same users.

    Args:
        held: What there is to choose from.
        threshold: Users with a larger hash are not in the reservoir.
        recent: Size of the recent window.
        reservoir: Most older events to learn from.
        seed: Randomness of the draw.
        since: Learn nothing of the first so many events ever seen.
        seen: Events ever seen.
        offsets: Next offset of each ``topic:partition``.
        log_id: Which buffer counted them.
    """
    n, columns = len(held), held.columns()
    users = columns["users"]
    # The newest events are all here, so those taken in after `since` are the last ones, or as many as there are.
    allowed = np.arange(n) >= n - (seen - since)
    is_recent = (np.arange(n) >= n - recent) & allowed
    hashes = held.hashes()
    eligible = ~is_recent & allowed & (hashes[users] <= np.uint64(threshold))
    learn = is_recent | reservoir_blocks(users, eligible, reservoir, np.random.default_rng((seed, seen)))
    involved = np.zeros(len(held.users), np.bool_)
    involved[users[learn]] = True
    last = np.full(len(held.users), -1)
    where = np.flatnonzero(learn)
    last[users[where]] = where  # later entries win: each user's last event to learn from
    keep = involved[users] & (np.arange(n) <= last[users])
    numbers = np.cumsum(involved) - 1
    return Sample(
        users=numbers[users[keep]].astype(np.int32),
        items=columns["items"][keep],
        kinds=columns["kinds"][keep],
        times_ms=columns["times_ms"][keep],
        learn=learn[keep],
        recent=is_recent[keep],
        user_hashes=hashes[involved],
        item_ids=list(held.items.names),
        item_counts=held.item_counts.copy(),
        item_last_ms=held.item_last_ms.copy(),
        offsets=offsets,
        seen=seen,
        seed=seed,
        log_id=log_id,
    )


def reservoir_blocks(
    users: NDArray[np.int32], eligible: NDArray[np.bool_], budget: int, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Draw about `budget` eligible events, `BLOCK` neighbouring ones of a user at a time, each block equally likely.

    Args:
        users: User numbers (N,) in order of arrival.
        eligible: (N,) which events may be drawn.
        budget: Most events to draw.
        rng: Randomness; the draw depends on the events and on it alone.
    """
    drawn = np.zeros(len(users), np.bool_)
    where = np.flatnonzero(eligible)
    if budget <= 0 or not len(where):
        return drawn
    if len(where) <= budget:
        drawn[where] = True
        return drawn
    by_user = where[np.argsort(users[where], kind="stable")]
    owner = users[by_user]
    opens = np.flatnonzero(np.concatenate(([True], owner[1:] != owner[:-1])))
    place = np.arange(len(owner)) - np.repeat(opens, np.diff(np.append(opens, len(owner))))  # k-th event of its user
    block = np.cumsum(place % BLOCK == 0) - 1
    sizes = np.bincount(block)
    order = rng.permutation(len(sizes))
    chosen = order[np.cumsum(sizes[order]) <= budget]
    taken = np.zeros(len(sizes), np.bool_)
    taken[chosen] = True
    drawn[by_user[taken[block]]] = True
    return drawn
