"""Child processes on chosen cores, always stopped: on success, on an error and on Ctrl-C or TERM."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

import psutil  # type: ignore[import-untyped]

from state.errors import RecstreamError
from streams.children import Child

ROOT: Final = Path(__file__).resolve().parents[2]
_CPUCLOCK_SCHED: Final = 2  # the clock of another process, as clock_getcpuclockid(3) makes it
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
class Measured:
    """A running child process, what to call it and where it logs."""

    name: str
    child: Child
    log: Path

    def cpu_seconds(self) -> float:
        """CPU time of the process so far, in nanosecond steps; 0 when it has ended."""
        try:
            return time.clock_gettime(((~self.child.pid) << 3) | _CPUCLOCK_SCHED)
        except OSError:
            return 0.0

    def resident_bytes(self) -> int:
        """Resident memory of the process; 0 when it has ended."""
        try:
            return int(psutil.Process(self.child.pid).memory_info().rss)
        except psutil.Error:
            return 0

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Stop the process for the block, and let it go on."""
        os.kill(self.child.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.child.pid, signal.SIGCONT)

    def log_tail(self, lines: int = 15) -> str:
        """The end of what it printed."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def check(self) -> None:
        """Make sure that the process still runs.

        Raises:
            BenchmarkError: It has ended; the end of its log is the reason given.
        """
        code = self.child.poll()
        if code is not None:
            what = f"{self.name} ended early with code {code}"
            raise BenchmarkError(what, self.log_tail())


@contextmanager
def pinned(cores: Sequence[int]) -> Iterator[None]:
    """Run the block on these cores; what it starts stays on them, every thread of it, without a race."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def running(
    name: str, argv: Sequence[str], *, cores: Sequence[int], log: Path, env: Mapping[str, str] | None = None
) -> Iterator[Measured]:
    """Run a command pinned to `cores`; TERM, then KILL, at the end of the block or when this process is killed."""
    with log.open("ab") as sink, pinned(cores):
        child = Child(argv, env={**os.environ, **ONE_THREAD, **(env or {})}, output=sink, grace_seconds=20)
    try:
        yield Measured(name, child, log)
    finally:
        child.stop()


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


def wait_until(ready: Callable[[], bool], measured: Measured, timeout_seconds: float, what: str) -> None:
    """Poll until `ready()` is true.

    Raises:
        BenchmarkError: The process ended, or the time is over.
    """
    deadline = time.monotonic() + timeout_seconds
    while not ready():
        measured.check()
        if time.monotonic() > deadline:
            late = f"{measured.name} was not {what} in {timeout_seconds:.0f} s"
            raise BenchmarkError(late, measured.log_tail())
        time.sleep(0.05)
