"""How fast a fresh worker gets its users back: from the changelog, and from its own snapshot.

The changelog holds one state record per user. A worker without local files reads all of it; it is stopped, which writes
a snapshot, and a worker with that snapshot starts. Users per second is what the worker itself reports
(`recstream_restore_users` over `recstream_restore_seconds`): reading, checking, decoding and placing in its arenas.
Start-up of the process and joining the group are not in it; the time from start to ready, which has them, is given too.
"""

import re
import time
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Final

import numpy as np
import typer

from benchmarks.harness.bench import Bench, bench, http_get
from benchmarks.harness.contenders import recstream
from benchmarks.harness.machine import describe
from benchmarks.harness.processes import BenchmarkError
from benchmarks.harness.program import OUT, Json, Out, conclude, run
from benchmarks.harness.report import console, save, table
from benchmarks.harness.seeding import seed_states

SOURCES: Final = ("changelog", "snapshot")
PAST_EVENTS: Final = 200


def main(
    users: Annotated[int, typer.Option(min=1_000, help="users with state")] = 200_000,
    repeats: Annotated[int, typer.Option(min=1, help="restores of each kind; the median counts")] = 3,
    out: Out = OUT,
    json: Json = False,
) -> None:
    """Measure restoring users from the changelog and from a local snapshot.

    Runs on real Kafka where KAFKA_HOME is set, else on the embedded broker.
    """
    with bench() as rig:
        machine = describe(rig.broker, rig.cores)
        with console.status(f"writing {users:,} states into the changelog"):
            past = np.full(users, PAST_EVENTS)
            size = seed_states(rig.broker.address, np.arange(users), past, rig.place.fingerprint, rig.place.partitions)
        runs: dict[str, list[dict[str, float]]] = {source: [] for source in SOURCES}
        for repeat in range(repeats):
            state = rig.place.directory / f"state-restore-{repeat}"
            for source in SOURCES:
                with console.status(f"{source}, run {repeat}"):
                    runs[source].append(_restore(rig, state, f"restore-{repeat}", source, users))
                console.print(f"[dim]{source}: {runs[source][-1]['users_per_second']:,.0f} users/s")
    result = {
        **{
            f"{source}_users_per_second": round(median(run["users_per_second"] for run in runs[source]))
            for source in SOURCES
        },
        **{
            f"{source}_ready_seconds": round(median(run["ready_seconds"] for run in runs[source]), 2)
            for source in SOURCES
        },
        "users": users,
        "record_bytes": size,
        "runs": runs,
        "machine": machine,
    }
    rows = [
        (source, f"{result[f'{source}_users_per_second']:,}", f"{result[f'{source}_ready_seconds']:.1f}")
        for source in SOURCES
    ]
    table(
        f"Restoring {users:,} users of {size} bytes, {machine['broker']}", ("from", "users/s", "start to ready s"), rows
    )
    save("restore", result, out, lambda axes: _draw(axes, result))
    conclude(result, json)


def _restore(rig: Bench, state: Path, run_name: str, source: str, users: int) -> dict[str, float]:
    """Start a worker on `state`, read what it says about its restore, and stop it."""
    worker = recstream(rig.place, run_name, state=state)
    started = time.monotonic()
    with rig.resumed(worker) as process:
        rig.wait_ready(worker, process)
        ready = time.monotonic() - started
        metrics = http_get(worker.http_port, "/metrics")[1]
    restored, seconds = (_gauge(metrics, f"recstream_restore_{what}", source) for what in ("users", "seconds"))
    if restored != users:
        what = f"The worker restored {restored:,.0f} of {users:,} users from the {source}"
        raise BenchmarkError(what, process.log_tail())
    figures = {"users_per_second": restored / seconds, "seconds": seconds, "ready_seconds": ready}
    return {name: round(value, 3) for name, value in figures.items()}


def _gauge(metrics: str, name: str, source: str) -> float:
    found = re.search(rf'^{name}{{source="{source}"}} (\S+)$', metrics, re.MULTILINE)
    return float(found.group(1)) if found else 0.0


def _draw(axes: Any, result: dict[str, Any]) -> None:
    values = [result[f"{source}_users_per_second"] for source in SOURCES]
    bars = axes.bar(SOURCES, values, width=0.5)
    axes.bar_label(bars, [f"{value:,}" for value in values], padding=3)
    axes.set_title(f"Restoring {result['users']:,} users of {result['record_bytes']} bytes")
    axes.set(xlabel="source", ylabel="users per second", ylim=(0, 1.15 * max(values)))


if __name__ == "__main__":
    run(main)
