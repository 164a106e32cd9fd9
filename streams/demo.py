"""`recstream demo`: everything at once on one machine, with real events, to see what the system does.

An embedded broker, a first model fitted on the oldest half of MovieLens-100K, a worker and a trainer; the worker
catches up on that half, then the rest is replayed live while a table shows speed, latency, hit rates, the versions that
the trainer makes meanwhile, and some users' recommendations.
"""

import asyncio
import signal
import socket
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

import numpy as np
from rich.live import Live

from models.tables import Events
from streams.broker import EmbeddedBroker
from streams.children import Child
from streams.console import print_json, progress_bar, screen
from streams.datasets import ML_100K, read_source
from streams.demo_table import table
from streams.demo_watch import Watch
from streams.endpoints import port_problem
from streams.errors import BrokerError, SettingsError
from streams.fitting import fit_and_publish
from streams.replay import produce_catalogue, produce_events
from streams.settings import PREFIX, Settings
from streams.supervisor import environment
from streams.topics import create_topics

HISTORY: Final = 0.5  # oldest share of the events: fitted on and caught up with before the live part
LIVE_RATE: Final = 1000.0  # events per second where no speed is asked for: slow enough to watch
READY_SECONDS: Final = 120.0
_QUICK_GROUP_SECONDS: Final = 6.0  # the embedded broker lets a group wait for the whole rebalance time-out
# Short passes, often: one takes 2 seconds of a core, so that even a demo of half a minute shows some versions.
_TRAINING: Final = {
    "train_every_events": 2_500,
    "train_recent_events": 4_000,
    "train_reservoir_events": 4_000,
    "train_epochs": 2,
}


@dataclass(frozen=True, slots=True)
class _Process:
    """A process of the demo, and where it logs."""

    name: str
    child: Child
    log: Path
    http_port: int

    def check(self) -> None:
        """Make sure that it runs.

        Raises:
            BrokerError: it has ended.
        """
        if self.child.poll() is not None:
            self.fail("ended")

    def fail(self, verb: str) -> NoReturn:
        """Give up on a process that did not do as it should; the end of its log says why.

        Raises:
            BrokerError: always.
        """
        said = self.log.read_text(errors="replace").strip().splitlines()[-3:]
        raise BrokerError(
            what=f"the demo's {self.name} {verb}",
            why=" / ".join(said) or "it said nothing",
            fix=f"is port {self.http_port} free? try `recstream demo --http-port 7066`",
        )


def run_demo(settings: Settings, events: int | None, speed: float | None, json: bool) -> None:
    """Run the demo to its end, or until Ctrl-C.

    Args:
        settings: all settings; broker and, unless set, state, registry, trainer's port and cadence are the demo's own.
        events: end after so many live events; None replays all of them.
        speed: factor on the data's own clock; None replays `LIVE_RATE` events per second.
        json: print the summary as one JSON object as the last line of standard output.

    Raises:
        RecstreamError: the broker, the data, the worker or the trainer is not to be had.
    """
    console = screen()
    with ExitStack() as stack:
        stack.enter_context(_unwinding_on_term())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="recstream-demo-")))
        source = read_source(ML_100K, settings)
        broker = stack.enter_context(EmbeddedBroker())
        settings = _own(settings, broker.bootstrap, folder)
        _require_free_ports(settings)  # said before the minute that fitting takes
        create_topics(settings)
        console.print(f"broker at {broker.bootstrap}, {len(source.events):,} MovieLens events")
        cut = round(len(source.events) * HISTORY)
        count = len(source.events) - cut if events is None else min(events, len(source.events) - cut)
        fitted = fit_and_publish(settings, source.events, until=HISTORY)
        console.print(f"model {fitted['model_version']} fitted on {fitted['events']:,} events in {fitted['seconds']} s")

        processes = [
            _start(stack, "worker", settings, settings.http_port, folder),
            _start(stack, "trainer", settings, settings.trainer_http_port, folder),
        ]
        for process in processes:
            _wait_ready(settings, process)
        if settings.page:
            console.print(f"live page at http://{settings.http_host}:{settings.http_port}/")
        history, live = _part(source.events, 0, cut), _part(source.events, cut, cut + count)
        summary = asyncio.run(_stream(settings, processes, history, live, speed, source.titles))
    console.print(
        f"{summary['events']:,} live events, {summary['events_per_second']:,.0f}/s, latency p50 "
        f"{summary['latency_ms']['p50']} ms, p99 {summary['latency_ms']['p99']} ms; hit rate@{settings.top_k} "
        f"{summary['hit_rate_at_10']:.4f}, popularity {summary['popularity_hit_rate_at_10']:.4f}; "
        f"{len(summary['versions'])} model versions served"
    )
    if json:
        print_json(summary)


