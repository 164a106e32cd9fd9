"""What follows what changes abruptly: how soon is it noticed, and how soon is the model good again?

A seeded log of users who walk from item to item: every item has a few likely successors, which all are drawn anew at
the half of the log. It runs twice through the stream's own code and the trainer's (`benchmarks.quality`), both times
with retraining every `--clock` events. In one run the trainer also watches its live hit rate and retrains at an alarm,
in the other it does not. Recovery counts from the change to the first event at which the mean over the last 500, all of
them later than the change, is 90% of the mean over the 5,000 events before it.

The transition memory learns from every event and recovers by itself: it is shown beside the model, and so is what users
get, which is all of it fused.
"""

import tempfile
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import polars as pl
import torch
import typer
from numpy.typing import NDArray

from benchmarks.harness.machine import computer
from benchmarks.harness.program import OUT, Json, Out, conclude, run
from benchmarks.harness.report import save, table
from benchmarks.quality.learning import LearningPath
from benchmarks.quality.log import Log
from benchmarks.quality.neural import NeuralTest
from models.drift import Alarm, DriftWatch
from models.fusion import Fusion
from models.recommend import Recommender
from models.tables import Events
from state.arena import Arena
from state.events import EventBatch
from state.items import ItemIndex
from state.store import UserStore
from streams.console import Bar, progress_bar
from streams.settings import load_settings

RATE: Final = 50.0  # events per second, which tells the trainer's clock
DELAY: Final = 500  # events that come while a pass trains: 10 s
BATCH: Final = 100  # events of a micro-batch
K: Final = 10
# The clock's passes fall at 7,500, 15,000, 30,000, 50,000 and 70,000 events: the change at 40,000 is in the middle
# between two of them, as it is on the average. A small model suffices for such a log.
SETTINGS: Final = {"train_every_minutes": 0, "cold_start_events": 7_500, "model_hidden": 64, "model_embedding": 32}
WINDOW: Final = 500  # of the moving hit rate
BEFORE: Final = 5_000  # events of the hit rate before the change
WANTED: Final = 0.9  # of it
USERS: Final = 400
SUCCESSORS: Final = (0.4, 0.25, 0.15, 0.1)  # chances of an item's likely successors; the rest is any item
METHODS: Final = {"model": "model", "transitions": "transition memory", "fused": "all, as served"}


def main(
    events: Annotated[int, typer.Option(min=40_000, help="events of the log; the change is at the half")] = 80_000,
    items: Annotated[int, typer.Option(min=20, help="items")] = 200,
    clock: Annotated[int, typer.Option(min=1_000, help="events between two passes without an alarm")] = 20_000,
    seed: Annotated[int, typer.Option(help="the log, and the trainer's randomness")] = 0,
    out: Out = OUT,
    json: Json = False,
) -> None:
    """Measure alarm and recovery after an abrupt change of item transitions."""
    torch.set_num_threads(1)  # the products are too short to share
    log = Log.of(walks(events, items, seed))
    arms = {name: _run(log, clock, seed, watching) for name, watching in (("alarm", True), ("clock", False))}
    sooner = {
        method: _ratio(*(arms[arm]["recovery_events"][method] for arm in ("clock", "alarm")), len(log) - log.half)
        for method in METHODS
    }
    alarms = arms["alarm"]["alarms"]
    after = [alarm - log.half for alarm in alarms if alarm >= log.half]
    result = {
        "alarm_after_events": after[0] if after else None,
        "false_alarms": len(alarms) - len(after),
        "recovery_events": {name: arm["recovery_events"]["model"] for name, arm in arms.items()},
        "sooner": sooner["model"],
        "sooner_is_a_lower_bound": arms["clock"]["recovery_events"]["model"] is None,
        "hit_rate_before": arms["alarm"]["hit_rate_before"],
        "arms": arms,
        "events": events,
        "change_at": log.half,
        "items": items,
        "clock_events": clock,
        "pass_delay_events": DELAY,
        "machine": computer(),
    }
    _show(result)
    save("drift", _without_curves(result), out, lambda axes: _draw(axes, result))
    conclude(_without_curves(result), json)


