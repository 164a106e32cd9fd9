"""How fast does training learn, and how well? Our trainer against RecBole's GRU4Rec on the same events.

Both see MovieLens-100K in the same order, split by leave-one-out, with a GRU and item vectors of the same width, cross
entropy over every item and batches of as many samples, on one core or one GPU, one after the other in the same run.
One sample is one event learnt. RecBole makes a prefix of every event and runs the GRU over each prefix from its start;
here every step of a window is a sample, so that an epoch costs one step per event. Our network also sees each event's
kind and the time since the one before.

RecBole takes over a minute an epoch and many epochs to converge: one is run by default, enough to time it.
`recbole_ndcg_at_10` is what it has reached after those that were run; `recbole_converged` is the published figure.
"""

from pathlib import Path
from statistics import median
from typing import Annotated, Any, Final, Literal

import typer

from benchmarks.harness.leave_one_out import split, train_ours
from benchmarks.harness.machine import computer
from benchmarks.harness.program import OUT, Json, Out, conclude, run
from benchmarks.harness.recbole import REFERENCE, train_recbole
from benchmarks.harness.report import console, save, table
from models.training_settings import TrainingSettings
from streams.datasets import ML_100K, read_source
from streams.settings import load_settings

GOAL: Final = 20.0  # times per epoch
HIDDEN: Final = 128
EMBEDDING: Final = 64
Source = Annotated[str, typer.Argument(metavar="FILE|ml-100k", help="events, as `recstream fit` takes them")]


def main(
    source: Source = ML_100K,
    epochs: Annotated[int, typer.Option(min=1, help="most epochs of ours; it stops when they do not help")] = 15,
    recbole_epochs: Annotated[int, typer.Option(min=0, help="epochs of RecBole's; 0 leaves it out")] = 1,
    batch: Annotated[int, typer.Option(min=100, help="samples of a batch, on both sides")] = 2048,
    limit: Annotated[int | None, typer.Option(min=100, help="only the first N events")] = None,
    seed: Annotated[int, typer.Option(help="randomness of both")] = 0,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="of both sides")] = "cpu",
    out: Out = OUT,
    json: Json = False,
) -> None:
    """Compare samples per second and NDCG@10 with RecBole 1.2.1's GRU4Rec, which gets a virtual environment of its own.

    RecBole takes one to two minutes an epoch on one core.
    """
    machine = computer()
    events = read_source(source, load_settings(), limit=limit).events
    settings = TrainingSettings(batch_steps=batch)
    with console.status("ours") as status:
        ours = train_ours(
            split(events),
            epochs=epochs,
            patience=4,
            hidden=HIDDEN,
            embedding=EMBEDDING,
            seed=seed,
            settings=settings,
            device=device,
            on_epoch=lambda epoch, seconds, ndcg: status.update(f"ours: epoch {epoch}, {seconds:.1f} s, {ndcg:.4f}"),
        )
        theirs = None
        if recbole_epochs:
            theirs = train_recbole(
                events,
                epochs=recbole_epochs,
                batch=batch,
                hidden=HIDDEN,
                embedding=EMBEDDING,
                seed=seed,
                device=device,
                say=status.update,
            )
    result = summary(ours, theirs) | {
        "data": source,
        "events": len(events),
        "batch_samples": batch,
        "hidden": HIDDEN,
        "embedding": EMBEDDING,
        "seed": seed,
        "device": device,
        "machine": machine,
    }
    _report(result, theirs is not None, out)
    conclude(result, json)


def summary(ours: dict[str, Any], theirs: dict[str, Any] | None) -> dict[str, Any]:
    """The figures of the run under the names of the JSON output; RecBole's are None without it."""
    mine = median(ours["epoch_seconds"])
    result: dict[str, Any] = {
        "ratio": None,
        "samples_per_second": round(ours["samples"] / mine, 1),
        "epoch_seconds": round(mine, 4),
        "hr_at_10": round(ours["hr_at_10"], 4),
        "ndcg_at_10": round(ours["ndcg_at_10"], 4),
        "seconds": round(sum(ours["epoch_seconds"]), 2),
        "recbole_ndcg_at_10": None,
        "recbole_converged": REFERENCE,
        "samples": ours["samples"],
        "ours": ours,
        "recbole": theirs,
    }
    if theirs is not None:
        epoch = median(theirs["epoch_seconds"])
        result |= {
            "ratio": round(epoch / mine, 2),
            "recbole_samples_per_second": round(theirs["samples"] / epoch, 1),
            "recbole_epoch_seconds": round(epoch, 4),
            "recbole_hr_at_10": round(theirs["hr_at_10"], 4),
            "recbole_ndcg_at_10": round(theirs["ndcg_at_10"], 4),
            "recbole_epochs": len(theirs["epoch_seconds"]),
        }
    return result


def _report(result: dict[str, Any], compared: bool, out: Path) -> None:
    ours = result["ours"]
    rows = [
        (
            "recstream: GRU(128), windows",
            f"{result['samples_per_second']:,.0f}",
            f"{result['epoch_seconds']:.2f}",
            f"{len(ours['epoch_seconds'])} (best {ours['best_epoch']})",
            f"{result['hr_at_10']:.4f}",
            f"{result['ndcg_at_10']:.4f}",
        )
    ]
    if compared:
        rows.append(
            (
                "RecBole: GRU4Rec(128), prefixes",
                f"{result['recbole_samples_per_second']:,.0f}",
                f"{result['recbole_epoch_seconds']:.2f}",
                str(result["recbole_epochs"]),
                f"{result['recbole_hr_at_10']:.4f}",
                f"{result['recbole_ndcg_at_10']:.4f}",
            )
        )
    figures = (f"{REFERENCE['hr_at_10']:.4f}", f"{REFERENCE['ndcg_at_10']:.4f}")
    rows.append(("RecBole: GRU4Rec(128), converged (published)", "", "", "", *figures))
    place = "one core" if result["device"] == "cpu" else result["device"]
    columns = ("", "samples/s", "s/epoch", "epochs", "HR@10", "NDCG@10")
    table(f"Training on {result['data']}, {result['samples']:,} samples an epoch, {place}", columns, rows)
    if compared:
        console.print(f"{result['ratio']:.1f}x per epoch; goal {GOAL:.0f}x")
    save("training", result, out, lambda axes: _draw(axes, result))


def _draw(axes: Any, result: dict[str, Any]) -> None:
    """Validation NDCG@10 over seconds of training, the time axis logarithmic."""
    for name, run_ in (("recstream", result["ours"]), ("RecBole GRU4Rec", result["recbole"])):
        if run_ is not None:
            clock, total = list[float](), 0.0
            for seconds in run_["epoch_seconds"]:
                total += seconds
                clock.append(total)
            axes.plot(clock, run_["valid_ndcg_at_10"], marker="o", label=name)
    axes.axhline(REFERENCE["ndcg_at_10"], color="0.5", linestyle="--", label="RecBole GRU4Rec, converged (test)")
    axes.set(
        xscale="log", xlabel=f"seconds of training, {result['device']}", ylabel="NDCG@10 after each epoch, validation"
    )
    axes.set_title(f"Training on {result['data']}: GRU(128), {result['samples']:,} samples an epoch")
    axes.grid(alpha=0.3)
    axes.legend()


if __name__ == "__main__":
    run(main)
