"""A model version is published under full load: what do users notice, and is every list of the version it names?

Two runs, each with a worker and a broker of its own. Events come at a steady rate by a schedule; latency counts from
the moment an event was due to its recommendation in a consumer's hands, as in `benchmarks.latency`. After a warm-up and
"the minute before" the registry's pointer moves to another version, and "the minute of the swap" begins.

    everything on    latency before and after, events without an answer, the moments of publication and of the swap
    model alone      what a version recommends is then a function of the user's past, so that it can be checked from
                     outside: every list of some thousand users is computed again, with the version that it names

The versions have random weights, so their lists have hardly an item in common: a list made with the other version, or
with a vector of the other version, does not pass for one of the version it names.
"""

import asyncio
import time
from typing import Annotated, Any, Final

import numpy as np
import orjson
import polars as pl
import typer
import uvloop
from numpy.typing import NDArray

from benchmarks.harness.arrivals import Answers, arriving
from benchmarks.harness.bench import Bench, bench
from benchmarks.harness.contenders import recstream
from benchmarks.harness.events import make_events, partitions_of
from benchmarks.harness.machine import describe
from benchmarks.harness.model import publish
from benchmarks.harness.processes import BenchmarkError, Measured
from benchmarks.harness.program import OUT, Json, Out, conclude, run
from benchmarks.harness.report import console, save, table
from models.registry import Registry
from models.repeats import LastItems
from models.serving import ServingModel, gap_feature
from models.tables import Events
from streams.replay import produce_events
from streams.settings import load_settings
from streams.topics import RECOMMENDATIONS

WARM_UP_SECONDS: Final = 40  # as in `benchmarks.latency`: a JVM that started just now takes as long to come to speed
CHECKED_USERS: Final = 3_000
CHECK_SECONDS: Final = 15  # of the second run, before and after the swap
RING: Final = 50  # events a vector is rebuilt from: users with more cannot be computed again from outside
TOLERANCE: Final = 2e-3  # of a score: vectors are float16, and sums are taken in another order


def main(
    rate: Annotated[int, typer.Option(min=100, help="events per second")] = 10_000,
    seconds: Annotated[int, typer.Option(min=5, help="length of the minute before, and of the one of the swap")] = 60,
    users: Annotated[int, typer.Option(min=1_000, help="users who send events")] = 20_000,
    out: Out = OUT,
    json: Json = False,
) -> None:
    """Publish a version under load and measure what users notice.

    Runs on real Kafka where KAFKA_HOME is set, else on the embedded broker.
    """
    with bench() as rig:
        machine = describe(rig.broker, rig.cores)
        load = _Load(rig, rate, seconds, users, "everything on")
        answers = load.run(fusion=True)
        figures = _latency(answers, load, seconds) | _swap(answers, load)
    with bench() as rig:
        load = _Load(rig, rate, CHECK_SECONDS, users, "model alone")
        answers = load.run(fusion=False)
        checked = _swap(answers, load) | _check(answers, load)
    result = {**figures, "check": checked, "rate": rate, "seconds": seconds, "users": users, "machine": machine}
    _show(result)
    save("swap", _without_curve(result), out, lambda axes: _draw(axes, result))
    conclude(_without_curve(result), json)


class _Load:
    """A worker under load, and a swap in the middle.

    Attributes:
        published: Epoch seconds at which the pointer had moved.
        versions: Directories of both versions.
    """

    def __init__(self, rig: Bench, rate: int, seconds: int, users: int, title: str) -> None:
        self._rig, self._rate, self._seconds, self._title = rig, rate, seconds, title
        self.events = make_events(rate * (WARM_UP_SECONDS + 2 * seconds), users, seed=1)
        self.places = partitions_of(self.events.users, rig.place.partitions)  # (E,)
        self.registry = Registry(rig.place.version.parent)
        self.versions = [rig.place.version.name, publish(rig.place.version.parent, seed=1).name]
        self.registry.promote(self.versions[0])
        self.published = 0.0

    def run(self, fusion: bool) -> Answers:
        """Answers to all events, in order of arrival."""
        settings = {"fusion": str(fusion).lower(), "exclude": "none"}
        worker = recstream(self._rig.place, "swap", **settings)
        with self._rig.started(worker) as process:
            self._rig.wait_ready(worker, process)
            return uvloop.run(self._fly(process))

    async def _fly(self, process: Measured) -> Answers:
        settings = load_settings(brokers=self._rig.broker.address, partitions=self._rig.place.partitions)
        events = self.events
        log = Events(
            pl.Series([f"u{user}" for user in events.users.tolist()]),
            pl.Series([f"i{item}" for item in events.items.tolist()]),
            np.zeros(len(events), np.uint8),  # one topic: a user's events then have one order
            events.times_ms,
        )
        async with arriving(self._rig.broker.address, RECOMMENDATIONS, self._rig.place.partitions) as arrivals:
            with console.status(f"{self._title}: {self._rate:,} events/s for {len(events) // self._rate} s"):
                sending = asyncio.create_task(produce_events(settings, log, rate=self._rate, timestamps="now"))
                await asyncio.sleep(WARM_UP_SECONDS + self._seconds)
                await asyncio.to_thread(self.registry.promote, self.versions[1])
                self.published = time.time()
                await sending
                deadline = time.monotonic() + 30
                while arrivals.count < len(events) and time.monotonic() < deadline:
                    process.check()
                    await asyncio.sleep(0.1)
                await asyncio.sleep(1)  # whatever is answered twice
        with console.status("reading the answers"):
            return arrivals.answers()


