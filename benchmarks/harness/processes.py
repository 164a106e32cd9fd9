"""Child processes on chosen cores, always stopped: on success, on an error and on Ctrl-C or TERM."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

import psutil

from state.errors import RecstreamError

ROOT: Final = Path(__file__).resolve().parents[2]
ONE_THREAD: Final = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}


class BenchmarkError(RecstreamError):
    """A benchmark could not be run to its end."""


@dataclass(frozen=True, slots=True)
class Cores:
    """Which cores run what: the process being measured has its own, the broker and the loader share the rest."""

    measured: tuple[int, ...]
    others: tuple[int, ...]


def split_cores() -> Cores:
    """One core for the measured process, the others (or the same, on a machine with one) for everything else."""
    available = sorted(os.sched_getaffinity(0))
    return Cores(measured=tuple(available[-1:]), others=tuple(available[:-1] or available))


@dataclass(frozen=True, slots=True)
class Child:
    """A running child process and where it logs."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def cpu_seconds(self) -> float:
        """User and system CPU time of the process and its children so far; 0 when it has ended."""
        try:
            process = psutil.Process(self.process.pid)
            times = [member.cpu_times() for member in (process, *process.children(recursive=True))]
        except psutil.Error:
            return 0.0
        return sum(time.user + time.system for time in times)

    def resident_bytes(self) -> int:
        """Resident memory of the process and its children; 0 when it has ended."""
        try:
            process = psutil.Process(self.process.pid)
            return sum(member.memory_info().rss for member in (process, *process.children(recursive=True)))
        except psutil.Error:
            return 0

    def check(self) -> None:
        """Raise when the process has ended.

        Raises:
            BenchmarkError: With the end of its log.
        """
        code = self.process.poll()
        if code is not None:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
            raise BenchmarkError(f"{self.name} ended early with code {code}", tail, f"Read {self.log}")


@contextmanager
def running(
    name: str, argv: Sequence[str], *, cores: Sequence[int], log: Path, env: Mapping[str, str] | None = None
) -> Iterator[Child]:
    """Run a command pinned to `cores` in a session of its own; TERM, then KILL, its whole group at the end."""
    before = os.sched_getaffinity(0)
    with log.open("ab") as sink:
        os.sched_setaffinity(0, cores)  # inherited by every thread of the child, without a race
        try:
            process = subprocess.Popen(
                list(argv),
                cwd=ROOT,
                env={**os.environ, **ONE_THREAD, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        finally:
            os.sched_setaffinity(0, before)
    try:
        yield Child(name, process, log)
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes], grace_seconds: float = 20) -> None:
    """TERM the process group, wait, KILL what is left of it."""
    for number, wait_seconds in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, 10)):
        if process.poll() is not None:
            break
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(wait_seconds)
        except subprocess.TimeoutExpired:
            continue
    try:
        os.killpg(process.pid, signal.SIGKILL)  # children that outlived their parent
    except ProcessLookupError:
        return


@contextmanager
def unwinding_on_term() -> Iterator[None]:
    """Turn TERM and HUP into SystemExit for the block, so that every `finally` runs."""

    def leave(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wait_until(ready: Callable[[], bool], child: Child, timeout_seconds: float, what: str) -> None:
    """Poll until `ready()` is true.

    Raises:
        BenchmarkError: The child ended, or the time is over.
    """
    deadline = time.monotonic() + timeout_seconds
    while not ready():
        child.check()
        if time.monotonic() > deadline:
            tail = "\n".join(child.log.read_text(errors="replace").splitlines()[-15:])
            raise BenchmarkError(f"{child.name} was not {what} within {timeout_seconds:.0f} s", tail, "Try again")
        time.sleep(0.1)

