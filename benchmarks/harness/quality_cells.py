"""Cells of the quality table: one model, data set, protocol and seed each, kept as files, so that a run can go on.

A cell is what `models.evaluation.run.evaluate` says of a model fitted with one seed, and the ranks behind it: the
interval of a mean over seeds is made from the ranks of all of them.

Letters: K judged events.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from models.evaluation.cost import cost
from models.evaluation.dataset import Dataset
from models.evaluation.fitting import SEEDLESS, Fits, Teaching, lesson_of
from models.evaluation.intervals import intervals
from models.evaluation.judging import Judgement
from models.evaluation.run import Settings, evaluate
from models.evaluation.splits import Protocol, split_by

SIDES: Final = ("unmasked", "masked")
_MOMENT: Final = 1e-6  # of the training budget
_COST_TRIES: Final = 3
Report = Callable[[str, float, str], object]


@dataclass(frozen=True, slots=True)
class Cell:
    """Which figures.

    Attributes:
        data: Name of the data set.
        protocol: Name of the protocol.
        model: Name of the model, ``gru:int8`` for a smaller copy.
        seed: Of the fit.
    """

    data: str
    protocol: str
    model: str
    seed: int

    def path(self, folder: Path) -> Path:
        """The file of the figures; the ranks are beside it, ending in ``.npz``."""
        return folder / self.data / self.protocol / f"{self.model.replace(':', '-')}.{self.seed}.json"


def store(folder: Path, cell: Cell, body: dict[str, Any], users: NDArray[np.int64], ranks: Sequence[Any]) -> None:
    """Write a cell: figures, and the judged users (K,) with their unmasked and masked ranks (K,)."""
    path = cell.path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path.with_suffix(".npz"), users=users, unmasked=ranks[0], masked=ranks[1])
    path.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")  # last: a cell without figures is not there


def fill(
    folder: Path,
    data: Dataset,
    protocol: Protocol,
    models: Sequence[str],
    seed: int,
    effort: float,
    device: str,
    report: Report,
) -> None:
    """Fit and judge models that share a fit (``gru``, ``gru:int8``, ...), as `recstream evaluate` does."""
    kept: dict[str, Judgement] = {}
    settings = Settings(protocol, perf_counter, effort=effort, first_seed=seed, device=device)
    body = evaluate(data, list(models), settings, report, lambda name, seed, judgement: kept.update({name: judgement}))
    for name, judgement in kept.items():
        users = np.searchsorted(data.source.starts, judgement.events, side="right") - 1
        ranks = [getattr(judgement, side).ranks for side in SIDES]
        found = {"data": body["data"], "figures": body["models"][name], "effort": effort}
        store(folder, Cell(data.name, protocol, name, seed), found, users, ranks)


def measure_costs(folder: Path, data: Dataset, models: Sequence[str], report: Report) -> None:
    """Measure what an event costs with each model, and keep it for all protocols.

    A cost depends on shapes and counts, not on what weights were learnt, so models are fitted for a moment only.
    """
    split, _ = split_by(data, "leave-one-out")
    lesson = lesson_of(data, split, 0, _MOMENT, lambda share, note: None)
    fits = Fits(data, {}, perf_counter, Teaching(), shared=True)
    path = folder / data.name / "costs.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for number, name in enumerate(models):
        report(name, number / len(models), "cost of an event")
        model, _ = fits.fit(name, lesson)
        tries = [cost(model, data, perf_counter) for _ in range(_COST_TRIES)]
        found[name] = {key: min(one[key] for one in tries) for key in tries[0]}
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def wanted_seeds(model: str, seeds: Sequence[int]) -> list[int]:
    """The seeds a model is fitted with: the first alone where nothing is drawn at random."""
    return list(seeds)[:1] if model.partition(":")[0] in SEEDLESS else list(seeds)


def pooled(folder: Path, data: str, protocol: str, model: str, seeds: Sequence[int]) -> dict[str, Any] | None:
    """Means over the seeds there are, with intervals from the ranks of all of them; None when there is none."""
    cells = [Cell(data, protocol, model, seed) for seed in seeds]
    there = [cell for cell in cells if cell.path(folder).is_file()]
    if not there:
        return None
    bodies = [json.loads(cell.path(folder).read_text(encoding="utf-8")) for cell in there]
    ranks = [np.load(cell.path(folder).with_suffix(".npz")) for cell in there]
    found: dict[str, Any] = {"seeds": [cell.seed for cell in there]}
    users = np.concatenate([one["users"] for one in ranks])
    for side in SIDES:
        sides = [body["figures"][side] for body in bodies]
        found[side] = {key: round(float(np.mean([one[key] for one in sides])), 6) for key in sides[0]}
        between = intervals(np.concatenate([one[side] for one in ranks]), users)
        found[side] |= {f"{name} interval": value for name, value in between.items()}
        found[side]["ndcg@10 by seed"] = [one["ndcg@10"] for one in sides]
    found["seconds"] = round(float(np.median([body["figures"]["seconds"] for body in bodies])), 1)
    costs = [body["figures"]["cost"] for body in bodies if "cost" in body["figures"]]
    if costs:  # the quickest: a busy machine only adds to it
        apart = folder / data / "costs.json"
        measured = json.loads(apart.read_text(encoding="utf-8")).get(model, {}) if apart.is_file() else {}
        found["cost"] = {key: min(one[key] for one in (*costs, measured) if key in one) for key in costs[0]}
    notes = [body["figures"].get("note") or body["figures"].get("text") for body in bodies]
    if notes[0]:
        found["note"] = notes[0]
    return found
