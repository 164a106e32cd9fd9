import numpy as np

from benchmarks.quality.log import Log
from tests.benchmarks.logs import events


def test_numbers_follow_first_appearance_and_seen_counts_the_candidates() -> None:
    log = Log.of(events(["b", "a", "b", "a"], ["y", "x", "y", "z"]))
    assert log.users.tolist() == [0, 1, 0, 1]
    assert log.items.tolist() == [0, 1, 0, 2]
    assert log.seen.tolist() == [0, 1, 2, 2]
    assert (log.items == log.seen).tolist() == [True, True, False, True]
    assert log.half == 2


def test_batches_tile_the_log_with_rising_offsets() -> None:
    log = Log.of(events(["a"] * 5, list("vwxyz"), [0, 1, 2, 0, 1]))
    batches = [log.batch(start, start + 2) for start in range(0, 5, 2)]
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert np.concatenate([batch.offsets for batch in batches]).tolist() == [0, 1, 2, 3, 4]
    assert batches[2].items == ["z"]
    assert batches[1].kinds.tolist() == [2, 0]
