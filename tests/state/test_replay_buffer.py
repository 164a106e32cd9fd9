from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from state.errors import StateError
from state.replay_buffer import ReplayBuffer, ReplaySettings
from state.replay_log import Columns, encode_frame
from tests.state.replay_events import SMALL, a_log, contents, feed


def test_a_redelivered_event_is_not_taken_twice(tmp_path: Path) -> None:
    log = a_log(300)
    with ReplayBuffer(tmp_path, SMALL) as buffer:
        assert feed(buffer, log[:200]) == 200
        assert feed(buffer, log[50:]) == 100
        assert (len(buffer), buffer.seen) == (300, 300)
        sample = buffer.sample(300, 0, 0)
    assert sample.times_ms.tolist() == [entry[5] for entry in log]
    assert [sample.item_ids[number] for number in sample.items] == [entry[3] for entry in log]


def test_what_was_committed_is_there_again_and_goes_on(tmp_path: Path) -> None:
    log = a_log(1_700)
    with ReplayBuffer(tmp_path / "once", SMALL) as buffer:
        feed(buffer, log)
        expected = contents(buffer)
    for start in range(0, 1_700, 170):
        with ReplayBuffer(tmp_path / "often", SMALL) as buffer:
            feed(buffer, log[start : start + 170])
            buffer.commit()
    with ReplayBuffer(tmp_path / "often", SMALL) as buffer:
        assert contents(buffer) == expected
        assert feed(buffer, log) == 0


def test_what_was_not_committed_comes_again_by_its_offset(tmp_path: Path) -> None:
    log = a_log(100)
    with ReplayBuffer(tmp_path, SMALL) as buffer:
        feed(buffer, log[:60])
        buffer.commit()
        feed(buffer, log[60:])
    with ReplayBuffer(tmp_path, SMALL) as buffer:
        assert len(buffer) == 60
        assert feed(buffer, log) == 40


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(1, 1_499), max_size=40), commits=st.lists(st.integers(1, 1_499), max_size=5))
def test_contents_do_not_depend_on_how_the_log_was_cut(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], commits: list[int]
) -> None:
    log = a_log(1_500)
    with ReplayBuffer(tmp_path_factory.mktemp("whole"), SMALL) as buffer:
        feed(buffer, log)
        expected = contents(buffer)
    with ReplayBuffer(tmp_path_factory.mktemp("cut"), SMALL) as buffer:
        start = 0
        for stop in [*sorted(set(commits)), len(log)]:
            feed(buffer, log[start:stop], cuts)
            buffer.commit()
            start = stop
        assert contents(buffer) == expected


def test_a_topic_made_anew_is_read_from_its_beginning(tmp_path: Path) -> None:
    with ReplayBuffer(tmp_path, SMALL) as buffer:
        feed(buffer, a_log(100))
        buffer.commit()
        buffer.forget_offset("clicks", 0)
        buffer.commit()
    with ReplayBuffer(tmp_path, SMALL) as buffer:
        assert buffer.offset("clicks", 0) == 0
        assert buffer.append("clicks", 0, ["new"], ["i1"], np.zeros(1, np.uint8), [1], [0]) == 1


def test_positions_advance_past_what_could_not_be_used(tmp_path: Path) -> None:
    with ReplayBuffer(tmp_path, SMALL) as buffer:
        buffer.append("clicks", 0, [], [], np.zeros(0, np.uint8), [], [], next_offset=17)
        buffer.commit()
    with ReplayBuffer(tmp_path, SMALL) as buffer:
        assert buffer.offset("clicks", 0) == 17
        assert buffer.offset("views", 0) is None


@pytest.mark.parametrize("field", ["capacity", "context", "most_per_user", "max_items"])
def test_nonsense_bounds_are_refused(field: str) -> None:
    with pytest.raises(StateError, match=field):
        ReplaySettings(**{field: -1})


@pytest.mark.parametrize("events", [0, 30, 700], ids=["empty", "appended", "compacted"])
def test_a_buffer_is_told_from_one_begun_after_it_was_lost(tmp_path: Path, events: int) -> None:
    with ReplayBuffer(tmp_path / "one", SMALL) as buffer, ReplayBuffer(tmp_path / "two", SMALL) as other:
        feed(buffer, a_log(events))
        buffer.commit()
        name = buffer.log_id
        assert name and name != other.log_id
        assert buffer.sample(10, 0, 0).log_id == name
    with ReplayBuffer(tmp_path / "one", SMALL) as buffer:
        assert buffer.log_id == name


@pytest.mark.parametrize("events", [30, 700], ids=["appended", "compacted"])
def test_a_buffer_of_an_earlier_release_gets_a_name(
    tmp_path: Path, events: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unnamed(head: dict[str, Any], columns: Columns) -> bytes:
        return encode_frame({key: value for key, value in head.items() if key != "log"}, columns)

    with monkeypatch.context() as patch, ReplayBuffer(tmp_path, SMALL) as buffer:
        patch.setattr("state.replay_buffer.encode_frame", unnamed)
        feed(buffer, a_log(events))
        buffer.commit()
        held = contents(buffer)
    with ReplayBuffer(tmp_path, SMALL) as buffer:
        assert contents(buffer) == held
        name = buffer.log_id
        buffer.commit()  # though nothing is new
    with ReplayBuffer(tmp_path, SMALL) as buffer:
        assert name and buffer.log_id == name and contents(buffer) == held


@pytest.mark.parametrize("events", [30, 700], ids=["appended", "compacted"])
def test_users_named_under_another_key_are_refused(tmp_path: Path, events: int) -> None:
    with ReplayBuffer(tmp_path, replace(SMALL, user_key=7)) as buffer:
        feed(buffer, a_log(events))
        buffer.commit()
    with pytest.raises(StateError, match=f"under another pseudonym key.*delete {tmp_path}"):
        ReplayBuffer(tmp_path, SMALL)
    with ReplayBuffer(tmp_path, replace(SMALL, user_key=7)) as buffer:
        assert len(buffer) > 0


def test_forgotten_users_leave_the_buffer_and_its_file(tmp_path: Path) -> None:
    log = a_log(300)
    with ReplayBuffer(tmp_path, SMALL) as buffer:
        feed(buffer, log[:200])
        buffer.commit()
        feed(buffer, log[200:])  # not committed yet
        before = contents(buffer)
        held = {user: sum(row[2] == user for row in log) for user in ("u1", "u2")}
        assert buffer.forget(["u1", "nobody", "u2"]) == held
        assert buffer.forget(["u1"]) == {}
        assert len(buffer) == 300 - sum(held.values())
        expected = contents(buffer)
    assert before != expected
    data = (tmp_path / "events.replay").read_bytes()
    assert b'"u1"' not in data
    assert b'"u3"' in data
    with ReplayBuffer(tmp_path, SMALL) as buffer:
        assert contents(buffer) == expected
        sample = buffer.sample(500, 0, seed=0)
        rest = [row for row in log if row[2] not in held]
        assert sorted(sample.times_ms.tolist()) == [row[5] for row in rest]
        counts = dict(zip(sample.item_ids, sample.item_counts.tolist(), strict=True))
        assert all(count == sum(row[3] == item for row in rest) for item, count in counts.items())
        assert buffer.seen == 300
        following = max(row[6] for row in log if row[:2] == ("clicks", 1)) + 1
        buffer.append("clicks", 1, ["u1"], ["i1"], np.zeros(1, np.uint8), [10**9], [following])
        assert buffer.forget(["u1"]) == {"u1": 1}
