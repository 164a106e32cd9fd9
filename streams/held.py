"""The partitions a worker holds, and what their users share: memory, the cold store, and the figures of both."""

from collections.abc import Iterable

import numpy as np

from models.recommend import Recommender
from state.arena import Arena
from state.cold import ColdStore
from state.pseudonyms import Pseudonyms
from state.store import UserStore
from streams.metrics import Metrics
from streams.partition import Partition
from streams.settings import Settings


class Held:
    """Partitions by number.

    Attributes:
        partitions: those held now.

    Args:
        settings: all settings.
        recommender: how large a state is, and the numbers of items.
        metrics: where to count.
        pseudonyms: the names users' state is kept under.
        index: number of this worker on its host: each has a cold store of its own.
    """

    def __init__(
        self, settings: Settings, recommender: Recommender, metrics: Metrics, pseudonyms: Pseudonyms, index: int
    ) -> None:
        self.partitions: dict[int, Partition] = {}
        self._settings, self._recommender, self._metrics, self._pseudonyms = settings, recommender, metrics, pseudonyms
        self._cold: ColdStore | None = None
        if settings.max_resident_users:
            self._cold = ColdStore(settings.state_dir / settings.app_id / f"cold-{index}")

    def add(self, numbers: Iterable[int]) -> None:
        """Hold these too, empty."""
        for number in numbers:
            arena = Arena(self._recommender.state_size, self._settings.top_k)
            cold = None if self._cold is None else self._cold.partition(number)
            store = UserStore(arena, self._recommender.items, cold)
            self.partitions[number] = Partition(number, store, user_key=self._pseudonyms.fingerprint)
        self._share_memory()

    def drop(self, numbers: Iterable[int]) -> None:
        """Forget these, and their users on the disk."""
        for number in numbers:
            del self.partitions[number]
            if self._cold is not None:
                self._cold.drop(number)
        self._share_memory()

    def close(self) -> None:
        """Close the cold store."""
        if self._cold is not None:
            self._cold.close()

    @property
    def changed(self) -> int:
        """Users that the next flush has to write."""
        return sum(int(np.count_nonzero(partition.store.arena.dirty)) for partition in self.partitions.values())

    def count(self) -> None:
        """Bring the metrics of users, items and memory up to date."""
        stores = [partition.store for partition in self.partitions.values()]
        self._metrics.users.labels("resident").set(sum(store.resident for store in stores))
        self._metrics.users.labels("cold").set(sum(store.cold for store in stores))
        self._metrics.state_bytes.set(sum(store.arena.nbytes for store in stores))
        self._metrics.items.set(len(self._recommender.items) - 1)

    def _share_memory(self) -> None:
        if self._settings.max_resident_users:
            for partition in self.partitions.values():
                partition.store.max_resident = max(1, self._settings.max_resident_users // len(self.partitions))
