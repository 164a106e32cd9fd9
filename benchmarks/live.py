"""The whole running system, scored from outside: broker, worker and trainer as processes, a cold start, a steady rate.

The log is produced in order at the given rate, in its own event time, while a consumer dates what arrives on
`recommendations`. There is no first model: the worker begins with what counts at once, the trainer fits a model when it
has seen enough, the worker takes it up. Figures are means over the last 50% of the events, as in
`benchmarks.prequential`; here a list has at most ten items and is what the worker really sent.
"""

import asyncio
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import typer
import uvloop
from aiokafka import TopicPartition
from numpy.typing import NDArray

from benchmarks.harness import processes
from benchmarks.harness.arrivals import Answers, arriving
from benchmarks.harness.bench import http_get
from benchmarks.harness.broker import Broker, free_port, running_broker
from benchmarks.harness.contenders import TRAINER, WORKER
from benchmarks.harness.machine import computer
from benchmarks.harness.processes import Measured
from benchmarks.harness.program import OUT, Json, Out, conclude, run
from benchmarks.harness.report import console, save, table
from benchmarks.quality.log import Log
from benchmarks.quality.outside import Lists, collect, in_hand_ranks, next_ranks, places
from benchmarks.quality.scores import K, curve, ends, figures
from models.registry import Registry
from models.tables import Events
from state.events import TOPICS
from streams import options
from streams.console import progress_bar, say
from streams.datasets import read_source
from streams.read_topic import read_to_end, reader
from streams.replay import produce_events
from streams.settings import Settings, load_settings
from streams.topics import INVALID_EVENTS, RECOMMENDATIONS, create_topics

PARTITIONS: Final = 8
DRAIN_SECONDS: Final = 30.0  # for the last answers after the last event


