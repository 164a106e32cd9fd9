"""Test, then train, in time order: does what the stream shows foretell each next event, and better than counting does?

Every event of a log is ranked among all items seen so far right before it is learnt, nothing excluded: rank = 1 +
better + ties / 2, an item's first event ever is a miss, and HR@10 and MRR@10 are means over the last 50% of the events.
What is measured is the stream's own code (`benchmarks.quality.stream`): the same recommender and user states as in a
worker, the same buffer, cadence, training, gate and registry as in the trainer, from a cold start without a model.
"""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import typer
from numpy.typing import NDArray

from benchmarks.harness.machine import computer
from benchmarks.harness.program import OUT, Json, Out, conclude, run
from benchmarks.harness.report import console, save, table
from benchmarks.quality import baselines
from benchmarks.quality.learning import LearningPath
from benchmarks.quality.log import Log
from benchmarks.quality.scores import curve, ends, figures
from benchmarks.quality.stream import stream
from streams import options
from streams.console import progress_bar, say
from streams.datasets import read_source
from streams.settings import Settings, load_settings

BASELINES: Final = ("popularity", "markov", "skip_markov", "own_recent")
TITLES: Final = {
    "popularity": "popularity, best window",
    "markov": "Markov, first order",
    "skip_markov": "skip-Markov",
    "own_recent": "own recent items",
    "frozen": "model frozen at the half, alone",
    "fine_tuned": "model fine-tuned as it goes, alone",
    "transitions": "transition memory alone",
    "without_model": "all experts without a model",
    "fused": "fused: all experts and the model",
    "served": "fused, as listed after the user's last event",
}
_STYLES: Final = {"fused": "C3", "served": "C1", "fine_tuned": "C0", "frozen": "C9", "transitions": "C2"}

Ranks = dict[str, NDArray[np.float64]]


def main(
    data: Annotated[str, typer.Argument(help="a table as `recstream replay` takes it, or ml-100k")],
    columns: options.Columns = None,
    types: options.Types = None,
    events: Annotated[int | None, typer.Option(min=100, help="only the first N events")] = None,
    batch: Annotated[int, typer.Option(min=1, help="events of a micro-batch")] = 500,
    rate: Annotated[float, typer.Option(min=0.001, help="events per second: the clock of the cadence")] = 1000.0,
    train_delay: Annotated[
        int | None,
        typer.Option(min=0, help="events that come while a pass trains; by default as many as in its CPU seconds"),
    ] = None,
    train_share: Annotated[float, typer.Option(min=0.01, max=1, help="of a core that training gets")] = 1.0,
    pace: options.Pace = 100.0,
    out: Out = OUT,
    json: Json = False,
) -> None:
    """Rank every event of a log before it is learnt: the stream with all it has, its parts, and counting baselines.

    Takes about four minutes for 100,000 events, most of it for training.
    """
    settings = load_settings()
    import torch

    torch.set_num_threads(settings.trainer_threads)
    machine = computer()
    source = read_source(data, settings, columns, types, events, pace)
    for remark in source.remarks():
        say(remark)
    log = Log.of(source.events)
    ranks, windows = _baselines(log)
    with tempfile.TemporaryDirectory(prefix="recstream-prequential-") as folder:
        learning = LearningPath(settings, Path(folder), train_delay, rate, train_share)
        try:
            with progress_bar("stream", total=len(log), unit="events") as bar:
                streamed = stream(log, settings, learning, batch, bar)
        finally:
            learning.close()
    ranks |= streamed.ranks
    result = {
        **_figures(log, ranks),
        "skipped": dict(source.events.skipped),
        "popularity_windows": windows,
        "frozen_version": streamed.frozen,
        "events_by_version": streamed.versions,
        "passes": [asdict(done) for done in learning.passes],
        "passes_failed": learning.failed,
        "drift_alarms": learning.alarms,
        "settings": {
            "batch": batch,
            "events_per_second": rate,
            "train_delay_events": train_delay,
            "train_share": train_share,
            "cadence": asdict(learning.cadence),
            **_settings(settings),
        },
        "over_time": {"events": ends(len(log)), **{name: curve(ranks[name]) for name in TITLES}},
        "data": os.path.basename(data),
        "machine": machine,
    }
    _show(result)
    name = f"prequential-{_stem(data)}"
    save(name, result, out, lambda axes: _draw(axes, log.half, result["over_time"]))
    conclude(result, json)


