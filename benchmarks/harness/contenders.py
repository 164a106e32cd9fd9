"""Who is measured: recstream's worker and the three baselines, each as one command reading one log."""

import subprocess
import sys
import venv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.harness.broker import free_port
from benchmarks.harness.processes import ROOT, BenchmarkError
from streams.topics import RECOMMENDATIONS

QUIX: Final = "quixstreams==3.28.1"
QUIX_VENV: Final = ROOT / ".venv-quix"
COMMAND: Final = (sys.executable, "-c", "from streams.cli import main; main()")
WORKER: Final = (*COMMAND, "worker")
TRAINER: Final = (*COMMAND, "trainer", "--device", "cpu")


@dataclass(frozen=True, slots=True)
class Contender:
    """A command to measure: what it is called, how it is started, where its answers go."""

    name: str
    title: str
    argv: tuple[str, ...]
    output: str
    env: Mapping[str, str] = field(default_factory=dict)
    http_port: int = 0


@dataclass(frozen=True, slots=True)
class Place:
    """What a contender is told: broker, partitions, the model version's directory, a scratch directory."""

    brokers: str
    partitions: int
    version: Path
    directory: Path

    @property
    def fingerprint(self) -> int:
        """The model version's fingerprint, as user states name it."""
        return int(self.version.name.rpartition("-")[2], 16)


def recstream(place: Place, run: str, state: Path | None = None, **settings: str) -> Contender:
    """One `recstream worker` with a consumer group of its own; `settings` are RECSTREAM_* without the prefix."""
    port = free_port()
    env = {
        "brokers": place.brokers,
        "partitions": str(place.partitions),
        "registry": str(place.version.parent),
        "state_dir": str(state or place.directory / f"state-{run}"),
        "http_port": str(port),
        "app_id": f"recstream-{run}",
        **settings,
    }
    named = {f"RECSTREAM_{name.upper()}": value for name, value in env.items()}
    title = "recstream: GRU(128), state in a changelog"
    return Contender("recstream", title, WORKER, RECOMMENDATIONS, named, port)


def recstream_neural(place: Place, run: str) -> Contender:
    """The worker ranking by the model alone, as every other contender does."""
    return recstream(place, f"neural-{run}", fusion="false")


def recstream_fused(place: Place, run: str) -> Contender:
    """The worker as it ships: transition memory, fusion and live weights on top of the model."""
    return recstream(place, f"fused-{run}", fusion="true")


def baseline(name: str, title: str, place: Place, run: str, python: str = sys.executable) -> Contender:
    """A program of `benchmarks.baselines`; its output topic is named after the run."""
    output = f"out-{name}-{run}"
    options = {
        "brokers": place.brokers,
        "output": output,
        "group": f"{name}-{run}",
        "partitions": str(place.partitions),
        "version": str(place.version),
        "state-dir": str(place.directory / f"{name}-{run}"),
    }
    argv = [python, "-m", f"benchmarks.baselines.{name}"]
    return Contender(name, title, (*argv, *(f"--{key}={value}" for key, value in options.items())), output)


def plain_faust(place: Place, run: str) -> Contender:
    """The Faust agent anyone would write."""
    return baseline("plain_faust", "plain Faust: GRU(128), Table", place, run)


def bare_loop(place: Place, run: str) -> Contender:
    """Aiokafka and the model, no framework, no durable state."""
    return baseline("bare_loop", "bare aiokafka loop: GRU(128), state lost on a crash", place, run)


def quix_app(place: Place, run: str) -> Contender:
    """Quix Streams without a model, in a virtual environment of its own."""
    return baseline("quix_app", "Quix Streams: state in a changelog, no model", place, run, str(quix_python()))


def quix_python() -> Path:
    """The interpreter of `.venv-quix`, made on first use and kept.

    Raises:
        BenchmarkError: pip cannot install Quix Streams.
    """
    python = QUIX_VENV / "bin" / "python"
    probe = f"import importlib.metadata as m; raise SystemExit(m.version('quixstreams') != '{QUIX.partition('==')[2]}')"
    if python.exists() and not subprocess.run([python, "-c", probe], capture_output=True, check=False).returncode:
        return python
    venv.create(QUIX_VENV, with_pip=True, clear=True)
    installed = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", QUIX], capture_output=True, text=True, check=False
    )
    if installed.returncode:
        what = f"{QUIX} could not be installed"
        raise BenchmarkError(what, installed.stderr[-500:], "Leave it out: --skip quix")
    return python
