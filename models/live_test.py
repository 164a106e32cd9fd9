"""Test, then learn: does the serving version foretell the events that have just come in?

The trainer asks this of its own copy of the serving version and its own buffer, before those events are trained on. It
needs nothing from the workers, costs one batched pass over the users concerned, and judges the network alone: what the
workers show also learns from every event at once, so its hit rate hides that the network has gone stale.
"""

import numpy as np
from numpy.typing import NDArray

from models.gate import followers, ranks_of
from models.network import Network
from models.pass_events import histories_of, new_to
from models.registry import Version
from state.replay_sample import Sample


class LiveTest:
    """Ranks new events with one version.

    Args:
        version: The serving version.
    """

    def __init__(self, version: Version) -> None:
        self.name = version.name
        self._network: Network = version.network()
        self._row_of = {item_id: row for row, item_id in enumerate(version.vocabulary)}
        self._lineage = version.lineage

    def hits(self, sample: Sample, k: int = 10) -> tuple[NDArray[np.bool_], NDArray[np.uint64]]:
        """Which of the sample's recent events were among the k best (K,), in order of arrival, and whose they are (K,).

        A user's first event is left out, it cannot be foretold from a state, and so is what the version was fitted on;
        an item without a row is a miss.
        """
        fresh = self._new_to_it(sample)
        if not fresh.any():
            return np.zeros(0, np.bool_), np.zeros(0, np.uint64)
        rows = np.array([self._row_of.get(item_id, 0) for item_id in sample.item_ids], np.int32)
        source, order = histories_of(sample, rows, np.ones(len(sample), np.bool_))
        wanted = fresh[order]
        events = followers(source, wanted)
        ranks = ranks_of(self._network, source, wanted)
        arrival = np.argsort(order[events], kind="stable")
        hits: NDArray[np.bool_] = ranks[arrival] <= k
        return hits, sample.user_hashes[sample.users[order[events][arrival]]]

    def _new_to_it(self, sample: Sample) -> NDArray[np.bool_]:
        """Which recent events (N,) came after those it was made from: what it has learnt is no test."""
        wanted = np.zeros(len(sample), np.bool_)
        wanted[np.flatnonzero(sample.recent)[new_to(self._lineage, sample)]] = True
        return wanted