def _baselines(log: Log) -> tuple[Ranks, dict[str, float]]:
    """Ranks of the counting baselines, and HR@10 of popularity by window; the best window is the one that counts."""
    with progress_bar("counting baselines", total=len(BASELINES)) as bar:
        by_window = baselines.popularity(log)
        hit_rates = {window: figures(found, log.half)[0] for window, found in by_window.items()}
        best = max(hit_rates, key=lambda window: hit_rates[window])
        bar.to(1)
        ranks = {"popularity": by_window[best]}
        for done, method in enumerate((baselines.markov, baselines.skip_markov, baselines.own_recent), 2):
            ranks[method.__name__] = method(log)
            bar.to(done)
    named = {f"{window:,} events" if window else "all events": rate for window, rate in hit_rates.items()}
    return ranks, named


def _figures(log: Log, ranks: Ranks) -> dict[str, Any]:
    each = {name: figures(ranks[name], log.half) for name in TITLES}
    hit_rate = {name: hit for name, (hit, _) in each.items()}
    best = max(BASELINES, key=lambda name: hit_rate[name])
    return {
        "events": len(log),
        "events_counted": len(log) - log.half,
        "users": int(log.users.max()) + 1,
        "items": int(log.items.max()) + 1,
        "hit_rate_at_10": hit_rate,
        "mrr_at_10": {name: mrr for name, (_, mrr) in each.items()},
        "best_baseline": best,
        "fused_vs_best_baseline": _ratio(hit_rate["fused"], hit_rate[best]),
        "fine_tuned_vs_frozen": _ratio(hit_rate["fine_tuned"], hit_rate["frozen"]),
    }


def _ratio(ours: float, theirs: float) -> float | None:
    return round(ours / theirs, 4) if theirs else None


def _settings(settings: Settings) -> dict[str, Any]:
    names = (
        "train_recent_events", "train_reservoir_events", "train_epochs", "buffer_events", "trainer_seed", "exclude"
    )  # fmt: skip
    return {name: getattr(settings, name) for name in names}


def _stem(data: str) -> str:
    """A name for the result's files: the table's, without its endings."""
    return os.path.basename(data).partition(".")[0]


def _show(result: Mapping[str, Any]) -> None:
    hit, mrr, best = result["hit_rate_at_10"], result["mrr_at_10"], result["best_baseline"]
    rows = [
        (TITLES[name], f"{hit[name]:.4f}", f"{mrr[name]:.4f}", f"{_ratio(hit[name], hit[best]) or 0:.2f}x")
        for name in TITLES
    ]
    counted = f"{result['events_counted']:,} of {result['events']:,} events"
    table(f"{result['data']}: {counted}", ("method", "HR@10", "MRR@10", f"of {best}"), rows)
    promoted = [done for done in result["passes"] if done["serves_from"] is not None]
    seconds = sum(done["cpu_seconds"] for done in result["passes"])
    console.print(
        f"{len(result['passes'])} passes, {len(promoted)} promoted, {seconds:.0f} CPU s of training; "
        f"fine-tuned {result['fine_tuned_vs_frozen']}x frozen ({result['frozen_version']})"
    )


def _draw(axes: Any, half: int, over_time: Mapping[str, list[float]]) -> None:
    for name, title in TITLES.items():
        if name == "served":
            continue
        learns = name in _STYLES
        axes.plot(
            over_time["events"], over_time[name], label=title, color=_STYLES.get(name), linewidth=1.8 if learns else 1,
            linestyle="-" if learns else ":",
        )  # fmt: skip
    axes.axvline(half, color="0.6", linewidth=0.8)
    axes.set(title="Hit rate before learning, over time", xlabel="events", ylabel="HR@10", ylim=(0, None))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))


if __name__ == "__main__":
    run(main)