def _latency(answers: Answers, load: _Load, seconds: int) -> dict[str, Any]:
    """Percentiles in the minute before the publication and in the one after it, by when events were due."""
    waited_ms = 1000 * answers.arrived - answers.due_ms
    since = answers.due_ms / 1000 - load.published
    before, during = waited_ms[(since >= -seconds) & (since < 0)], waited_ms[(since >= 0) & (since < seconds)]
    if not len(before) or not len(during):
        what = "there are no answers to compare"
        raise BenchmarkError(what, f"{len(answers):,} arrived", "Try a lower --rate")
    figures = {
        f"p{share}_ms": {
            "before": round(float(np.percentile(before, share)), 1),
            "swap": round(float(np.percentile(during, share)), 1),
        }
        for share in (50, 99)
    }
    by_second = {int(second): waited_ms[since.astype(int) == second] for second in range(1 - seconds, seconds - 1)}
    return {
        **figures,
        "p99_ratio": round(figures["p99_ms"]["swap"] / figures["p99_ms"]["before"], 3),
        "longest_ms": {"before": round(float(before.max()), 1), "swap": round(float(during.max()), 1)},
        "curve": {second: float(np.percentile(waits, 99)) for second, waits in by_second.items() if len(waits)},
    }


def _swap(answers: Answers, load: _Load) -> dict[str, Any]:
    """When the swap was, and whether each event was answered and each partition changed version once."""
    places = answers.partitions * 10**9 + answers.offsets
    distinct = len(np.unique(places))
    new = answers.names.index(load.versions[1]) if load.versions[1] in answers.names else -1
    if new < 0:
        what = f"{load.versions[1]} never served"
        raise BenchmarkError(what, f"versions seen: {', '.join(answers.names)}")
    back = 0
    for partition in np.unique(answers.partitions):
        of = answers.partitions == partition
        by_offset = answers.versions[of][np.argsort(answers.offsets[of], kind="stable")] == new
        back += int((np.diff(by_offset.astype(int)) < 0).sum())  # an older version after a newer one
    first = answers.generated_ms[answers.versions == new].min() / 1000
    last = answers.generated_ms[answers.versions != new].max() / 1000
    return {
        "events": len(load.events),
        "events_lost": len(load.events) - distinct,
        "answered_twice": len(answers) - distinct,
        "versions_out_of_order": back,
        "swap_seconds_after_publication": round(float(first - load.published), 3),
        "seconds_with_both_versions": round(max(0.0, float(last - first)), 3),
    }


