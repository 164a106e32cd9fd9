"""The report of an evaluation: one HTML page with its plots, and the figures as JSON.

The page holds its plots inside, so it can be sent as one file.
"""

import base64
import html
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

_SIDES: Final = ("unmasked", "masked")
_ACCURACY: Final = ("hr@5", "hr@10", "hr@20", "ndcg@5", "ndcg@10", "ndcg@20", "mrr@10", "precision@10", "f1@10", "auc")
_BEYOND: Final = (
    "coverage@10", "gini@10", "novelty@10", "diversity@10", "personalisation@10", "popularity_bias@10",
    "calibration@10",
)  # fmt: skip
_DPI: Final = 110
_SIGNS: Final = "osD^vP*"  # 7 signs and 10 colours: 70 models differ
_STYLE: Final = """
body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:13px}
th,td{padding:.25rem .6rem;text-align:right;border-bottom:1px solid #ddd;white-space:nowrap}
th:first-child,td:first-child{text-align:left}
img{max-width:100%} div.wide{overflow-x:auto}
"""


def write(body: dict[str, Any], folder: Path) -> Path:
    """Write ``report.html``, ``result.json``, ``accuracy.png`` and ``cost.png``.

    Args:
        body: From `models.evaluation.run.evaluate`.
        folder: Made when it is not there.

    Returns:
        The page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(body, indent=1), encoding="utf-8")
    plots = [_accuracy(body, folder / "accuracy.png"), _cost(body, folder / "cost.png")]
    page = folder / "report.html"
    page.write_text("".join(_page(body, plots)), encoding="utf-8")
    return page


def _page(body: dict[str, Any], plots: list[Path]) -> Iterator[str]:
    data = body["data"]
    yield f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(data['name'])}</title>"
    yield f"<style>{_STYLE}</style><h1>{html.escape(data['name'])}: {body['protocol']}</h1>"
    yield f"<p>{data['events']:,} events of {data['users']:,} users on {data['items']:,} items; "
    yield f"{data['learnt_events']:,} learnt, {data['judged_events']:,} judged by full ranking; "
    yield f"seeds: {body['seeds']}.</p>"
    yield "<ul>" + "".join(f"<li>{html.escape(note)}" for note in data["notes"]) + "</ul>"
    for plot in plots:
        yield f"<p><img alt='{plot.stem}' src='data:image/png;base64,{base64.b64encode(plot.read_bytes()).decode()}'>"
    for side in _SIDES:
        yield f"<h2>{side.capitalize()}</h2>"
        yield from _html_table(body, lambda figures, side=side: _with_interval(figures, side), _ACCURACY)
        yield "<h3>Beyond accuracy</h3>"
        yield from _html_table(body, lambda figures, side=side: figures[side], _BEYOND)
        yield "<h3>NDCG@10 by segment</h3>"
        names = dict.fromkeys(name for figures in body["models"].values() for name in figures["segments"][side])
        yield from _html_table(body, lambda figures, side=side: _segments(figures, side), tuple(names))
    if any("ratings" in figures for figures in body["models"].values()):
        yield "<h2>Ratings</h2>"
        yield from _html_table(
            body, lambda figures: figures.get("ratings", {}), ("rmse", "mae", "means_rmse", "means_mae")
        )
    copies = {name: name.partition(":")[0] for name in body["models"] if name.partition(":")[0] != name}
    if any(whole in body["models"] for whole in copies.values()):
        yield "<h2>Smaller copies</h2>"
        shown = {**body, "models": {name: figures for name, figures in body["models"].items() if _kin(name, copies)}}
        columns = ("model_bytes", "share of whole", "unmasked ndcg@10", "masked ndcg@10", "step_us", "score_us")
        yield from _html_table(shown, lambda figures: _copy(figures, body), columns)
    yield from _heads_and_lift(body)
    yield "<h2>Cost</h2>"
    columns = ("state_bytes", "model_bytes", "parameters", "step_us", "score_us", "seconds")
    yield from _html_table(body, lambda figures: {**figures["cost"], "seconds": figures["seconds"]}, columns)


def _heads_and_lift(body: dict[str, Any]) -> Iterator[str]:
    heads = dict.fromkeys(head for figures in body["models"].values() for head in figures.get("heads", {}))
    for head in heads:
        yield f"<h2>Head: {html.escape(head)}</h2>"
        of = {name: figures.get("heads", {}).get(head, {}) for name, figures in body["models"].items()}
        columns = tuple(dict.fromkeys(column for found in of.values() for column in found))
        yield from _table({name: found for name, found in of.items() if found}, columns)
    for side in _SIDES:
        of = {name: figures["lift"][side]["ndcg@10"] for name, figures in body["models"].items() if "lift" in figures}
        if of:
            yield f"<h2>NDCG@10 with the other log, {side}</h2>"
            words = {name: "{:+.4f} to {:+.4f}".format(*one["interval"]) for name, one in of.items()}
            shown = {name: {**one, "interval": words[name]} for name, one in of.items()}
            yield from _table(shown, ("without", "with", "difference", "interval", "relative"))


def _with_interval(figures: dict[str, Any], side: str) -> dict[str, Any]:
    shown = dict(figures[side])
    for name, (low, high) in figures["intervals"][side].items():
        if name in shown:
            shown[name] = f"{shown[name]:.4f} ({low:.4f}-{high:.4f})"
    return shown


def _segments(figures: dict[str, Any], side: str) -> dict[str, Any]:
    return {name: f"{part['ndcg@10']:.4f} ({part['events']:,})" for name, part in figures["segments"][side].items()}


def _kin(name: str, copies: dict[str, str]) -> bool:
    return name in copies or name in copies.values()


def _copy(figures: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
    """What a smaller copy of a model saves and costs, beside the whole one."""
    name = next(name for name, one in body["models"].items() if one is figures)
    whole = body["models"].get(name.partition(":")[0], figures)["cost"]["model_bytes"]
    share = {"share of whole": figures["cost"]["model_bytes"] / max(whole, 1)}
    return {**figures["cost"], **share, **{f"{side} ndcg@10": figures[side].get("ndcg@10") for side in _SIDES}}


def _html_table(body: dict[str, Any], of: Any, columns: tuple[str, ...]) -> Iterator[str]:
    yield from _table({name: of(figures) for name, figures in body["models"].items()}, columns)


def _table(rows: dict[str, dict[str, Any]], columns: tuple[str, ...]) -> Iterator[str]:
    yield "<div class=wide><table><tr><th>model" + "".join(f"<th>{html.escape(name)}" for name in columns)
    for name, values in rows.items():
        yield f"<tr><td>{html.escape(name)}" + "".join(f"<td>{_cell(values.get(column))}" for column in columns)
    yield "</table></div>"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4f}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else html.escape(str(value or ""))


def _accuracy(body: dict[str, Any], path: Path) -> Path:
    """NDCG@10 of every model with its interval, masked and unmasked side by side."""
    figure, axes = _figure(1, 2, 0.5 + 0.32 * len(body["models"]))
    names = sorted(body["models"], key=lambda name: body["models"][name]["unmasked"].get("ndcg@10", 0))
    for axis, side in zip(axes, _SIDES, strict=True):
        for place, name in enumerate(names):
            figures = body["models"][name]
            value = figures[side].get("ndcg@10", 0)
            low, high = figures["intervals"][side]["ndcg@10"]
            axis.errorbar(
                value, place, xerr=[[max(value - low, 0)], [max(high - value, 0)]], fmt="o", color="#1f5fa8", capsize=3
            )
        axis.set_yticks(range(len(names)), names)
        axis.set_ylim(-0.7, len(names) - 0.3)
        axis.set_xlabel(f"NDCG@10, {side} (95% over users)")
        axis.grid(axis="x", alpha=0.3)
    return _saved(figure, path)


def _cost(body: dict[str, Any], path: Path) -> Path:
    """Quality against the cost of an event and against state per user; models that nothing beats on both are joined."""
    figure, axes = _figure(1, 2, 4.2)
    quality = {name: figures["unmasked"].get("ndcg@10", 0) for name, figures in body["models"].items()}
    prices = {
        "microseconds an event (step and full scoring)": {
            name: figures["cost"]["step_us"] + figures["cost"]["score_us"] for name, figures in body["models"].items()
        },
        "bytes of state a user": {name: figures["cost"]["state_bytes"] for name, figures in body["models"].items()},
    }
    between = {name: figures["intervals"]["unmasked"]["ndcg@10"] for name, figures in body["models"].items()}
    for axis, (title, price) in zip(axes, prices.items(), strict=True):
        trade_off(axis, price, quality, between)
        axis.set(xlabel=title, ylabel="NDCG@10, unmasked")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=9)
    return _saved(figure, path)


def trade_off(
    axis: Any,
    price: dict[str, float],
    quality: dict[str, float],
    between: dict[str, list[float]],
    names: Sequence[str] = (),
) -> None:
    """Draw models by price (logarithmic) and quality with its interval, and join those that nothing beats on both.

    Every model has a colour and a sign of its own; a legend tells them.

    Args:
        axis: A matplotlib Axes.
        price: By name; a price of 0 is drawn as the least of the others.
        quality: By name.
        between: Low and high end of the quality by name.
        names: All names that plots beside each other have, so that colours and signs mean the same in all of them.
    """
    from matplotlib import colormaps
    from matplotlib.ticker import NullFormatter

    least = min((value for value in price.values() if value > 0), default=1.0)
    at = {name: max(value, least) for name, value in price.items()}
    front = pareto(at, quality)
    axis.plot([at[name] for name in front], [quality[name] for name in front], color="0.7", zorder=0)
    every = list(names or quality)
    for name, value in quality.items():
        number = every.index(name)
        color, sign = colormaps["tab10"](number % 10), _SIGNS[number % len(_SIGNS)]
        low, high = between[name]
        beyond = [[max(value - low, 0)], [max(high - value, 0)]]
        axis.errorbar(at[name], value, yerr=beyond, fmt=sign, color=color, ecolor=(*color[:3], 0.3), label=name)
    axis.set_xscale("log")
    axis.margins(x=0.08, y=0.08)
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.grid(alpha=0.3)


def pareto(price: dict[str, float], quality: dict[str, float]) -> list[str]:
    """Names that no other beats in both price and quality, cheapest first.

    Example:
        >>> pareto({"a": 1, "b": 2, "c": 3}, {"a": 0.1, "b": 0.05, "c": 0.2})
        ['a', 'c']
    """
    front: list[str] = []
    for name in sorted(price, key=lambda name: (price[name], -quality[name])):
        if not front or quality[name] > quality[front[-1]]:
            front.append(name)
    return front


def _figure(rows: int, columns: int, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, max(height, 2.4)), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns)


def _saved(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=_DPI)
    return path