def _own(settings: Settings, bootstrap: str, folder: Path) -> Settings:
    mine: dict[str, Any] = {
        "brokers": bootstrap,
        "session_timeout_seconds": _QUICK_GROUP_SECONDS,
        "rebalance_timeout_seconds": _QUICK_GROUP_SECONDS,
        "security_protocol": "PLAINTEXT",
    }
    unless_set = {
        "registry": str(folder / "registry"),
        "state_dir": folder / "state",
        "trainer_http_port": _free_port(settings.http_host),
        **_TRAINING,
    }
    mine |= {name: value for name, value in unless_set.items() if name not in settings.model_fields_set}
    return settings.model_copy(update=mine)


def _require_free_ports(settings: Settings) -> None:
    """Make sure that worker and trainer can listen.

    Raises:
        SettingsError: one of them cannot.
    """
    for name in ("http_port", "trainer_http_port"):
        port = getattr(settings, name)
        if problem := port_problem(settings.http_host, port):
            what = f"the demo cannot listen on {settings.http_host}:{port}"
            fix = "try `recstream demo --http-port 7066`" if name == "http_port" else f"set {PREFIX}{name.upper()}"
            raise SettingsError(what, problem, fix)


def _start(stack: ExitStack, name: str, settings: Settings, http_port: int, folder: Path) -> _Process:
    """Run a command of recstream until the stack unwinds."""
    path = folder / f"{name}.log"
    log = stack.enter_context(path.open("wb"))
    child = Child([sys.executable, "-m", "streams.cli", name], environment(settings), output=log)
    stack.callback(child.stop)
    return _Process(name, child, path, http_port)


def _part(events: Events, start: int, stop: int) -> Events:
    return events.take(np.arange(start, stop))


def _wait_ready(settings: Settings, process: _Process) -> None:
    """Wait until a process holds its partitions.

    Raises:
        BrokerError: it ended, or takes too long.
    """
    url = f"http://{settings.http_host}:{process.http_port}/health/ready"
    started = time.monotonic()
    with progress_bar(f"{process.name} joins its group") as bar:
        while True:
            try:
                with urllib.request.urlopen(url, timeout=1):
                    return
            except (urllib.error.URLError, OSError):
                pass
            waited = time.monotonic() - started
            bar.to(round(waited), note="s")
            process.check()
            if waited > READY_SECONDS:
                process.fail(f"was not ready in {READY_SECONDS:.0f} s")
            time.sleep(0.2)


async def _stream(
    settings: Settings,
    processes: list[_Process],
    history: Events,
    live: Events,
    speed: float | None,
    titles: dict[str, str],
) -> dict[str, Any]:
    await produce_catalogue(settings, titles)
    async with Watch(settings, titles) as watch:
        with progress_bar("worker catches up", total=len(history), unit="events") as bar:
            async with _sending(produce_events(settings, history)) as sending:
                while await watch.look() < len(history):
                    bar.to(watch.answered)
                    _check(sending, processes)
            bar.to(watch.answered)
        await watch.begin()
        rate = LIVE_RATE if speed is None else None
        with Live(table(watch), console=screen(), refresh_per_second=4) as display:
            async with _sending(produce_events(settings, live, rate=rate, speed=speed)) as sending:
                while await watch.look() < len(live):
                    _check(sending, processes)
                    display.update(table(watch))
            await watch.finish()
            display.update(table(watch))
        return watch.summary()


@asynccontextmanager
async def _sending(work: Coroutine[Any, Any, Any]) -> "AsyncIterator[asyncio.Task[Any]]":
    """Send beside the block; what is not sent at its end is not sent."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _check(sending: "asyncio.Task[Any]", processes: list[_Process]) -> None:
    if sending.done():
        sending.result()
    for process in processes:
        process.check()


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def _unwinding_on_term() -> Iterator[None]:
    """Let TERM stop everything the demo started, on the way that Ctrl-C takes."""
    asked = False

    def leave(number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # started in the background by a shell
            sys.exit(128 + number)
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    except KeyboardInterrupt:
        if asked:
            raise SystemExit(128 + signal.SIGTERM) from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
