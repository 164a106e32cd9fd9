import os
import signal
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from streams.settings import load_settings
from streams.supervisor import MAX_QUICK_DEATHS, Supervisor, environment

# A worker that says when it runs and when it was asked to end.
WORKER = """
import pathlib, signal, sys, time
here = pathlib.Path(sys.argv[1]); index = sys.argv[2]
def end(*_):
    (here / f"clean-{index}").touch(); sys.exit(0)
signal.signal(signal.SIGTERM, end)
with open(here / f"starts-{index}", "a") as starts:
    print("x", file=starts)
while True:
    time.sleep(0.02)
"""
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"


def supervisor(argv, count=2, **options):
    return Supervisor(argv, dict(os.environ), count, first_delay_seconds=0.05, **options)


@contextmanager
def running(supervised):
    """Run it in a thread; gives a list that holds the exit status after it was stopped."""
    status = []
    thread = threading.Thread(target=lambda: status.append(supervised.run()))
    thread.start()
    try:
        yield status
    finally:
        supervised.stop()
        thread.join(20)
        assert not thread.is_alive()


def wait_until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.02)
    pytest.fail("it did not happen in time")


def starts(folder, index):
    path = folder / f"starts-{index}"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_runs_all_and_stops_all_cleanly(tmp_path):
    supervised = supervisor(lambda i: [sys.executable, "-c", WORKER, str(tmp_path), str(i)], 3)
    with running(supervised) as status:
        wait_until(lambda: all(starts(tmp_path, i) for i in range(3)))
        pids = supervised.pids()
    assert status == [0]
    assert {path.name for path in tmp_path.glob("clean-*")} == {"clean-0", "clean-1", "clean-2"}
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_workers_that_have_not_begun_yet_may_be_stopped(tmp_path):
    code = f"open({str(tmp_path / 'started')!r}, 'a').write('x'); import time; time.sleep(60)"  # no handler yet
    supervised = supervisor(lambda i: [sys.executable, "-c", code], 2)
    with running(supervised) as status:
        wait_until(lambda: (tmp_path / "started").exists() and len(supervised.pids()) == 2)
        time.sleep(0.5)
    assert status == [0]


def test_restarts_only_what_was_killed(tmp_path):
    supervised = supervisor(lambda i: [sys.executable, "-c", WORKER, str(tmp_path), str(i)])
    with running(supervised) as status:
        wait_until(lambda: starts(tmp_path, 0) and starts(tmp_path, 1))
        os.kill(supervised.pids()[0], signal.SIGKILL)
        wait_until(lambda: starts(tmp_path, 0) == 2)
        assert starts(tmp_path, 1) == 1
    assert status == [0]


def test_backs_off_between_deaths_and_gives_up(tmp_path, monkeypatch):
    code = f"open({str(tmp_path / 'deaths')!r}, 'a').write(f'{{__import__(\"time\").time()}}\\n'); raise SystemExit(1)"
    monkeypatch.setattr("streams.supervisor.LONGEST_DELAY_SECONDS", 0.2)
    assert supervisor(lambda i: [sys.executable, "-c", code], 1).run() == 1
    deaths = [float(text) for text in (tmp_path / "deaths").read_text().split()]
    assert len(deaths) == MAX_QUICK_DEATHS
    assert deaths[-1] - deaths[-2] >= 0.2


def test_stopping_while_a_worker_is_down_is_a_failure(tmp_path):
    code = f"open({str(tmp_path / 'tries')!r}, 'a').write('x'); raise SystemExit(1)"
    supervised = supervisor(lambda i: [sys.executable, "-c", code], 1)
    supervised.first_delay_seconds = 60
    with running(supervised) as status:
        wait_until((tmp_path / "tries").exists)
        wait_until(lambda: not supervised.pids())
    assert status == [1]


def test_settings_a_worker_refuses_are_not_tried_again(tmp_path):
    code = f"open({str(tmp_path / 'tries')!r}, 'a').write('x'); raise SystemExit(2)"
    assert supervisor(lambda i: [sys.executable, "-c", code], 1).run() == 2
    assert (tmp_path / "tries").read_text() == "x"


def test_what_does_not_end_in_time_is_killed_and_counts_as_a_failure():
    supervised = supervisor(lambda i: [sys.executable, "-c", STUBBORN], 1, grace_seconds=0.5)
    with running(supervised) as status:
        wait_until(supervised.pids)
        pid = supervised.pids()[0]
        time.sleep(0.5)  # until it ignores the signal
    assert status == [1]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_second_request_does_not_wait_for_the_grace_period():
    supervised = supervisor(lambda i: [sys.executable, "-c", STUBBORN], 1, grace_seconds=60)
    started = time.monotonic()
    with running(supervised):
        wait_until(supervised.pids)
        time.sleep(0.5)
        supervised.stop()
        time.sleep(0.3)  # the context manager asks the second time
    assert time.monotonic() - started < 20


def test_options_given_to_the_supervisor_reach_the_workers():
    settings = load_settings(brokers="a:1", top_k=3, sasl_password="pw", state_dir="there")
    values = environment(settings)
    assert values["RECSTREAM_BROKERS"] == "a:1"
    assert values["RECSTREAM_TOP_K"] == "3"
    assert values["RECSTREAM_SASL_PASSWORD"] == "pw"
    assert values["RECSTREAM_STATE_DIR"] == "there"
    assert "RECSTREAM_EMIT" not in values
