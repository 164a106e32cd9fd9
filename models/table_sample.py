"""A table of events as a training sample: what the trainer takes out of its replay buffer, from a file instead."""

from dataclasses import replace

import numpy as np
import polars as pl

from models.pass_events import LOG_FIELDS
from models.registry import Version
from models.tables import Events
from state.replay_sample import Sample


def sample_of(events: Events) -> Sample:
    """Every event of a table, all of them recent and to be learnt.

    Args:
        events: In any order; they are put in time order, ties as they come.

    Example:
        >>> import polars as pl
        >>> kinds, times = np.zeros(3, np.uint8), np.array([3, 1, 2])
        >>> sample = sample_of(Events(pl.Series(["a", "b", "a"]), pl.Series(["x", "y", "y"]), kinds, times))
        >>> sample.users.tolist(), [sample.item_ids[item] for item in sample.items], sample.item_counts.tolist()
        ([0, 1, 1], ['y', 'y', 'x'], [2, 1])
    """
    ordered = events.time_ordered()
    names, item_ids = ordered.users.unique(maintain_order=True), ordered.items.unique(maintain_order=True)
    users = ordered.users.replace_strict(names, np.arange(len(names)), return_dtype=pl.Int64).to_numpy()
    items = ordered.items.replace_strict(item_ids, np.arange(len(item_ids)), return_dtype=pl.Int64).to_numpy()
    newest = np.zeros(len(item_ids), np.int64)
    np.maximum.at(newest, items, ordered.times_ms)
    everything = np.ones(len(ordered), np.bool_)
    return Sample(
        users=users.astype(np.int32),
        items=items.astype(np.int32),
        kinds=ordered.kinds,
        times_ms=ordered.times_ms,
        learn=everything,
        recent=everything.copy(),
        user_hashes=np.arange(len(names), dtype=np.uint64),
        item_ids=item_ids.to_list(),
        item_counts=np.bincount(items, minlength=len(item_ids)).astype(np.int64),
        item_last_ms=newest,
        offsets={},
        seen=len(ordered),
        seed=0,
    )


def detached(version: Version | None) -> Version | None:
    """A parent without its place in the trainer's log: what of a table is new to it is told by time instead."""
    if version is None:
        return None
    lineage = {name: value for name, value in version.lineage.items() if name not in LOG_FIELDS}
    return replace(version, lineage=lineage)
