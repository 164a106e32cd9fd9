"""How good is every model? The models of `recstream evaluate` on data sets, protocols and seeds, beside RecBole's.

Each cell (data set, protocol, model, seed) is one call of what `recstream evaluate` calls, and is kept as a file: an
interrupted run goes on where it was, and a later run adds seeds. RecBole's GRU4Rec, SASRec and BERT4Rec are trained by
RecBole's own code in a virtual environment of its own, on the same learnt events, stopped by the same validation
events, and ranked on the same judged events by the same code.
"""

from pathlib import Path
from time import monotonic
from typing import Annotated, Final, Literal

import torch
import typer

from benchmarks.harness.machine import computer
from benchmarks.harness.processes import ROOT
from benchmarks.harness.program import OUT, Json, Out, conclude, run
from benchmarks.harness.quality_cells import Cell, fill, measure_costs, wanted_seeds
from benchmarks.harness.quality_report import collect, keep_published, write
from benchmarks.harness.recbole_models import RECBOLE_MODELS, fill_recbole
from benchmarks.harness.report import console
from models.evaluation.dataset import Dataset, load
from models.evaluation.run import require_known
from models.evaluation.splits import PROTOCOLS, Protocol
from models.family.compression import KINDS
from models.family.ensemble import Ensemble
from models.family.registry import MODELS
from streams.datasets import ML_100K, ml_100k
from streams.settings import load_settings

CELLS: Final = ROOT / "data" / "quality"
COMPRESSED: Final = "gru"  # its smaller copies are judged as well
Sources = Annotated[list[str], typer.Argument(metavar="FILE|ml-100k...", help="event logs, as `recstream evaluate`")]


def main(
    sources: Sources,
    models: Annotated[str, typer.Option(help="names by comma, or all; recbole stands for RecBole's three")] = "all",
    protocols: Annotated[str, typer.Option(help="names by comma")] = "leave-one-out,time-split",
    seeds: Annotated[int, typer.Option(min=1, help="fits of each model that draws at random")] = 3,
    minutes: Annotated[float, typer.Option(help="begin no new cell after so long; the next run goes on")] = 1e9,
    effort: Annotated[float, typer.Option(help="factor on training budgets")] = 1.0,
    costs: Annotated[bool, typer.Option("--costs", help="measure what an event costs, on a machine at rest")] = False,
    recbole_epochs: Annotated[int, typer.Option(min=0, help="most epochs of RecBole's models; 0: only those kept")] = 0,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="where neural models are trained")] = "cpu",
    cells: Annotated[Path, typer.Option(help="where finished cells are kept")] = CELLS,
    out: Out = OUT,
    json: Json = False,
) -> None:
    """Fill the table and write quality.md, quality.json and quality-pareto.png from all cells there are.

    Rows of the quality.json in --out for which there is no cell stay, when they had the same --effort.

    For example `python -m benchmarks.quality_table ml-100k beauty_events.tsv.gz --seeds 3`
    """
    torch.set_num_threads(1)
    until = monotonic() + 60 * minutes
    chosen = [*MODELS, "recbole"] if models == "all" else models.split(",")
    names = [name for name in chosen if name != "recbole"]
    if names:
        require_known(names)
    named: list[Protocol] = [protocol for protocol in PROTOCOLS if protocol in protocols.split(",")]
    logs = [_load(source) for source in sources]
    if costs:
        for log in logs:
            _measure_costs(cells, log, with_copies(names))
    for seed in range(seeds):  # one seed everywhere before a second anywhere
        for log in logs:
            for protocol in named:
                for group in groups(names):
                    if monotonic() < until and seed in wanted_seeds(group[0], range(seeds)):
                        _fill(cells, log, protocol, group, seed, effort, device)
    if "recbole" in chosen and recbole_epochs:
        for name in RECBOLE_MODELS:
            for log in logs:
                for protocol in named:
                    if monotonic() < until:
                        left = until - monotonic()
                        fill_recbole(cells, log, protocol, name, recbole_epochs, left, device, console.print)
    order = [*with_copies(list(MODELS)), *RECBOLE_MODELS]
    result = collect(cells, logs, named, order, list(range(seeds)))
    result |= {"effort": effort, "machine": computer()}
    keep_published(result, out, order)
    write(result, out)
    conclude(result, json)


def groups(names: list[str]) -> list[list[str]]:
    """Names of models that are fitted together: the compressed one with its copies and the ensemble it is in."""
    shared = COMPRESSED in names and Ensemble.name in names
    found = [with_copies([name]) for name in names if not (shared and name == Ensemble.name)]
    return [[*group, Ensemble.name] if shared and group[0] == COMPRESSED else group for group in found]


def with_copies(names: list[str]) -> list[str]:
    """The names, each followed by those of its smaller copies."""
    found = list[str]()
    for name in names:
        found += [name, *(f"{name}:{kind}" for kind in KINDS if name == COMPRESSED)]
    return found


def _load(source: str) -> Dataset:
    path = ml_100k(load_settings().cache_dir) / f"{ML_100K}.inter" if source == ML_100K else Path(source)
    return load(path)


def _measure_costs(cells: Path, log: Dataset, models: list[str]) -> None:
    with console.status(log.name) as status:
        measure_costs(cells, log, models, lambda name, share, note: status.update(f"{log.name}: {name}, {note}"))
    console.print(f"{log.name}: costs measured", style="dim")


def _fill(
    cells: Path, log: Dataset, protocol: Protocol, group: list[str], seed: int, effort: float, device: str
) -> None:
    if all(Cell(log.name, protocol, name, seed).path(cells).is_file() for name in group):
        return
    where = f"{log.name}, {protocol}, seed {seed}"
    with console.status(where) as status:

        def show(name: str, share: float, note: str) -> None:
            status.update(f"{where}: {name} {share:.0%} {note}")

        fill(cells, log, protocol, group, seed, effort, device, show)
    console.print(f"{where}: {', '.join(group)} done", style="dim")


if __name__ == "__main__":
    run(main)
