"""A real worker process for the end-to-end tests: signals, metrics, health, and what it printed."""

import os
import signal
import socket
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families

from streams.children import Child


class Worker:
    """One `recstream worker` process."""

    def __init__(self, log: Path, command: Sequence[str], env: Mapping[str, str]) -> None:
        self.port, self.log = free_port(), log
        self._output = log.open("ab")
        self._child = Child(
            [sys.executable, *command],
            {**env, "RECSTREAM_HTTP_PORT": str(self.port)},
            self._output,
            grace_seconds=20,
        )

    @property
    def pid(self) -> int:
        """Process id."""
        return self._child.pid

    def poll(self) -> int | None:
        """Exit status, None while it runs."""
        return self._child.poll()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self._child.kill()
        self._child.wait(10)

    def terminate(self) -> None:
        """SIGTERM."""
        self._child.terminate()

    def stop(self, seconds: float = 30) -> int:
        """SIGTERM; returns the exit status."""
        self.terminate()
        return self.ended(seconds)

    def ended(self, seconds: float) -> int:
        """Wait for its end; returns the exit status."""
        status = self._child.wait(seconds)
        if status is None:
            pytest.fail(f"worker {self.pid} did not end in {seconds} s\n{self.output()}")
        return status

    def close(self) -> None:
        """End it, whatever state it is in."""
        if self._child.poll() is None:
            self._child.kill()
            with suppress(ProcessLookupError):
                self.signal(signal.SIGCONT)
        self._child.stop()
        self._output.close()

    def output(self) -> str:
        """The end of what it printed."""
        return self.log.read_text(errors="replace")[-6000:]

    def ready(self) -> bool:
        """Whether it says it is ready."""
        with (
            suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health/ready", timeout=2) as reply,
        ):
            return bool(reply.status == 200)
        return False

    def held(self) -> list[int]:
        """The partitions it holds, none while it is not ready."""
        with (
            suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health/ready", timeout=2) as reply,
        ):
            return list(orjson.loads(reply.read())["partitions"])
        return []

    def wait_ready(self, seconds: float = 120) -> "Worker":
        """Wait until it is ready."""
        wait_for(lambda: self.ready() or self.poll() is not None, seconds, lambda: f"not ready\n{self.output()}")
        assert self.poll() is None, self.output()
        return self

    def applied(self) -> float:
        """Events this process has applied to users' states."""
        return sum(value for name, value in self.metrics().items() if "events_total{outcome=applied" in name)

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics: `name` or `name{label=value,...}` -> value."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as reply:
            text = reply.read().decode()
        found = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
                found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
        return found


def wait_for(condition: Callable[[], bool], seconds: float, what: Callable[[], str], every: float = 0.1) -> None:
    """Wait until a condition holds; fails with `what()`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds} s: {what()}")
        time.sleep(every)


def free_port() -> int:
    """A TCP port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
