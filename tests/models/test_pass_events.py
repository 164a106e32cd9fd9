from dataclasses import replace
from pathlib import Path

import numpy as np

from models.finetune import fine_tune
from models.pass_events import held_out, histories_of, lineage_in, new_to, shares, training_part
from models.vocabulary import VocabularySettings, grow
from state.replay_sample import Sample
from tests.models.learning import FINE, a_buffer, stream
from tests.models.test_finetune import published, sample

__all__ = ["sample"]  # a fixture


def test_the_held_out_slice_is_new_to_parent_and_candidate(sample: Sample, tmp_path: Path) -> None:
    held = held_out(sample, None, 0.2, 10_000)
    assert held.sum() == 200
    assert held[sample.recent].sum() == 200
    assert sample.times_ms[held].min() > sample.times_ms[~held].max()
    growth = grow([""], sample, VocabularySettings())
    source, learn, _ = training_part(sample, growth, held)
    assert source.times_ms.max() < sample.times_ms[held].min()
    assert learn.sum() > 0
    parent = published(fine_tune(None, sample, FINE, seed=1), tmp_path / "registry")
    assert new_to(parent.lineage, sample).sum() == 0
    assert held_out(sample, parent, 0.2, 10_000).sum() == 0
    older = replace(parent, lineage={"seen": sample.seen - 60})
    assert new_to(older.lineage, sample).sum() == 60
    mine = held_out(sample, older, 0.2, 10_000)
    assert mine.sum() == 30  # half, so that there is something new to learn
    assert np.flatnonzero(mine).tolist() == list(range(len(sample) - 30, len(sample)))
    from_file = replace(parent, lineage={"newest_ms": int(sample.times_ms[-101])})
    assert new_to(from_file.lineage, sample).sum() == 100


def test_a_place_in_another_log_says_nothing_and_time_tells_what_is_new(sample: Sample) -> None:
    places = {"seen": sample.seen - 60, "offsets": {"clicks:0": 7}, "since": 5, "fitted_seen": 9}
    lineage = places | {"newest_ms": int(sample.times_ms[-101])}
    assert new_to(lineage | {"log": sample.log_id}, sample).sum() == 60
    assert new_to(lineage | {"log": "lost"}, sample).sum() == 100
    assert new_to(lineage, sample).sum() == 60  # of an earlier release
    ahead = lineage | {"seen": sample.seen + 1}  # it counted what this log has not
    assert new_to(ahead, sample).sum() == 100
    assert new_to(ahead | {"log": sample.log_id}, sample).sum() == 100  # restored from a copy
    assert lineage_in("new", 10_000, lineage | {"log": "lost"}) == {"newest_ms": lineage["newest_ms"]}
    assert lineage_in("new", 10_000, lineage) == lineage


def test_a_wrong_date_of_a_table_does_not_put_off_learning(sample: Sample) -> None:
    table = {"newest_ms": 10**15, "created_ms": int(sample.times_ms[-101])}
    assert new_to(table, sample).sum() == 100
    assert new_to(table | {"created_ms": None}, sample).sum() == 0
    assert new_to(table | {"newest_ms": int(sample.times_ms[-51])}, sample).sum() == 100
    assert new_to({"newest_ms": int(sample.times_ms[-51]), "created_ms": 10**15}, sample).sum() == 50


def test_late_events_are_held_out_by_time_not_by_arrival(tmp_path: Path) -> None:
    rows = stream(1_000)
    rows[400:400] = [("late", "i1", 10**9 + number) for number in range(50)]  # came early, happened last
    with a_buffer(tmp_path, rows) as buffer:
        sample = buffer.sample(1_050, 0, 0)
    held = held_out(sample, None, 50 / 1_050, 10_000)
    assert set(np.flatnonzero(held)) == set(range(400, 450))


def test_histories_are_by_user_and_time_ties_by_arrival(tmp_path: Path) -> None:
    rows = [("b", "x", 5), ("a", "y", 9_000), ("b", "z", 5), ("a", "x", 1_000), ("b", "y", 3)]
    with a_buffer(tmp_path, rows) as buffer:
        sample = buffer.sample(5, 0, 0)
    source, order = histories_of(sample, np.array([1, 2, 3], np.int32), np.ones(5, np.bool_))
    assert order.tolist() == [4, 0, 2, 3, 1]
    assert source.items.tolist() == [2, 1, 3, 1, 2]
    assert source.starts.tolist() == [0, 3, 5]
    assert source.gaps_seconds.tolist() == [0, 0, 0, 0, 8]


def test_the_older_events_of_a_pass_are_shared_out_among_its_epochs() -> None:
    learn, recent = np.ones(1_000, np.bool_), np.arange(1_000) >= 800
    learn[:10] = False
    parts = shares(learn, recent, 3)
    assert all(part[recent].all() and not part[~learn].any() for part in parts)
    older = np.sum([part & ~recent for part in parts], axis=0)
    assert set(older[learn & ~recent].tolist()) == {1}  # each once a pass
    few = shares(learn, np.arange(1_000) >= 400, 3)
    assert all((part == learn).all() for part in few)  # no more than there are recent ones: all of them each time
