from pathlib import Path
from typing import Any

import numpy as np
import pytest

from state.errors import StateError
from state.replay_buffer import ReplayBuffer, ReplaySettings
from state.replay_log import Columns, encode_frame
from state.replay_sample import Sample
from tests.state.replay_events import SMALL, a_log, feed


def test_a_sample_is_seeded_and_within_its_budget(tmp_path: Path) -> None:
    with ReplayBuffer(tmp_path, ReplaySettings(capacity=10_000)) as buffer:
        feed(buffer, a_log(5_000, users=200))
        first, again, other = (buffer.sample(500, 1_000, seed) for seed in (1, 1, 2))
    assert first.learn.tolist() == again.learn.tolist()
    assert first.recent.sum() == 500
    for sample in (first, other):
        drawn = int((sample.learn & ~sample.recent).sum())
        assert 900 <= drawn <= 1_000
    assert set(first.times_ms[first.learn].tolist()) != set(other.times_ms[other.learn].tolist())


def test_a_sample_has_everything_before_what_it_teaches(tmp_path: Path) -> None:
    log = a_log(3_000, users=100)
    with ReplayBuffer(tmp_path, ReplaySettings(capacity=10_000)) as buffer:
        feed(buffer, log)
        sample = buffer.sample(100, 200, 5)
    by_time = {entry[5]: entry for entry in log}
    histories: dict[str, list[int]] = {}
    for entry in log:
        histories.setdefault(entry[2], []).append(entry[5])
    for number in np.unique(sample.users):
        mine = sample.users == number
        times = sample.times_ms[mine].tolist()
        whole = histories[by_time[times[0]][2]]
        last = max(sample.times_ms[mine & sample.learn].tolist())
        assert times == whole[: whole.index(last) + 1]


def test_a_sample_survives_the_disk(tmp_path: Path) -> None:
    with ReplayBuffer(tmp_path, SMALL) as buffer:
        feed(buffer, a_log(300))
        sample = buffer.sample(100, 50, 2)
    sample.save(tmp_path / "sample.replay")
    loaded = Sample.load(tmp_path / "sample.replay")
    for name in Sample.__slots__:
        expected, found = getattr(sample, name), getattr(loaded, name)
        assert np.array_equal(expected, found) if isinstance(expected, np.ndarray) else expected == found
    damaged = bytearray((tmp_path / "sample.replay").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "sample.replay").write_bytes(damaged)
    with pytest.raises(StateError):
        Sample.load(tmp_path / "sample.replay")
    with pytest.raises(StateError):
        Sample.load(tmp_path / "nowhere.replay")


def test_a_sample_of_an_earlier_release_is_of_no_named_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unnamed(head: dict[str, Any], columns: Columns) -> bytes:
        return encode_frame({key: value for key, value in head.items() if key != "log_id"}, columns)

    with ReplayBuffer(tmp_path / "buffer", SMALL) as buffer:
        feed(buffer, a_log(100))
        sample = buffer.sample(50, 0, 0)
        sample.save(tmp_path / "named.replay")
        monkeypatch.setattr("state.replay_sample.encode_frame", unnamed)
        sample.save(tmp_path / "unnamed.replay")
    assert Sample.load(tmp_path / "named.replay").log_id == buffer.log_id
    assert Sample.load(tmp_path / "unnamed.replay").log_id == ""
