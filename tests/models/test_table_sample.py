from dataclasses import replace

import numpy as np
import polars as pl

from models.pass_events import new_to
from models.table_sample import detached, sample_of
from models.tables import Events
from tests.models.conftest import Build


def events() -> Events:
    users, items = pl.Series(["b", "a", "b", "b"]), pl.Series(["y", "x", "x", "z"])
    return Events(users, items, np.array([2, 0, 1, 0], np.uint8), np.array([30, 10, 20, 20]))


def test_a_table_becomes_a_sample_in_time_order() -> None:
    sample = sample_of(events())
    assert sample.times_ms.tolist() == [10, 20, 20, 30]
    assert sample.users.tolist() == [0, 1, 1, 1]
    assert [sample.item_ids[number] for number in sample.items] == ["x", "x", "z", "y"]
    assert sample.kinds.tolist() == [0, 1, 0, 2]
    assert dict(zip(sample.item_ids, sample.item_counts.tolist(), strict=True)) == {"x": 2, "z": 1, "y": 1}
    assert dict(zip(sample.item_ids, sample.item_last_ms.tolist(), strict=True)) == {"x": 20, "z": 20, "y": 30}
    assert sample.learn.all() and sample.recent.all() and sample.seen == 4


def test_what_is_new_to_a_parent_is_told_by_time(build_version: Build) -> None:
    _, parent = build_version()
    parent = replace(parent, lineage={"seen": 1_000, "offsets": {"clicks:0": 7}, "newest_ms": 20, "seed": 1})
    free = detached(parent)
    assert free is not None
    assert free.lineage == {"newest_ms": 20, "seed": 1}
    assert new_to(free.lineage, sample_of(events())).sum() == 1
    assert detached(None) is None
