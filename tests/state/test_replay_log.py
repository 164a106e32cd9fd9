import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from state.errors import StateError
from state.replay_buffer import ReplayBuffer, ReplaySettings
from tests.state.replay_events import SMALL, a_log, feed


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


def test_a_full_disk_is_said_and_what_was_committed_stays(tmp_path: Path) -> None:
    log = a_log(300)
    with ReplayBuffer(tmp_path, SMALL) as buffer:
        feed(buffer, log[:200])
        buffer.commit()
        size = buffer.nbytes
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 500, before[1]))  # python ignores the signal that comes with it
    try:
        with pytest.raises(StateError, match="too large"), ReplayBuffer(tmp_path, SMALL) as buffer:
            feed(buffer, log)
            buffer.commit()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with ReplayBuffer(tmp_path, SMALL) as buffer:
        assert len(buffer) == 200
        assert feed(buffer, log) == 100


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


def test_what_a_kill_left_of_a_rewrite_is_deleted_at_the_next_start(tmp_path: Path) -> None:
    with ReplayBuffer(tmp_path, SMALL) as buffer:
        feed(buffer, a_log(10))
        buffer.commit()
    (tmp_path / "events.new").write_bytes(b"half a file with u1 in it")
    with ReplayBuffer(tmp_path, SMALL) as buffer:
        assert len(buffer) == 10
    assert not (tmp_path / "events.new").exists()
