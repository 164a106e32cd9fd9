"""Event to recommendation in milliseconds under open-loop load.

From the moment an event is due by the producer's schedule to the moment a consumer has its recommendation in hand: the
figure holds the producer's linger of 2 ms, two trips through the broker and the worker. Producer, consumer and broker
share the cores that the worker does not have. One worker serves all rates in turn; a warm-up before them and the first
two seconds of each are not counted.
"""

import time
from typing import Annotated, Any, Final

import numpy as np
import typer
import uvloop
from numpy.typing import NDArray

from benchmarks.harness.bench import CONTENDERS, Bench, bench
from benchmarks.harness.events import make_events
from benchmarks.harness.machine import describe
from benchmarks.harness.openloop import LINGER_MS, open_loop
from benchmarks.harness.processes import Measured
from benchmarks.harness.program import OUT, Json, Out, conclude, run
from benchmarks.harness.report import console, save, table

PERCENTILES: Final = {"p50_ms": 50.0, "p99_ms": 99.0, "p999_ms": 99.9}
SKIP_SECONDS: Final = 2
WARM_UP: Final = (3_000, 40)  # events/s, seconds: a JVM started just now takes half a minute to come to speed
OURS: Final = "recstream_fused"  # as it ships, everything on

Rates = dict[str, dict[str, float]]


def main(
    rates: Annotated[str, typer.Option(help="events per second, comma separated")] = "1000,2000,5000,10000",
    seconds: Annotated[int, typer.Option(min=SKIP_SECONDS + 1, help="length of each rate")] = 30,
    users: Annotated[int, typer.Option(min=1, help="users who send events")] = 20_000,
    vs: Annotated[bool, typer.Option("--vs", help="measure the bare aiokafka loop as well")] = False,
    out: Out = OUT,
    json: Json = False,
) -> None:
    """Measure latency percentiles at several rates of events.

    Runs on real Kafka where KAFKA_HOME is set, else on the embedded broker.
    """
    try:
        wanted = [int(rate) for rate in rates.split(",")]
    except ValueError as exc:
        what = f"{rates!r} is not whole numbers, as in 1000,5000"
        raise typer.BadParameter(what, param_hint="--rates") from exc
    measured: dict[str, Rates] = {}
    with bench() as rig:
        machine = describe(rig.broker, rig.cores)
        for name in (OURS, "bare_loop") if vs else (OURS,):
            contender = CONTENDERS[name](rig.place, "latency")
            with rig.started(contender) as process:
                measured[name] = uvloop.run(_measure(rig, process, contender.output, wanted, seconds, users))
    result = {
        "rates": measured[OURS],
        **({"bare_loop_rates": measured["bare_loop"]} if vs else {}),
        "seconds": seconds,
        "users": users,
        "producer_linger_ms": LINGER_MS,
        "machine": machine,
    }
    _show(measured, machine)
    save("latency", result, out, lambda axes: _draw(axes, measured))
    conclude(result, json)


async def _measure(rig: Bench, process: Measured, output: str, rates: list[int], seconds: int, users: int) -> Rates:
    measured: Rates = {}
    async with open_loop(rig.broker.address, output, rig.place.partitions) as loop:
        with console.status(f"{process.name}: waiting for its first answers"):
            await loop.prime(process)
            await loop.fly(make_events(WARM_UP[0] * WARM_UP[1], users, seed=1), WARM_UP[0])
        for rate in rates:
            with console.status(f"{process.name}: {rate:,} events/s for {seconds} s"):
                cpu, start = process.cpu_seconds(), time.monotonic()
                waited, answered = await loop.fly(make_events(rate * seconds, users, seed=rate), rate)
                busy = (process.cpu_seconds() - cpu) / (time.monotonic() - start)
            measured[str(rate)] = _summary(waited[rate * SKIP_SECONDS :], answered[rate * SKIP_SECONDS :], busy)
            process.check()
    return measured


def _summary(waited_ms: NDArray[np.float64], answered: NDArray[np.bool_], busy: float) -> dict[str, float]:
    percentiles = {
        name: round(float(np.percentile(waited_ms, share, method="higher")), 2) for name, share in PERCENTILES.items()
    }
    unanswered = int((~answered).sum())
    return {**percentiles, "events": len(waited_ms), "unanswered": unanswered, "core_busy": round(busy, 3)}


def _show(measured: dict[str, Rates], machine: dict[str, Any]) -> None:
    rows = [
        (
            f"{name}, {int(rate):,} events/s",
            *(f"{values[key]:,.1f}" for key in PERCENTILES),
            f"{100 * values['core_busy']:.0f}%",
            f"{values['unanswered']:,}",
        )
        for name, rates in measured.items()
        for rate, values in rates.items()
    ]
    columns = ("load", "p50 ms", "p99 ms", "p99.9 ms", "core busy", "unanswered")
    table(f"Event due to recommendation consumed, {machine['broker']}", columns, rows)


def _draw(axes: Any, measured: dict[str, Rates]) -> None:
    for name, style in zip(measured, ("-", ":"), strict=False):
        rates = [int(rate) for rate in measured[name]]
        for key, colour in zip(PERCENTILES, ("C2", "C1", "C3"), strict=True):
            label = f"{name} {key.removesuffix('_ms').replace('p999', 'p99.9')}"
            values = [row[key] for row in measured[name].values()]
            axes.plot(rates, values, style, marker="o", color=colour, label=label)
    axes.set(xscale="log", yscale="log", xlabel="events per second, open loop", ylabel="milliseconds")
    axes.set_title("Event due to recommendation consumed")
    axes.set_xticks([int(rate) for rate in measured[OURS]], [f"{int(rate):,}" for rate in measured[OURS]], minor=False)
    low, high = axes.get_ylim()
    ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000) if low <= tick <= high]
    axes.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))


if __name__ == "__main__":
    run(main)
