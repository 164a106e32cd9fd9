"""Look up one user on this worker: history and the list shown last, by title. Reading changes nothing."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

from state.events import KINDS
from state.profile import Profile, read_profile
from streams.pipeline import Pipeline
from streams.replay import partition_of
from streams.titles import Titles

_MOST_AT_ONCE: Final = 4  # each makes the next round wait for about 0.2 ms
_PATIENCE_SECONDS: Final = 5.0  # a lookup waits for its turn; a restore may hold it for longer


class Busy(Exception):
    """The worker restores state, or too many lookups wait; nothing was read."""


class UserLookup:
    """Reads users between two rounds of the pipeline, in its compute thread.

    Args:
        pipeline: whose users.
        titles: of the items.
        version_of: name of a model version by its fingerprint.
    """

    def __init__(self, pipeline: Pipeline, titles: Titles, version_of: Callable[[int], str]) -> None:
        self._pipeline, self._titles, self._version_of = pipeline, titles, version_of
        self._under_way: set[asyncio.Task[Any]] = set()

    def partition_of(self, user_id: str) -> int:
        """The partition number that Kafka's default partitioner gives the user's events."""
        return partition_of(user_id, self._pipeline.settings.partitions)

    def state_id(self, user_id: str) -> str:
        """The id under which this worker's state keeps the user whom producers call `user_id`."""
        return self._pipeline.pseudonyms.name(user_id)

    async def find(self, user_id: str) -> dict[str, Any] | None:
        """The user as a JSON object, None when no partition held here knows them.

        Raises:
            Busy: try again later.
            StateError: the user's record is corrupt.
        """
        if not self._pipeline.ready or len(self._under_way) >= _MOST_AT_ONCE:
            raise Busy
        # A task of its own: the turn must not pass on while the thread still reads because a client went away.
        task = asyncio.create_task(self._pipeline.between_rounds(self._read, user_id))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        await asyncio.wait([task], timeout=_PATIENCE_SECONDS)
        if not task.done():
            raise Busy
        found = task.result()
        return None if found is None else self._as_json(user_id, *found)

    def _read(self, user_id: str) -> tuple[int, Profile] | None:
        """In the compute thread: the user, wherever a producer's partitioner put them."""
        known_as, usual = self.state_id(user_id), self.partition_of(user_id)
        partitions = self._pipeline.partitions
        for number in sorted(partitions, key=lambda number: number != usual):
            profile = read_profile(partitions[number].store, known_as)
            if profile is not None:
                return number, profile
        return None

    def _as_json(self, user_id: str, partition: int, profile: Profile) -> dict[str, Any]:
        title = self._titles.get
        return {
            "user_id": user_id,
            "partition": partition,
            "tier": "cold" if profile.cold else "resident",
            "events": profile.count,
            "history": [
                {"item_id": item, "title": title(item), "kind": KINDS[kind], "at": 1000 * second}
                for item, kind, second in zip(profile.items, profile.kinds, profile.seconds, strict=True)
            ],
            "recommendations": [{"item_id": item, "title": title(item)} for item in profile.recommended],
            "model_version": self._version_of(profile.recommended_by) if profile.recommended else None,
        }