def _check(answers: Answers, load: _Load) -> dict[str, Any]:
    """Compute the lists of some users again, each with the version that it names."""
    models = {name: ServingModel.from_version(load.registry.load(name)) for name in load.versions}
    counts = np.bincount(load.events.users)
    eligible = np.flatnonzero((counts > 1) & (counts <= RING))
    chosen = np.random.default_rng(0).permutation(eligible)[:CHECKED_USERS]
    sequence = np.zeros(len(load.events), np.int64)  # offset of each event on its partition
    for partition in np.unique(load.places):
        of = load.places == partition
        sequence[of] = np.arange(of.sum())
    answer_of = {
        place: number
        for number, place in enumerate(zip(answers.partitions.tolist(), answers.offsets.tolist(), strict=True))
    }
    lists = wrong = confusable = 0
    by_version = dict.fromkeys(load.versions, 0)
    by_user = np.argsort(load.events.users, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)])
    with console.status("computing lists again"):
        for user in chosen.tolist():
            own = by_user[starts[user] : starts[user + 1]]  # the user's events in order
            found = [answer_of.get(place) for place in zip(load.places[own], sequence[own], strict=True)]
            if None in found:
                continue  # lost, and counted as such
            numbers = np.array(found)
            messages = [orjson.loads(answers.values[number]) for number in found if number is not None]
            fits = {
                name: _fits(model, load.events.items[own], answers.due_ms[numbers], messages)
                for name, model in models.items()
            }
            for place, message in enumerate(messages):
                name = message["model_version"]
                other = next(version for version in load.versions if version != name)
                lists += 1
                by_version[name] += 1
                wrong += not fits[name][place]
                confusable += bool(fits[other][place])
    return {
        "lists_checked": lists,
        "users_checked": len(chosen),
        "lists_by_version": by_version,
        "lists_not_of_their_version": wrong,
        "lists_that_fit_the_other_version_too": confusable,
    }


def _fits(
    model: ServingModel, items: NDArray[np.int64], times_ms: NDArray[np.int64], messages: list[dict[str, Any]]
) -> NDArray[np.bool_]:
    """Which of a user's messages (E) have the items and the scores that a version gives at that point of the past."""
    gaps = np.diff(times_ms // 1000, prepend=times_ms[0] // 1000)
    state, user = np.zeros((1, model.state_size), np.float32), np.zeros(len(items), np.int32)
    kinds = np.zeros(len(items), np.uint8)
    hidden = model.steps(state, user, items.astype(np.int32), kinds, gap_feature(gaps))
    place = np.arange(len(items))[:, None] - np.arange(len(model.repeats))  # (E, R), newest first
    recent = np.where(place >= 0, items[np.maximum(place, 0)], 0).astype(np.int32)
    scores = model.scores(hidden, LastItems.of_rows(recent))  # (E, V): row i of the vocabulary is item i
    scores[:, 0] = -np.inf
    fits = np.zeros(len(messages), np.bool_)
    for place, message in enumerate(messages):
        rows = np.array([int(item["item_id"][1:]) for item in message["items"]])
        shown = np.array([item["score"] for item in message["items"]])
        best = np.sort(scores[place])[-len(rows) :][::-1]
        fits[place] = bool(
            len(rows)
            and np.allclose(scores[place, rows], shown, atol=TOLERANCE)
            and np.allclose(best, shown, atol=TOLERANCE)
        )
    return fits


def _without_curve(result: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name != "curve"}


def _show(result: dict[str, Any]) -> None:
    rows = [
        (name, f"{result[key]['before']:,.1f}", f"{result[key]['swap']:,.1f}")
        for name, key in (("p50 ms", "p50_ms"), ("p99 ms", "p99_ms"), ("longest ms", "longest_ms"))
    ]
    table(f"{result['rate']:,} events/s, {result['machine']['broker']}", ("latency", "before", "swap"), rows)
    check = result["check"]
    rows = [
        ("p99 of the swap minute over that before", f"{result['p99_ratio']:.2f}"),
        ("from publication to the first list of the new version, s", f"{result['swap_seconds_after_publication']:.2f}"),
        ("events lost, of", f"{result['events_lost']:,} of {result['events']:,}"),
        ("lists older than the list before them", f"{result['versions_out_of_order']:,}"),
        (
            "lists not of the version they name",
            f"{check['lists_not_of_their_version']:,} of {check['lists_checked']:,}",
        ),
        ("lists that would pass for the other version", f"{check['lists_that_fit_the_other_version_too']:,}"),
    ]
    table("The swap", ("what", ""), rows)


def _draw(axes: Any, result: dict[str, Any]) -> None:
    axes.plot(list(result["curve"]), list(result["curve"].values()), color="C0")
    axes.axvline(0, color="0.5", linestyle=":", label="publication")
    axes.axvline(result["swap_seconds_after_publication"], color="C3", linestyle="--", label="the new version serves")
    axes.set(xlabel="seconds since publication", ylabel="p99 latency of each second, ms", ylim=(0, None))
    axes.set_title(f"A swap at {result['rate']:,} events/s")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


if __name__ == "__main__":
    run(main)
