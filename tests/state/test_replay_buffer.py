import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from state.errors import StateError
from state.replay_buffer import ReplayBuffer, ReplaySettings
from state.replay_sample import Sample

SMALL = ReplaySettings(capacity=500, context=20, most_per_user=60, seed=3)
TOPICS = ("clicks", "views", "purchases")
Log = list[tuple[str, int, str, str, int, int, int]]  # topic, partition, user, item, kind, time, offset


def a_log(events: int, users: int = 40, items: int = 25, seed: int = 0) -> Log:
    rng = np.random.default_rng(seed)
    following: dict[tuple[str, int], int] = {}
    log: Log = []
    for number in range(events):
        user, kind = int(rng.zipf(1.5)) % users, int(rng.integers(3))
        partition = user % 2
        place = following.get((TOPICS[kind], partition), 0)
        following[TOPICS[kind], partition] = place + 1
        log.append((TOPICS[kind], partition, f"u{user}", f"i{rng.integers(items)}", kind, 1000 * number, place))
    return log


def feed(buffer: ReplayBuffer, log: Log, cuts: list[int] | None = None) -> int:
    """Append in order, each run of one topic-partition at once, runs also cut at `cuts`."""
    start, taken = 0, 0
    for stop in range(1, len(log) + 1):
        if stop < len(log) and log[stop][:2] == log[start][:2] and stop not in (cuts or ()):
            continue
        topic, partition = log[start][:2]
        _, _, users, items, kinds, times, places = zip(*log[start:stop], strict=True)
        taken += buffer.append(topic, partition, users, items, np.array(kinds, np.uint8), times, places)
        start = stop
    return taken


def contents(buffer: ReplayBuffer) -> tuple[object, ...]:
    sample = buffer.sample(200, 100, seed=1)
    arrays = (sample.users, sample.items, sample.kinds, sample.times_ms, sample.learn, sample.recent)
    tables = (sample.item_counts, sample.item_last_ms)
    return (
        *(array.tolist() for array in (*arrays, *tables)),
        sample.item_ids,
        dict(sample.offsets),
        sample.seen,
        len(buffer),
    )


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


def test_the_buffer_is_bounded_and_keeps_the_newest_and_their_past(tmp_path: Path) -> None:
    log = a_log(20_000, users=300)
    with ReplayBuffer(tmp_path, SMALL) as buffer:
        feed(buffer, log)
        assert len(buffer) <= SMALL.capacity
        assert buffer.nbytes < 60 * SMALL.capacity
        sample = buffer.sample(SMALL.capacity, 0, 0)
        assert sample.seen == 20_000
        assert len(set(sample.times_ms.tolist())) == len(sample)
        newest = int(0.4 * SMALL.capacity)  # since then as many more came as made it full again, or fewer
        assert sample.times_ms[-newest:].tolist() == [entry[5] for entry in log[-newest:]]


def test_the_past_of_users_in_the_window_is_kept_nearest_first(tmp_path: Path) -> None:
    log = a_log(SMALL.capacity, users=20)  # exactly full: the window is the newest 40%
    with ReplayBuffer(tmp_path, SMALL) as buffer:
        feed(buffer, log)
        held = set(buffer.sample(SMALL.capacity, 0, 0).times_ms.tolist())
    newest = int(0.4 * SMALL.capacity)
    depths = []
    for user in {entry[2] for entry in log[-newest:]}:
        past = [entry[5] in held for entry in reversed(log[:-newest]) if entry[2] == user]
        depths.append(past.index(False) if False in past else len(past))
    assert min(depths) > 0 and max(depths) >= 5
    assert len(held) < SMALL.capacity


