"""`recstream demo`: everything at once on one machine, with real events, to see what the system does.

An embedded broker, a first model fitted on the oldest half of MovieLens-100K, a worker; the worker catches up on that
half, then the rest is replayed live while a table shows speed, latency, hit rates and some users' recommendations.
"""

import asyncio
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.live import Live

from models.tables import Events
from streams.broker import EmbeddedBroker
from streams.children import Child
from streams.console import print_json, progress_bar, screen
from streams.datasets import ML_100K, read_source
from streams.demo_watch import Watch, table
from streams.errors import BrokerError
from streams.fitting import fit_and_publish
from streams.replay import produce_catalogue, produce_events
from streams.settings import Settings
from streams.supervisor import environment
from streams.topics import create_topics

HISTORY: Final = 0.5  # oldest share of the events: fitted on and caught up with before the live part
LIVE_RATE: Final = 1000.0  # events per second where no speed is asked for: slow enough to watch
READY_SECONDS: Final = 90.0
_QUICK_GROUP_SECONDS: Final = 6.0  # the embedded broker lets a group wait for the whole rebalance time-out


def run_demo(settings: Settings, events: int | None, speed: float | None, json: bool) -> None:
    """Run the demo to its end, or until Ctrl-C.

    Args:
        settings: all settings; broker and, unless set, state, registry and HTTP port are the demo's own.
        events: end after so many live events; None replays all of them.
        speed: factor on the data's own clock; None replays `LIVE_RATE` events per second.
        json: print the summary as one JSON object as the last line of standard output.

    Raises:
        RecstreamError: the broker, the data or the worker is not to be had.
    """
    console = screen()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="recstream-demo-")))
        source = read_source(ML_100K, settings)
        broker = stack.enter_context(EmbeddedBroker())
        settings = _own(settings, broker.bootstrap, folder)
        create_topics(settings)
        console.print(f"broker at {broker.bootstrap}, {len(source.events):,} MovieLens events")
        cut = round(len(source.events) * HISTORY)
        count = len(source.events) - cut if events is None else min(events, len(source.events) - cut)
        fitted = fit_and_publish(settings, source.events, until=HISTORY)
        console.print(f"model {fitted['model_version']} fitted on {fitted['events']:,} events in {fitted['seconds']} s")

        log = stack.enter_context((folder / "worker.log").open("wb"))
        command = [sys.executable, "-m", "streams.cli", "worker"]
        worker = Child(command, environment(settings), output=log)
        stack.callback(worker.stop)
        _wait_ready(settings, worker, folder / "worker.log")
        history, live = _part(source.events, 0, cut), _part(source.events, cut, cut + count)
        summary = asyncio.run(_stream(settings, history, live, speed, source.titles))
    console.print(
        f"{summary['events']:,} live events, {summary['events_per_second']:,.0f}/s, latency p50 "
        f"{summary['latency_ms']['p50']} ms, p99 {summary['latency_ms']['p99']} ms; hit rate@{settings.top_k} "
        f"{summary['hit_rate_at_10']:.4f}, popularity {summary['popularity_hit_rate_at_10']:.4f}"
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
    if "registry" not in settings.model_fields_set:
        mine["registry"] = str(folder / "registry")
    if "state_dir" not in settings.model_fields_set:
        mine["state_dir"] = folder / "state"
    return settings.model_copy(update=mine)


def _part(events: Events, start: int, stop: int) -> Events:
    return events.take(np.arange(start, stop))


def _wait_ready(settings: Settings, worker: Child, log: Path) -> None:
    """Wait until the worker holds its partitions.

    Raises:
        BrokerError: it ended, or takes too long.
    """
    url = f"http://{settings.http_host}:{settings.http_port}/health/ready"
    started = time.monotonic()
    with progress_bar("worker joins its group") as bar:
        while True:
            try:
                with urllib.request.urlopen(url, timeout=1):
                    return
            except (urllib.error.URLError, OSError):
                pass
            waited = time.monotonic() - started
            bar.to(round(waited), note="s")
            if worker.poll() is not None or waited > READY_SECONDS:
                said = log.read_text(errors="replace").strip().splitlines()[-3:]
                what = "the demo's worker did not start"
                raise BrokerError(
                    what,
                    " / ".join(said) or f"not ready after {READY_SECONDS:.0f} s",
                    f"is port {settings.http_port} free? try `recstream demo --http-port 7066`",
                )
            time.sleep(0.2)


async def _stream(
    settings: Settings, history: Events, live: Events, speed: float | None, titles: dict[str, str]
) -> dict[str, Any]:
    await produce_catalogue(settings, titles)
    async with Watch(settings, titles) as watch:
        with progress_bar("worker catches up", total=len(history), unit="events") as bar:
            sending = asyncio.create_task(produce_events(settings, history))
            while await watch.look() < len(history):
                bar.to(watch.answered)
                if sending.done():
                    sending.result()
            bar.to(watch.answered)
        await watch.begin()
        rate = LIVE_RATE if speed is None else None
        sending = asyncio.create_task(produce_events(settings, live, rate=rate, speed=speed))
        with Live(table(watch), console=screen(), refresh_per_second=4) as display:
            while await watch.look() < len(live):
                if sending.done():
                    sending.result()
                display.update(table(watch))
            await watch.finish()
            display.update(table(watch))
        return watch.summary()
