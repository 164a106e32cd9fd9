"""The quality table as Markdown, JSON and the plot of quality against cost."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.harness.quality_cells import SIDES, pooled, wanted_seeds
from benchmarks.harness.recbole_models import PREFIX, RECBOLE_MODELS
from benchmarks.harness.report import console
from models.evaluation.dataset import Dataset
from models.evaluation.report import trade_off

NAME: Final = "quality"
PLOTTED: Final = "leave-one-out"
# HR@10 and NDCG@10 that RecBole's models reached by leave-one-out where they were trained to the end, or as far as is
# said: figures of earlier runs of RecBole 1.2.1 on this split, not of this program.
PUBLISHED: Final[dict[str, dict[str, dict[str, Any]]]] = {
    "ml-100k": {
        f"{PREFIX}GRU4Rec": {
            "unmasked": {"hr@10": 0.1177, "ndcg@10": 0.0567},
            "masked": {"hr@10": 0.1919, "ndcg@10": 0.0986},
            "note": "earlier run, converged",
        },
        f"{PREFIX}SASRec": {
            "unmasked": {"hr@10": 0.1400, "ndcg@10": 0.0652},
            "masked": {"hr@10": 0.2227, "ndcg@10": 0.1143},
            "note": "earlier run, 5 epochs, not converged",
        },
    }
}
_COUNTING: Final = ("popularity", "markov", "skip-markov", "session-knn")
_OPENING: Final = """# Quality of every model

    {command}

fills the table cell by cell (data set, protocol, model, seed), goes on where it was interrupted and writes this page,
`quality.json` and `quality-pareto.png` from the cells there are, and from the rows before for which there are none. The
same figures of one data set come from
`recstream evaluate DATA --models all --protocol leave-one-out --seeds 3 --json`. `ml-100k` is downloaded by pip;
`{example}` stands for Amazon Beauty, 5-core, in S3Rec's preparation.

Every item is ranked for every judged event. **Unmasked**, every item competes; **masked**, items the user had before do
not, and a repeat is a miss. In brackets the 95% interval of the mean over users and seeds (bootstrap over users). A
dagger marks figures that this program did not measure. `seeds`: fits behind a line; models that count have only one.
`seconds`: a fit and its ranking on one core, median over seeds; the machine is shared and some include waiting.
`us an event`: a step and the scores of every item, batches of 256 users, one thread, the quickest of the fits and of
`--costs`, which measures them on a machine at rest.

Neural models learn how much more or less the last 50 items of a user should score, the ensemble one weight for the last
500. Nobody comes back to an item in these data sets, so their two columns are nearly alike where histories are short.
Models that count and RecBole's recommend in the unmasked column what the user has: like is compared with like in the
masked one.
"""


def collect(
    cells: Path, logs: Sequence[Dataset], protocols: Sequence[str], models: Sequence[str], seeds: Sequence[int]
) -> dict[str, Any]:
    """All there is: ``{"tables": {data: {protocol: {model: figures}}}, "data": {...}}``."""
    tables: dict[str, Any] = {}
    described: dict[str, Any] = {}
    for log in logs:
        described[log.name] = {"users": log.source.users, "items": log.items - 1, "events": len(log.source)}
        for protocol in protocols:
            found = {}
            for model in models:
                figures = pooled(cells, log.name, protocol, model, wanted_seeds(model, seeds))
                if figures is not None:
                    found[model] = figures
            tables.setdefault(log.name, {})[protocol] = found
    return {"data": described, "tables": tables}


def keep_published(result: dict[str, Any], out: Path, order: Sequence[str]) -> None:
    """Add the rows of the ``quality.json`` in `out` for which no cell is at hand, such as RecBole's, which took days.

    Args:
        result: What `collect` found, with its ``effort``; changed in place.
        out: Where the page is.
        order: Of the models in a table.
    """
    path = out / f"{NAME}.json"
    before: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if before.get("effort") != result["effort"]:
        return
    for name, protocols in before["tables"].items():
        result["data"].setdefault(name, before["data"][name])
        tables = result["tables"].setdefault(name, {})
        for protocol, models in protocols.items():
            found = {**models, **tables.get(protocol, {})}
            tables[protocol] = {model: found[model] for model in order if model in found}


def write(result: dict[str, Any], out: Path) -> None:
    """Write ``quality.md``, ``quality.json`` and ``quality-pareto.png``."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{NAME}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (out / f"{NAME}.md").write_text(markdown(result), encoding="utf-8")
    _plot(result, out / f"{NAME}-pareto.png")
    console.print(f"[dim]{NAME}.md, {NAME}.json and {NAME}-pareto.png are in {out}")