def test_the_reservoir_holds_whole_histories_of_a_fair_sample_of_users(tmp_path: Path) -> None:
    users, each = 400, 30
    picked = np.zeros(users)
    rounds = 20
    for seed in range(rounds):
        bounds = ReplaySettings(capacity=2_000, context=0, most_per_user=100, seed=seed)
        with ReplayBuffer(tmp_path / str(seed), bounds) as buffer:
            for user in range(users):  # user after user: early ones are as likely to stay as late ones
                names, items = [f"u{user}"] * each, [f"i{number}" for number in range(each)]
                places = np.arange(user * each, (user + 1) * each)
                buffer.append("clicks", 0, names, items, np.zeros(each, np.uint8), places, places)
            sample = buffer.sample(0, 2_000, 0)
        owners = np.unique(sample.times_ms // each, return_counts=True)
        whole = owners[0][owners[1] == each]
        assert len(whole) >= len(owners[0]) - 1  # at most the one at the edge of the window is cut
        picked[whole.astype(int)] += 1
    early, late = picked[: users // 4].mean(), picked[users // 2 : users // 2 + users // 4].mean()
    assert 0.2 < early < 3.0  # about 400 reservoir events of 30 each, among 400 users, 20 rounds: 0.7 to 1.5
    assert early == pytest.approx(late, rel=0.6)


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


@pytest.mark.parametrize("damage", ["cut", "flip", "garbage"])
def test_a_damaged_tail_is_cut_off(tmp_path: Path, damage: str) -> None:
    log, path = a_log(300), tmp_path / "events.replay"
    with ReplayBuffer(tmp_path, SMALL) as buffer:
        feed(buffer, log[:200])
        buffer.commit()
        whole = path.stat().st_size
        feed(buffer, log[200:])
        buffer.commit()
    data = bytearray(path.read_bytes())
    if damage == "cut":
        del data[-7:]
    elif damage == "flip":
        data[whole + 40] ^= 0xFF
    else:
        data[whole:] = os.urandom(50)
    path.write_bytes(data)
    with ReplayBuffer(tmp_path, SMALL) as buffer:
        assert (len(buffer), buffer.truncated_bytes) == (200, len(data) - whole)
        assert feed(buffer, log) == 100
        buffer.commit()
    with ReplayBuffer(tmp_path, SMALL) as buffer:
        assert (len(buffer), buffer.truncated_bytes) == (300, 0)


def test_every_cut_of_the_file_opens(tmp_path: Path) -> None:
    log, path = a_log(60), tmp_path / "events.replay"
    with ReplayBuffer(tmp_path, SMALL) as buffer:
        for start in range(0, 60, 20):
            feed(buffer, log[start : start + 20])
            buffer.commit()
    data = path.read_bytes()
    for size in range(0, len(data), 13):
        path.write_bytes(data[:size])
        with ReplayBuffer(tmp_path, SMALL) as buffer:
            before = len(buffer)
            assert before in (0, 20, 40, 60)
            assert feed(buffer, log) == 60 - before


def test_only_one_process_has_it_open(tmp_path: Path) -> None:
    with ReplayBuffer(tmp_path, SMALL), pytest.raises(StateError, match="in use"):
        ReplayBuffer(tmp_path, SMALL)
    ReplayBuffer(tmp_path, SMALL).close()


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "events.replay").write_bytes(b"something else entirely")
    with pytest.raises(StateError, match="no replay buffer"):
        ReplayBuffer(tmp_path, SMALL)
    (tmp_path / "events.replay").unlink()
    ReplayBuffer(tmp_path, SMALL).close()  # and the lock was given back


def test_a_smaller_capacity_takes_effect_at_once(tmp_path: Path) -> None:
    with ReplayBuffer(tmp_path, ReplaySettings(capacity=5_000)) as buffer:
        feed(buffer, a_log(3_000))
        buffer.commit()
    with ReplayBuffer(tmp_path, SMALL) as buffer:
        assert len(buffer) <= SMALL.capacity
        assert buffer.seen == 3_000


def test_item_counts_are_of_all_events_ever(tmp_path: Path) -> None:
    log = a_log(4_000)
    with ReplayBuffer(tmp_path, SMALL) as buffer:
        feed(buffer, log)
        buffer.commit()
    with ReplayBuffer(tmp_path, SMALL) as buffer:
        sample = buffer.sample(10, 0, 0)
    items = [entry[3] for entry in log]
    for name, count, last in zip(sample.item_ids, sample.item_counts, sample.item_last_ms, strict=True):
        assert count == items.count(name)
        assert last == max(entry[5] for entry in log if entry[3] == name)


def test_items_idle_longest_are_forgotten(tmp_path: Path) -> None:
    bounds = ReplaySettings(capacity=200, max_items=150)
    with ReplayBuffer(tmp_path, bounds) as buffer:
        places = np.arange(1_000)
        names = [f"i{number}" for number in places]
        buffer.append("clicks", 0, ["u"] * 1_000, names, np.zeros(1_000, np.uint8), places, places)
        assert buffer.items < 150 + 200
        assert buffer.sample(50, 0, 0).item_ids[-1] == "i999"


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


WRITER = """
import sys
from pathlib import Path
import numpy as np
from state.replay_buffer import ReplayBuffer, ReplaySettings
with ReplayBuffer(Path(sys.argv[1]), ReplaySettings(capacity=700, seed=1)) as buffer:
    at = buffer.offset("clicks", 0) or 0
    print("open", flush=True)
    while True:
        places = np.arange(at, at + 37)
        users = [f"u{place % 23}" for place in places]
        buffer.append("clicks", 0, users, [f"i{n % 11}" for n in places], np.zeros(37, np.uint8), places, places)
        buffer.commit()
        at += 37
"""


def test_kill_at_random_points_loses_nothing_committed_and_doubles_nothing(tmp_path: Path) -> None:
    rng, following = np.random.default_rng(0), 0
    for _ in range(8):
        command = [sys.executable, "-c", WRITER, str(tmp_path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
        assert process.stdout is not None and process.stdout.readline() == b"open\n"
        time.sleep(float(rng.uniform(0.0, 0.05)))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        with ReplayBuffer(tmp_path, ReplaySettings(capacity=700, seed=1)) as buffer:
            reached = buffer.offset("clicks", 0) or 0
            assert reached >= following
            assert reached % 37 == 0 or len(buffer) < 700  # a compaction inside a batch keeps its part of it
            assert buffer.seen == reached
            times = buffer.sample(700, 0, 0).times_ms
            assert len(np.unique(times)) == len(times)
            if reached:
                assert times[-1] == reached - 1
        following = reached
    assert following > 0


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


def test_what_a_kill_left_of_a_rewrite_is_deleted_at_the_next_start(tmp_path: Path) -> None:
    with ReplayBuffer(tmp_path, SMALL) as buffer:
        feed(buffer, a_log(10))
        buffer.commit()
    (tmp_path / "events.new").write_bytes(b"half a file with u1 in it")
    with ReplayBuffer(tmp_path, SMALL) as buffer:
        assert len(buffer) == 10
    assert not (tmp_path / "events.new").exists()
