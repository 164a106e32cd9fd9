"""Events per second of one process on one core: recstream against three baselines.

All contenders read the same log from the same broker, one after another, the quick ones several times in turn. The log
is there before they start. Speed is taken from the outside: how the output topic's end offsets grow between 10% and 90%
of the events answered, so starting, joining the group, compiling and the last partly filled batches are left out. Slow
contenders answer a prefix of the log. One unmeasured run of the bare loop warms the broker first.
"""

from collections.abc import Iterable
from dataclasses import asdict
from statistics import median
from typing import Annotated, Any

import typer

from benchmarks.harness.bench import CONTENDERS, Bench, bench
from benchmarks.harness.events import load, make_events
from benchmarks.harness.machine import describe
from benchmarks.harness.measure import Speed
from benchmarks.harness.processes import BenchmarkError
from benchmarks.harness.program import OUT, Json, Out, conclude, run
from benchmarks.harness.report import console, save, table

OURS = "recstream"
FUSED = "recstream_fused"
PREFIX = {
    OURS: 1.0,
    FUSED: 1.0,
    "bare_loop": 1.0,
    "quix": 0.25,
    "plain_faust": 0.025,
}  # share of the log each answers in one run
REPEATED = (OURS, FUSED, "bare_loop", "quix")
TITLES = {
    OURS: "recstream\nGRU(128), changelog",
    FUSED: "recstream, everything on\nGRU(128), changelog",
    "bare_loop": "bare aiokafka loop\nGRU(128), state in memory",
    "quix": "Quix Streams\nno model, changelog",
    "plain_faust": "plain Faust\nGRU(128), changelog",
}


def main(
    events: Annotated[int, typer.Option(min=10_000, help="events in the log")] = 600_000,
    users: Annotated[int, typer.Option(min=1, help="users in the log")] = 20_000,
    repeats: Annotated[int, typer.Option(min=1, help="runs of each quick contender; the median counts")] = 3,
    skip: Annotated[
        list[str] | None, typer.Option(help="contenders to leave out: recstream_fused, bare_loop, quix, plain_faust")
    ] = None,
    out: Out = OUT,
    json: Json = False,
) -> None:
    """Measure the throughput of recstream, a bare aiokafka loop, Quix Streams and plain Faust on one log.

    Runs on real Kafka where KAFKA_HOME is set, else on the embedded broker. About five minutes. The mixing weights
    learn from every one of the first 65,536 events and from one in 64 later: a shorter log shows a dearer start only.
    """
    unknown = set(skip or ()) - set(CONTENDERS)
    if unknown:
        what = f"{', '.join(sorted(unknown))}: choose from {', '.join(CONTENDERS)}"
        raise typer.BadParameter(what, param_hint="--skip")
    names = [name for name in CONTENDERS if name not in (skip or ())]
    with bench() as rig:
        machine = describe(rig.broker, rig.cores)
        with console.status("loading the log"):
            load(rig.broker.address, make_events(events, users), rig.place.partitions)
        _measure(rig, "bare_loop", "warm-up", events)
        runs, failed = _all_runs(rig, names, events, repeats)
    result = _result(runs, failed, {"events": events, "users": users, "repeats": repeats}, machine)
    _show(result)
    save("throughput", result, out, lambda axes: _draw(axes, result["contenders"]))
    conclude(result, json)


def _all_runs(
    rig: Bench, names: Iterable[str], events: int, repeats: int
) -> tuple[dict[str, list[Speed]], dict[str, str]]:
    runs: dict[str, list[Speed]] = {}
    failed: dict[str, str] = {}
    for repeat in range(repeats):
        for name in names:
            if name in failed or (repeat and name not in REPEATED):
                continue
            try:
                speed = _measure(rig, name, str(repeat), max(round(events * PREFIX[name]), 5_000))
            except BenchmarkError as error:
                if name == OURS:
                    raise
                failed[name] = ": ".join((error.what, *error.why.splitlines()[-1:]))
                console.print(f"[yellow]{name} left out: {failed[name]}")
                continue
            runs.setdefault(name, []).append(speed)
            console.print(f"[dim]{name}: {speed.events_per_second:,.0f} events/s")
    return runs, failed


def _measure(rig: Bench, name: str, run_name: str, target: int) -> Speed:
    with console.status(f"{name}, run {run_name}: {target:,} events"):
        return rig.speed(CONTENDERS[name](rig.place, run_name), target)


def _result(
    runs: dict[str, list[Speed]], failed: dict[str, str], settings: dict[str, int], machine: dict[str, Any]
) -> dict[str, Any]:
    speed = {name: median(run.events_per_second for run in several) for name, several in runs.items()}
    ours = speed.get(OURS)

    def ratio(name: str) -> float | None:
        return round(ours / speed[name], 3) if ours and name in speed else None

    return {
        "events_per_second": round(ours) if ours else None,
        "vs_plain_faust": ratio("plain_faust"),
        "vs_bare_loop": ratio("bare_loop"),
        "vs_quix": ratio("quix"),
        "fused_events_per_second": round(speed[FUSED]) if FUSED in speed else None,
        "fused_vs_neural": round(speed[FUSED] / ours, 3) if ours and FUSED in speed else None,
        "contenders": {
            name: {
                "events_per_second": round(speed[name]),
                "cpu_us_per_event": round(median(run.cpu_us_per_event for run in several), 2),
                "resident_mb": round(median(run.resident_mb for run in several)),
                "runs": [{key: round(value, 2) for key, value in asdict(run).items()} for run in several],
            }
            for name, several in runs.items()
        },
        "left_out": failed,
        **settings,
        "machine": machine,
    }


def _show(result: dict[str, Any]) -> None:
    contenders = result["contenders"]
    ours = result["events_per_second"]
    rows = [
        (
            TITLES[name].replace("\n", ": "),
            f"{each['events_per_second']:,}",
            f"{each['cpu_us_per_event']:.1f}",
            f"{each['resident_mb']:,}",
            f"{ours / each['events_per_second']:.2f}x" if ours else "",
        )
        for name, each in contenders.items()
    ]
    title = f"One process on one core, {result['machine']['broker']}"
    table(title, ("contender", "events/s", "CPU us/event", "memory MB", "recstream is"), rows)


def _draw(axes: Any, contenders: dict[str, Any]) -> None:
    names = [name for name in TITLES if name in contenders][::-1]
    values = [contenders[name]["events_per_second"] for name in names]
    bars = axes.barh(
        [TITLES[name] for name in names], values, color=["C0" if name == OURS else "0.7" for name in names]
    )
    axes.bar_label(bars, [f"{value:,}" for value in values], padding=3)
    axes.set(title="Throughput of one process on one core", xlabel="events per second", xlim=(0, 1.15 * max(values)))
    axes.set_ylabel("contender")
    axes.xaxis.set_major_formatter("{x:,.0f}")


if __name__ == "__main__":
    run(main)