def markdown(result: dict[str, Any]) -> str:
    """The page."""
    names = list(result["tables"])
    sources = " ".join(name if name == "ml-100k" else f"{name}.tsv.gz" for name in names)
    example = next((f"{name}.tsv.gz" for name in names if name != "ml-100k"), "FILE")
    parts = [_OPENING.format(command=f"python -m benchmarks.quality_table {sources}", example=example)]
    parts += ["## Goals\n", _goals(result), "![quality against cost](quality-pareto.png)\n"]
    for name, protocols in result["tables"].items():
        data = result["data"][name]
        for protocol, models in protocols.items():
            if models:
                parts.append(f"## {name}, {protocol}\n")
                if protocol == PLOTTED:
                    parts.append(f"{data['events']:,} events, {data['users']:,} users, {data['items']:,} items.\n")
                parts.append(_table(name, protocol, models))
    machine = result["machine"]
    parts.append(f"Measured on {machine['cpu']}, {machine['cores']} cores shared with other work, one thread a fit.\n")
    return "\n".join(parts)


def _table(data: str, protocol: str, models: dict[str, Any]) -> str:
    titles = ["model", "seeds"]
    for side in SIDES:
        titles += [f"{side} HR@10", f"{side} NDCG@10"]
    titles += ["coverage@10", "seconds", "us an event", "state bytes", "model bytes", ""]
    lines = [_row(titles), "|---" * len(titles) + "|"]
    whole = [name for name in models if ":" not in name]
    best = {side: max(whole, key=lambda name, side=side: models[name][side]["ndcg@10"]) for side in SIDES}
    shown = {name: _cells(figures, [side for side in SIDES if best[side] == name]) for name, figures in models.items()}
    if protocol == PLOTTED:
        for name, figures in PUBLISHED.get(data, {}).items():
            sides = [f"{figures[side][key]:.4f}†" for side in SIDES for key in ("hr@10", "ndcg@10")]
            shown[f"{name} †"] = ["", *sides, "", "", "", "", "", figures["note"]]
    lines += [_row([name, *cells]) for name, cells in shown.items()]
    return "\n".join(lines) + "\n"