def walks(count: int, items: int, seed: int) -> Events:
    """Users walking along likely successors, which are drawn anew at the half."""
    rng = np.random.default_rng(seed)
    tables = [
        np.array([rng.choice(items, len(SUCCESSORS), replace=False) for _ in range(items)]) for _ in range(2)
    ]  # (items, successors)
    at = rng.integers(0, items, USERS)
    users = rng.integers(0, USERS, count)
    draws, anything = rng.random(count), rng.integers(0, items, count)
    bounds = np.cumsum(SUCCESSORS)
    chosen = np.empty(count, np.int64)
    for number, (user, draw, jump) in enumerate(zip(users.tolist(), draws.tolist(), anything.tolist(), strict=True)):
        successor = int(np.searchsorted(bounds, draw, side="right"))
        following = tables[number >= count // 2][at[user]]
        chosen[number] = at[user] = following[successor] if successor < len(SUCCESSORS) else jump
    times = 1_700_000_000_000 + (1000 / RATE * np.arange(count)).astype(np.int64)
    names = pl.Series([f"u{user}" for user in users.tolist()]), pl.Series([f"i{item}" for item in chosen.tolist()])
    return Events(*names, np.zeros(count, np.uint8), times)


class _Worker:
    """A recommender that learns from every event, and its users."""

    def __init__(self, fusion: Fusion) -> None:
        self.recommender = Recommender(ItemIndex(), K, exclude="none", fusion=fusion)
        self.recommender.test_all = True
        self.store = UserStore(Arena(0, K), self.recommender.items)

    def hits(self, events: EventBatch) -> NDArray[np.bool_]:
        """Which events (E,) were among the K best, right before they were learnt."""
        ranks = self.recommender.advance(self.store, events).tested
        hits: NDArray[np.bool_] = ranks <= K
        return hits


def _stream(log: Log, learning: LearningPath, bar: Bar) -> dict[str, NDArray[np.bool_]]:
    """Hits (N,) of each method, each event tested before it is learnt."""
    memory = Fusion()
    memory.weights.freeze()  # it ranks by transitions, as it begins
    alone, worker = _Worker(memory), _Worker(Fusion())
    test = NeuralTest(worker.recommender, worker.store)
    hits = {method: np.zeros(len(log), np.bool_) for method in METHODS}
    for start in range(0, len(log), BATCH):
        events = log.batch(start, start + BATCH)
        at = slice(start, start + len(events))
        seen = log.seen[at]
        hits["model"][at] = test.ranks(events, seen, log.items[at] == seen) <= K
        hits["fused"][at] = worker.hits(events)
        hits["transitions"][at] = alone.hits(events)
        new = learning.take(events, lambda _: None)
        if new is not None:
            worker.recommender.swap(new)
        bar.to(start + len(events), note=f"{len(learning.passes)} passes")
    return hits


class _Deaf(DriftWatch):
    """Hears no alarm."""

    def watch(self, hits: NDArray[np.bool_], users: NDArray[Any]) -> Alarm | None:
        return None


def _run(log: Log, clock: int, seed: int, watching: bool) -> dict[str, Any]:
    """One run: hit rates before, recovery, alarms, passes and the moving hit rates."""
    settings = load_settings(train_every_events=clock, trainer_seed=seed, **SETTINGS)
    with tempfile.TemporaryDirectory(prefix="recstream-drift-") as folder:
        with progress_bar("with alarm" if watching else "by the clock", len(log), "events") as bar:
            learning = LearningPath(settings, Path(folder), DELAY, RATE)
            if not watching:
                learning._drift = _Deaf()
            try:
                hits = _stream(log, learning, bar)
            finally:
                learning.close()
    before = {method: float(hit[log.half - BEFORE : log.half].mean()) for method, hit in hits.items()}
    return {
        "hit_rate_before": {method: round(rate, 4) for method, rate in before.items()},
        "recovery_events": {method: _recovery(hits[method], log.half, WANTED * before[method]) for method in METHODS},
        "lowest_hit_rate": {method: round(float(_moving(hit[log.half :]).min()), 4) for method, hit in hits.items()},
        "alarms": learning.alarms,
        "passes": [
            {"seen": done.seen, "serves_from": done.serves_from, "trigger": done.trigger, "origin": done.origin}
            for done in learning.passes
        ],
        "curves": {method: _moving(hit) for method, hit in hits.items()},
    }


def _moving(hits: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Means over `WINDOW` events: element i ends with event i + WINDOW - 1."""
    sums = np.concatenate([[0], np.cumsum(hits)])
    means: NDArray[np.float64] = (sums[WINDOW:] - sums[:-WINDOW]) / WINDOW
    return means


def _recovery(hits: NDArray[np.bool_], change: int, wanted: float) -> int | None:
    """Events from the change until the hit rate is as wanted; None when it never is."""
    enough = np.flatnonzero(_moving(hits[change:]) >= wanted)
    return int(enough[0]) + WINDOW if len(enough) else None


def _ratio(slow: int | None, quick: int | None, left: int) -> float | None:
    """How many times sooner; a lower bound where the slow one did not recover in the events that were left."""
    return None if quick is None else round((left if slow is None else slow) / quick, 2)


def _without_curves(result: dict[str, Any]) -> dict[str, Any]:
    arms = {name: {key: value for key, value in arm.items() if key != "curves"} for name, arm in result["arms"].items()}
    return {**result, "arms": arms}


def _show(result: dict[str, Any]) -> None:
    rows = []
    for name, arm in result["arms"].items():
        for method, title in METHODS.items():
            recovery = arm["recovery_events"][method]
            figures = (arm["hit_rate_before"][method], arm["lowest_hit_rate"][method])
            rows.append((f"{title}, {name}", *(f"{value:.3f}" for value in figures), _count(recovery)))
    table("HR@10 around the change", ("what", "before", "lowest", "events to recovery"), rows)
    after = result["alarm_after_events"]
    rows = [
        ("events from the change to the alarm", _count(after)),
        ("alarms before the change", str(result["false_alarms"])),
        (
            "the model recovers sooner with the alarm, times",
            f"{'over ' if result['sooner_is_a_lower_bound'] else ''}{result['sooner']}",
        ),
    ]
    table(f"Change at event {result['change_at']:,}, clock every {result['clock_events']:,}", ("what", ""), rows)


def _count(events: int | None) -> str:
    return "never" if events is None else f"{events:,}"


def _draw(axes: Any, result: dict[str, Any]) -> None:
    change = result["change_at"]
    lines = (("alarm", "model", "C0", "-"), ("clock", "model", "C3", "-"))
    others = (("alarm", "transitions", "C2", "--"), ("alarm", "fused", "C1", ":"))
    for arm, method, colour, style in (*lines, *others):
        curve = result["arms"][arm]["curves"][method]
        label = METHODS[method] + (f", {arm}" if method == "model" else "")
        axes.plot(np.arange(len(curve)) + WINDOW, curve, style, color=colour, label=label, linewidth=1)
    axes.axvline(change, color="0.5", linestyle=":", linewidth=1)
    for alarm in result["arms"]["alarm"]["alarms"]:
        axes.axvline(alarm, color="C0", linestyle="--", linewidth=0.7)
    for arm, colour in (("alarm", "C0"), ("clock", "C3")):
        at = [done["serves_from"] for done in result["arms"][arm]["passes"] if done["serves_from"]]
        axes.plot(at, [0.02 if arm == "alarm" else 0.05] * len(at), "|", color=colour)
    axes.set(xlabel="events", ylabel=f"HR@10, last {WINDOW} events", ylim=(0, 1), xlim=(change / 2, None))
    axes.set_title("Item transitions change abruptly (marks below: new versions serve)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")


if __name__ == "__main__":
    run(main)
