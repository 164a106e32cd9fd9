"""Run N worker processes on one host: restart what dies, stop all cleanly."""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from pydantic import SecretStr

from streams.children import Child
from streams.logs import set_up
from streams.secrets import SUFFIX
from streams.settings import PREFIX, Settings

log = logging.getLogger(__name__)

FIRST_DELAY_SECONDS: Final = 1.0
LONGEST_DELAY_SECONDS: Final = 30.0
STEADY_SECONDS: Final = 60.0  # a worker that ran so long starts over with the shortest delay
MAX_QUICK_DEATHS: Final = 10  # about four minutes of trying: then it is not the broker's restart any more
GRACE_SECONDS: Final = 45.0  # flush, snapshot and leave the group; then SIGKILL
USAGE_STATUS: Final = 2
_NOT_BEGUN: Final = -signal.SIGTERM  # a worker that took anything handles the signal
_POLL_SECONDS: Final = 0.1


@dataclass(slots=True)
class _Worker:
    """One slot: the process in it, or when the next one starts."""

    index: int
    child: Child | None = None
    started_at: float = 0.0
    start_at: float = 0.0
    quick_deaths: int = 0


@dataclass(slots=True)
class Supervisor:
    """Keeps `count` processes running until `stop` is called.

    Args:
        command: Gives the program and arguments of worker i.
        env: Their environment.
        count: How many.
    """

    command: Callable[[int], Sequence[str]]
    env: dict[str, str]
    count: int
    first_delay_seconds: float = FIRST_DELAY_SECONDS
    steady_seconds: float = STEADY_SECONDS
    grace_seconds: float = GRACE_SECONDS
    _workers: list[_Worker] = field(default_factory=list)
    _stops: int = 0

    def stop(self) -> None:
        """Ask for a clean stop; asking a second time kills."""
        self._stops += 1

    def run(self) -> int:
        """Run until stopped.

        Returns:
            0: stopped on request and every worker ended cleanly. 1: a worker failed while stopping, was down when the
            request came, or died `MAX_QUICK_DEATHS` times in a row. 2: the workers refuse their settings.
        """
        self._workers = [_Worker(index) for index in range(self.count)]
        verdict = 0
        try:
            while not self._stops and not verdict:
                for worker in self._workers:
                    verdict = verdict or self._tend(worker)
                time.sleep(_POLL_SECONDS)
        finally:
            down = any(worker.child is None and worker.quick_deaths for worker in self._workers)
            stopped = self._stop_all()
        return verdict or stopped or int(down)

    def pids(self) -> list[int]:
        """Process ids of the workers that run now."""
        return [worker.child.pid for worker in self._workers if worker.child is not None]

    def _tend(self, worker: _Worker) -> int:
        """Start, restart or leave alone. Returns the exit status to give up with, 0 to go on."""
        now = time.monotonic()
        if worker.child is None:
            if now >= worker.start_at:
                worker.child = Child(self.command(worker.index), self.env, grace_seconds=self.grace_seconds)
                worker.started_at = now
                log.info("worker %d runs as process %d", worker.index, worker.child.pid)
            return 0
        status = worker.child.poll()
        if status is None:
            return 0
        worker.child = None
        if status == USAGE_STATUS:  # the next one would read the same settings
            log.error("worker %d refuses its settings", worker.index)
            return USAGE_STATUS
        worker.quick_deaths = 0 if now - worker.started_at >= self.steady_seconds else worker.quick_deaths + 1
        if worker.quick_deaths >= MAX_QUICK_DEATHS:
            log.error("worker %d died %d times in a row; giving up", worker.index, worker.quick_deaths)
            return 1
        delay = min(LONGEST_DELAY_SECONDS, self.first_delay_seconds * 2 ** max(0, worker.quick_deaths - 1))
        worker.start_at = now + delay
        log.warning("worker %d ended with %s; next start in %.1f s", worker.index, _words(status), delay)
        return 0

    def _stop_all(self) -> int:
        children = [worker.child for worker in self._workers if worker.child is not None]
        asked = self._stops
        for child in children:
            child.terminate()
        deadline = time.monotonic() + self.grace_seconds
        while any(child.poll() is None for child in children):
            if time.monotonic() > deadline or self._stops > max(1, asked):
                for child in children:
                    child.kill()
            time.sleep(_POLL_SECONDS)
        failed = [(child.pid, status) for child in children if (status := child.poll()) not in (0, _NOT_BEGUN)]
        for pid, status in failed:
            log.error("process %d ended with %s", pid, _words(status or 0))
        return 1 if failed else 0


def supervise(settings: Settings, workers: int) -> int:
    """Run `recstream worker` N times, worker i with `--index i`, until SIGTERM or SIGINT.

    Returns:
        The exit status of the command: see `Supervisor.run`; 130 after SIGINT and a clean stop.
    """
    set_up(settings)
    supervisor = Supervisor(
        lambda index: [sys.executable, "-m", "streams.cli", "worker", "--index", str(index)],
        {**os.environ, **environment(settings)},
        workers,
    )
    received: list[int] = []

    def on_signal(number: int, _frame: object) -> None:
        received.append(number)
        supervisor.stop()

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        status = supervisor.run()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 130 if status == 0 and received[:1] == [signal.SIGINT] else status


def environment(settings: Settings) -> dict[str, str]:
    """The settings as environment variables, for a child process: options given to us hold for it too.

    A secret that came in a file is not among them: the child reads the file.
    """
    values: dict[str, str] = {}
    for name in settings.model_fields_set:
        value = getattr(settings, name)
        if value is None or getattr(settings, name + SUFFIX, None):
            continue
        plain = value.get_secret_value() if isinstance(value, SecretStr) else value
        values[PREFIX + name.upper()] = str(plain)
    return values


def _words(status: int) -> str:
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