def _cells(figures: dict[str, Any], best: list[str]) -> list[str]:
    cells = [str(len(figures["seeds"]))]
    for side in SIDES:
        low, high = figures[side]["ndcg@10 interval"]
        ndcg = f"{figures[side]['ndcg@10']:.4f}"
        ndcg = f"**{ndcg}**" if side in best else ndcg
        cells += [f"{figures[side]['hr@10']:.4f}", f"{ndcg} ({low:.4f}-{high:.4f})"]
    coverage = figures["unmasked"].get("coverage@10")
    cells += ["" if coverage is None else f"{coverage:.3f}", f"{figures['seconds']:,.0f}"]
    cost = figures.get("cost", {})
    cells.append(f"{cost['step_us'] + cost['score_us']:.0f}" if cost else "")
    cells += [f"{cost[name]:,}" if cost else "" for name in ("state_bytes", "model_bytes")]
    return [*cells, figures.get("note") or ""]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _goals(result: dict[str, Any]) -> str:
    """By leave-one-out: ours against RecBole's of the same kind, and the best against the models that count."""
    titles = ["data", "goal", *(f"NDCG@10 {side}" for side in SIDES)]
    lines = [_row(titles), "|---" * len(titles) + "|"]
    for data, protocols in result["tables"].items():
        ours = protocols.get(PLOTTED, {})
        theirs = {**PUBLISHED.get(data, {})}
        for name in RECBOLE_MODELS:
            measured = ours.get(name)
            if measured and measured["unmasked"]["ndcg@10"] > theirs.get(name, measured)["unmasked"]["ndcg@10"]:
                theirs[name] = measured
            theirs.setdefault(name, measured or {})
        pairs = [("gru", f"{PREFIX}GRU4Rec"), ("transformer", f"{PREFIX}SASRec"), ("bert", f"{PREFIX}BERT4Rec")]
        for mine, other in pairs:
            if mine in ours and theirs.get(other):
                lines.append(_row([data, f"{mine} >= {other}", *_compared(ours[mine], theirs[other])]))
        counting = [ours[name] for name in _COUNTING if name in ours]
        models = [name for name in ours if name not in (*_COUNTING, *RECBOLE_MODELS) and ":" not in name]
        if counting and models:
            cells = []
            for side in SIDES:
                best = max(models, key=lambda name, side=side: ours[name][side]["ndcg@10"])
                bar = max(counting, key=lambda one, side=side: one[side]["ndcg@10"])
                cells.append(f"{best} {_compared(ours[best], bar)[SIDES.index(side)]}")
            lines.append(_row([data, "the best model > every one that counts", *cells]))
    return "\n".join(lines) + "\n"


def _compared(mine: dict[str, Any], other: dict[str, Any]) -> list[str]:
    cells = []
    unfinished = ", theirs not converged" if "not converged" in other.get("note", "") else ""
    for side in SIDES:
        a, b = mine[side]["ndcg@10"], other[side]["ndcg@10"]
        cells.append(f"{a:.4f} against {b:.4f}: {'reached' if a >= b else '**missed**'}{unfinished}")
    return cells


def _plot(result: dict[str, Any], path: Path) -> None:
    """A row of plots per data set: NDCG@10 against the cost of an event, and against the bytes of a user's state."""
    from matplotlib.figure import Figure

    tables = {name: protocols.get(PLOTTED, {}) for name, protocols in result["tables"].items()}
    tables = {name: {key: one for key, one in models.items() if "cost" in one} for name, models in tables.items()}
    tables = {name: models for name, models in tables.items() if models}
    if not tables:
        return
    every = list(dict.fromkeys(name for models in tables.values() for name in models))
    figure = Figure(figsize=(12, 4.6 * len(tables)), layout="constrained")
    axes = figure.subplots(len(tables), 2, squeeze=False)
    for row, (name, models) in zip(axes, tables.items(), strict=True):
        quality = {model: figures["masked"]["ndcg@10"] for model, figures in models.items()}
        between = {model: figures["masked"]["ndcg@10 interval"] for model, figures in models.items()}
        prices = {
            "microseconds an event: step and scores of every item": {
                model: figures["cost"]["step_us"] + figures["cost"]["score_us"] for model, figures in models.items()
            },
            "bytes of state a user": {model: figures["cost"]["state_bytes"] for model, figures in models.items()},
        }
        for axis, (title, price) in zip(row, prices.items(), strict=True):
            trade_off(axis, price, quality, between, every)
            axis.set(xlabel=title, ylabel="NDCG@10, masked", title=f"{name}, {PLOTTED}")
    told = {name: sign for row in axes for sign, name in zip(*row[0].get_legend_handles_labels(), strict=True)}
    figure.legend([told[name] for name in every], every, loc="outside right center", fontsize=9)
    figure.savefig(path, dpi=110)