def main(
    data: Annotated[str, typer.Argument(help="a table as `recstream replay` takes it, or ml-100k")],
    rate: Annotated[float, typer.Option(min=1, help="events per second")] = 1000.0,
    columns: options.Columns = None,
    types: options.Types = None,
    events: Annotated[int | None, typer.Option(min=100, help="only the first N events")] = None,
    pace: options.Pace = 100.0,
    out: Out = OUT,
    json: Json = False,
) -> None:
    """Run worker and trainer from a cold start under a steady load and score what they send.

    Runs on real Kafka where KAFKA_HOME is set, else on the embedded broker.
    """
    source = read_source(data, load_settings(), columns, types, events, pace)
    for remark in source.remarks():
        say(remark)
    log = Log.of(source.events)
    with ExitStack() as stack:
        stack.enter_context(processes.unwinding_on_term())
        directory = Path(tempfile.mkdtemp(prefix="recstream-live-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        cores = sorted(os.sched_getaffinity(0))
        broker = stack.enter_context(running_broker(directory / "broker", cores))
        machine = computer() | {"broker": broker.name, "placement": "left to the system, as where it is used"}
        answers, sent, rejected, versions = _System(broker, cores, directory).run(source.events, rate)
    where = places(log, PARTITIONS)
    sent_at = np.full(len(log), np.nan)
    for place, moments in sent.items():
        sent_at[where[place]] = moments
    lists = collect(log, where, answers.values, answers.arrived, K)
    result = {**_figures(log, lists, sent_at), "passes": versions, "rate": rate, "data": os.path.basename(data)}
    result |= {"skipped": dict(source.events.skipped), "rejected": rejected, "machine": machine}
    _show(result)
    name = f"live-{os.path.basename(data).partition('.')[0]}"
    save(name, result, out, lambda axes: _draw(axes, log.half, result["over_time"]))
    conclude(result, json)


class _System:
    """Broker, worker and trainer."""

    def __init__(self, broker: Broker, cores: Sequence[int], directory: Path) -> None:
        self._cores, self._directory = cores, directory
        port = free_port(also=1)
        own = {
            "brokers": broker.address,
            "partitions": str(PARTITIONS),
            "registry": str(directory / "registry"),
            "state_dir": str(directory / "state"),
            "http_port": str(port),
            "trainer_http_port": str(port + 1),
            "session_timeout_seconds": "6",  # the embedded broker lets a group wait for the whole time-out at its start
            "rebalance_timeout_seconds": "6",
        }
        self._settings: Settings = load_settings(**own)
        self._env = {f"RECSTREAM_{name.upper()}": value for name, value in own.items()}
        create_topics(self._settings)

    def run(
        self, events: Events, rate: float
    ) -> tuple[Answers, dict[tuple[int, int], NDArray[np.float64]], dict[str, int], list[dict[str, Any]]]:
        """Send a log.

        Returns:
            What came back, when each partition's events were sent, how many the worker refused by reason, and the
            versions published.
        """
        with (
            processes.running(
                "worker", WORKER, cores=self._cores, log=self._directory / "worker.log", env=self._env
            ) as worker,
            processes.running(
                "trainer", TRAINER, cores=self._cores, log=self._directory / "trainer.log", env=self._env
            ) as trainer,
        ):
            with console.status("worker and trainer join"):
                for process, port in ((worker, self._settings.http_port), (trainer, self._settings.trainer_http_port)):
                    processes.wait_until(lambda port=port: _ready(port), process, 120, "ready")  # type: ignore[misc]
            answers = uvloop.run(self._fly(events, rate, (worker, trainer)))
        sent, rejected = uvloop.run(self._sent()), uvloop.run(self._rejected())
        return answers, sent, rejected, self._versions()

    async def _fly(self, events: Events, rate: float, running: tuple[Measured, ...]) -> Answers:
        async with arriving(self._settings.brokers, RECOMMENDATIONS, PARTITIONS) as arrivals:
            with progress_bar("events answered", total=len(events), unit="events") as bar:
                sending = asyncio.create_task(produce_events(self._settings, events, rate=rate))
                deadline = None
                while arrivals.count < len(events):
                    for process in running:
                        process.check()
                    bar.to(arrivals.count)
                    if sending.done():
                        sending.result()
                        deadline = deadline or time.monotonic() + DRAIN_SECONDS
                        if time.monotonic() > deadline:
                            break
                    await asyncio.sleep(0.2)
                bar.to(arrivals.count)
        return arrivals.answers()

    async def _sent(self) -> dict[tuple[int, int], NDArray[np.float64]]:
        """Epoch seconds at which events were sent, by kind and partition, in order of offsets."""
        wanted = [TopicPartition(topic, partition) for topic in TOPICS for partition in range(PARTITIONS)]
        moments: dict[tuple[int, int], list[float]] = {}
        async with reader(self._settings, wanted) as consumer:
            async for records in read_to_end(consumer, wanted):
                for record in records:
                    place = TOPICS.index(record.topic), record.partition
                    moments.setdefault(place, []).append(record.timestamp / 1000)
        return {place: np.array(seconds) for place, seconds in moments.items()}

    async def _rejected(self) -> dict[str, int]:
        """Events that the worker refused, by the reason their dead letter begins with."""
        wanted = [TopicPartition(INVALID_EVENTS, partition) for partition in range(PARTITIONS)]
        reasons: Counter[str] = Counter()
        async with reader(self._settings, wanted) as consumer:
            async for records in read_to_end(consumer, wanted):
                reasons.update(dict(record.headers)["error"].decode().partition(":")[0] for record in records)
        return dict(reasons)

    def _versions(self) -> list[dict[str, Any]]:
        registry = Registry(self._settings.registry)
        passes = []
        for name in registry.versions():
            summary = registry.describe(name)
            gate = summary.metrics["gate"]
            passes.append(
                {
                    "version": name,
                    "promoted": gate["promoted"],
                    "trigger": summary.lineage["trigger"],
                    "origin": summary.lineage["origin"],
                    "seen": summary.lineage["seen"],
                    "candidate": gate["candidate"]["ndcg@10"],
                    "rival": gate["rival_quality"]["ndcg@10"],
                }
            )
        return passes


def _ready(port: int) -> bool:
    return http_get(port, "/health/ready")[0] == 200


def _figures(log: Log, lists: Lists, sent: NDArray[np.float64]) -> dict[str, Any]:
    ranks = {"fused": next_ranks(log, lists), "in_hand": in_hand_ranks(log, lists, sent)}
    scored, without, unlisted = {}, {}, {}
    for name, found in ranks.items():
        had = ~np.isnan(found)
        scored[name] = np.where(had, found, np.inf)  # an event of a user who had no list is a miss
        without[name] = figures(found[log.half :][had[log.half :]], 0)
        unlisted[name] = int((~had[log.half :]).sum())
    each = {name: figures(found, log.half) for name, found in scored.items()}
    answered = lists.answered
    waited_ms = 1000 * (lists.arrived - sent)[answered]
    return {
        "events": len(log),
        "events_counted": len(log) - log.half,
        "hit_rate_at_10": {name: hit for name, (hit, _) in each.items()},
        "mrr_at_10": {name: mrr for name, (_, mrr) in each.items()},
        "hit_rate_at_10_where_a_list_was": {name: hit for name, (hit, _) in without.items()},
        "mrr_at_10_where_a_list_was": {name: mrr for name, (_, mrr) in without.items()},
        "events_without_a_list_before": unlisted,
        "unanswered": int((~answered).sum()),
        "latency_ms": {f"p{share}": _percentile(waited_ms, share) for share in (50, 99)},
        "lists_by_version": dict(Counter(name for name in lists.versions if name)),
        "over_time": {"events": ends(len(log)), **{name: curve(found) for name, found in scored.items()}},
    }


def _percentile(milliseconds: NDArray[np.float64], share: int) -> float | None:
    """None where nothing was answered."""
    return round(float(np.percentile(milliseconds, share)), 1) if len(milliseconds) else None


def _show(result: Mapping[str, Any]) -> None:
    titles = {"fused": "list made for the user's event before", "in_hand": "newest list in hand when it was sent"}
    rows = [
        (
            title,
            f"{result['hit_rate_at_10'][name]:.4f}",
            f"{result['mrr_at_10'][name]:.4f}",
            f"{result['hit_rate_at_10_where_a_list_was'][name]:.4f}",
            f"{result['events_without_a_list_before'][name]:,}",
        )
        for name, title in titles.items()
    ]
    title = f"{result['data']}: {result['events_counted']:,} of {result['events']:,} events at {result['rate']:,.0f}/s"
    table(title, ("scored by", "HR@10", "MRR@10", "HR@10 where a list was", "events without one"), rows)
    latency = result["latency_ms"]
    console.print(f"latency p50 {latency['p50']} ms, p99 {latency['p99']} ms; {result['unanswered']} without an answer")
    refused = ", ".join(f"{reason} {count:,}" for reason, count in result["rejected"].items())
    if refused:
        console.print(f"refused by the worker: {refused}")
    by_version = [(name, f"{count:,}") for name, count in result["lists_by_version"].items()]
    table(f"{len(result['passes'])} versions published", ("version", "lists"), by_version)


def _draw(axes: Any, half: int, over_time: Mapping[str, list[float]]) -> None:
    axes.plot(over_time["events"], over_time["fused"], color="C3", label="list made for the event before")
    axes.plot(over_time["events"], over_time["in_hand"], color="C1", label="newest list in hand")
    axes.axvline(half, color="0.6", linewidth=0.8)
    axes.set(title="Hit rate of the running system, scored from outside", xlabel="events", ylabel="HR@10")
    axes.set_ylim(0, None)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


if __name__ == "__main__":
    run(main)
