"""Panels of a dashboard as a matplotlib figure: Grafana's grid, units and thresholds in a plain dark style.

Kinds: time series, stat, heatmap; of another kind the panel says that it is not drawn. A panel whose queries return no
number says `No data`, or what its `noValue` says.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

_COLUMN, _ROW, _GAP, _HEAD, _TITLE = 64, 38, 8, 52, 30  # pixels; 24 columns, rows of 30 and a gap as in Grafana
_DPI = 100
_LEGEND_ROWS = 3
_PAGE, _PANEL, _TEXT, _DIM, _GRID = "#111217", "#181b1f", "#d8d9da", "#9a9da3", "#2c3036"
_COLORS = ("#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#5794f2", "#b877d9", "#37872d", "#ffb357", "#c4162a",
           "#56d9c8", "#ca95e5", "#fff899", "#1f60c4", "#ff9830", "#ffa6b0")  # fmt: skip
_NAMED = {"green": "#73bf69", "red": "#f2495c", "blue": "#5794f2", "orange": "#ff9830", "yellow": "#fade2a"}
_SUFFIX = {"ops": " ops/s", "eps": " evt/s", "mps": " msg/s", "recps": " rec/s", "cps": " c/s"}
_SPANS = ((1e-6, 1e9, "ns"), (1e-3, 1e6, "µs"), (1, 1e3, "ms"), (60, 1, "s"), (3600, 1 / 60, "min"),
          (86_400, 1 / 3600, "hours"), (604_800, 1 / 86_400, "days"), (31_536_000, 1 / 604_800, "weeks"),
          (np.inf, 1 / 31_536_000, "years"))  # fmt: skip
_TICKS = (5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21_600)  # seconds between two times on an axis


@dataclass(frozen=True, slots=True)
class Series:
    """A named line: values (T,), NaN where there is none; (1,) of an instant query."""

    name: str
    values: NDArray[np.float64]


Answers = Mapping[int, Sequence[Series]]  # by panel id
Marks = Sequence[float]  # Unix times of annotations


def formatted(value: float, unit: str) -> str:
    """A value with its unit, three digits, as Grafana names units.

    Example:
        >>> formatted(0.0421, "s"), formatted(12_345, "ops"), formatted(0.1234, "percentunit"), formatted(2048, "bytes")
        ('42.1 ms', '12.3 K ops/s', '12.3%', '2 KiB')
    """
    if not np.isfinite(value):
        return str(value)
    size = abs(value)
    if unit == "percentunit":
        return f"{_digits(100 * value)}%"
    if unit == "s":
        factor, name = next((factor, name) for below, factor, name in _SPANS if size < below) if size else (1.0, "s")
        return f"{_digits(value * factor)} {name}"
    base, names = (1024, ("B", "KiB", "MiB", "GiB", "TiB")) if unit == "bytes" else (1000, ("", "K", "M", "B", "T"))
    power = min(int(np.log(size) / np.log(base) + 1e-9), len(names) - 1) if size >= 1 else 0
    return f"{_digits(value / base**power)} {names[power]}".rstrip() + _SUFFIX.get(unit, "")


def _digits(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def color_of(value: float, panel: Mapping[str, Any]) -> str:
    """The colour of the highest threshold that a value has reached."""
    steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    return _NAMED[[step["color"] for step in steps if step["value"] is None or value >= step["value"]][-1]]


def empty(dashboard: Mapping[str, Any], answers: Answers) -> list[str]:
    """Titles of the panels without a number."""
    return [panel["title"] for panel in dashboard["panels"] if not _any(answers[panel["id"]])]


def _any(series: Sequence[Series]) -> bool:
    return any(np.isfinite(one.values).any() for one in series)


def draw(dashboard: Mapping[str, Any], answers: Answers, marks: Marks, times: NDArray[np.float64], source: str) -> Any:
    """The dashboard as a matplotlib figure.

    Args:
        dashboard: Grafana's JSON.
        answers: What each panel's queries returned.
        marks: Times of annotations, drawn across panels with a time axis.
        times: (T,) the points' Unix times.
        source: Where the numbers are from.
    """
    from matplotlib.figure import Figure

    places = [panel["gridPos"] for panel in dashboard["panels"]]
    width = 24 * _COLUMN + 2 * _GAP
    height = _HEAD + _ROW * max(place["y"] + place["h"] for place in places) + _GAP
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor=_PAGE)
    page = _axes(figure, (0, 0, width, height), "none")
    page.set(xlim=(0, width), ylim=(height, 0))
    page.text(2 * _GAP, 26, dashboard["title"], color=_TEXT, fontsize=13, va="center", weight="bold")
    until = datetime.fromtimestamp(times[-1], UTC)
    span = formatted(float(times[-1] - times[0]), "s")
    note = f"last {span} until {until:%Y-%m-%d %H:%M:%S} UTC; drawn by preview.py from {source}, not by Grafana"
    page.text(width - 2 * _GAP, 26, note, color=_DIM, fontsize=8, va="center", ha="right")
    for panel in dashboard["panels"]:
        place, series = panel["gridPos"], answers[panel["id"]]
        left, top = _GAP + place["x"] * _COLUMN, _HEAD + place["y"] * _ROW
        wide, high = place["w"] * _COLUMN - _GAP, place["h"] * _ROW - _GAP
        _axes(figure, (left, top, wide, high), _PANEL)
        page.text(left + 10, top + 15, panel["title"], color=_TEXT, fontsize=8.5, va="center", weight="bold", zorder=9)
        inner = (left, top + _TITLE, wide, high - _TITLE)
        if not _any(series) or panel["type"] not in _KINDS:
            text = panel["fieldConfig"]["defaults"].get("noValue") or "No data"
            text = text if panel["type"] in _KINDS else f"{panel['type']} panels are not drawn"
            _middle(figure, inner, [(text, _DIM)], 11)
            continue
        _KINDS[panel["type"]](figure, inner, panel, series, marks, times)
    page.set_zorder(5)
    return figure


def _axes(figure: Any, box: tuple[float, float, float, float], color: str) -> Any:
    """Axes without ticks at a box of pixels (left, top, width, height)."""
    wide, high = figure.get_size_inches() * _DPI
    left, top, width, height = box
    axes = figure.add_axes((left / wide, 1 - (top + height) / high, width / wide, height / high), facecolor=color)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return axes


def _middle(figure: Any, box: tuple[float, float, float, float], lines: Sequence[tuple[str, str]], size: float) -> None:
    axes = _axes(figure, box, "none")
    for number, (text, color) in enumerate(lines):
        axes.text(0.5, 1 - (number + 0.55) / len(lines), text, color=color, fontsize=size, ha="center", va="center")


def _stat(figure: Any, box: Any, panel: Any, series: Sequence[Series], marks: Marks, times: Any) -> None:
    """The last value of each series, or its name, as large as fits."""
    last = [(one.name, float(one.values[np.isfinite(one.values)][-1])) for one in series if _any([one])]
    unit, named = panel["fieldConfig"]["defaults"]["unit"], panel["options"]["textMode"] == "name"
    lines = [(name if named else formatted(value, unit), color_of(value, panel)) for name, value in last]
    size = min(24, 1.1 * box[2] / max(len(text) for text, _ in lines), 0.45 * box[3] / len(lines))
    _middle(figure, box, lines, size)


def _lines(figure: Any, box: Any, panel: Any, series: Sequence[Series], marks: Marks, times: Any) -> None:
    """Lines over time, piled up where the panel says so, with a legend below."""
    defaults = panel["fieldConfig"]["defaults"]
    left, top, wide, high = box
    below = 24 + _legend(figure, box, [one.name for one in series])
    axes = _over_time(figure, (left + 74, top, wide - 100, high - below - 6), marks, times)
    stacked = defaults["custom"]["stacking"]["mode"] == "normal"
    floor = np.zeros(len(times))
    for number, one in enumerate(series):
        color = _COLORS[number % len(_COLORS)]
        line = floor + one.values if stacked else one.values
        axes.plot(times, line, color=color, linewidth=1.2)
        if stacked:
            opacity = defaults["custom"]["fillOpacity"] / 100
            axes.fill_between(times, floor, line, color=color, alpha=opacity, linewidth=0)
            floor = floor + np.nan_to_num(one.values)
    _scale(axes, defaults)
    low, high = axes.get_ylim()
    if defaults["custom"]["thresholdsStyle"]["mode"] != "off":
        for step in defaults["thresholds"]["steps"]:
            if step["value"] is not None and low < step["value"] < high:
                axes.axhline(step["value"], color=_NAMED[step["color"]], linewidth=1, linestyle=(0, (4, 4)))


def _scale(axes: Any, defaults: Mapping[str, Any]) -> None:
    """The axis of values: from the panel's minimum, with round numbers of its unit."""
    from matplotlib.ticker import LogLocator, MaxNLocator, MultipleLocator, NullLocator

    unit, soft = defaults["unit"], defaults["custom"].get("axisSoftMax") or 0.0
    if defaults["custom"]["scaleDistribution"]["type"] == "log":
        axes.set_yscale("log")
        axes.set_ylim(top=max(axes.get_ylim()[1], soft))
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(LogLocator(10, (1.0, 2.0, 5.0) if high < 30 * low else (1.0,), numticks=6))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        if defaults.get("min") is not None:
            top = max(axes.dataLim.y1, soft)
            axes.set_ylim(defaults["min"], 1.06 * top if top > defaults["min"] else defaults["min"] + 1)
        span = np.ptp(axes.get_ylim())
        round_bytes = MultipleLocator(2 ** np.ceil(np.log2(span / 5)))
        axes.yaxis.set_major_locator(round_bytes if unit == "bytes" else MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(lambda value, _: formatted(value, unit))


def _heatmap(figure: Any, box: Any, panel: Any, series: Sequence[Series], marks: Marks, times: Any) -> None:
    """Cumulative buckets as rows of their own counts: the brighter, the more."""
    left, top, wide, high = box
    axes = _over_time(figure, (left + 74, top, wide - 100, high - 34), marks, times)
    series = sorted(series, key=lambda one: float(one.name))
    counts = np.diff(np.nan_to_num([one.values for one in series]), axis=0, prepend=0)  # (buckets, T)
    counts = np.where(counts > 0, counts, np.nan)
    edges = np.append(times, 2 * times[-1] - times[-2])
    axes.pcolormesh(edges, np.arange(len(series) + 1), counts, cmap="Blues_r", vmin=-0.5 * np.nanmax(counts))
    names = [formatted(float(one.name), panel["options"]["yAxis"]["unit"]) for one in series]
    axes.set_yticks(np.arange(len(series)) + 1, names, fontsize=7)
    axes.grid(visible=False)


def _over_time(figure: Any, box: Any, marks: Marks, times: Any) -> Any:
    from matplotlib.ticker import MultipleLocator

    axes = _axes(figure, box, "none")
    axes.set_xlim(times[0], times[-1])
    span = times[-1] - times[0]
    every = next((seconds for seconds in _TICKS if span / seconds <= 7), 86_400)
    axes.xaxis.set_major_locator(MultipleLocator(every))
    clock = "%H:%M:%S" if every < 60 else "%H:%M"
    axes.xaxis.set_major_formatter(lambda value, _: datetime.fromtimestamp(value, UTC).strftime(clock))
    axes.tick_params(colors=_DIM, labelsize=8, length=0)
    axes.grid(color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    for mark in marks:
        axes.axvline(mark, color=_NAMED["blue"], linewidth=0.8, alpha=0.6, linestyle=(0, (2, 3)))
    return axes


def _legend(figure: Any, box: Any, names: Sequence[str]) -> float:
    """Write the names at the bottom of a box, in as many rows as they need; returns the height in pixels."""
    left, top, wide, high = box
    rows: list[list[tuple[float, int, str]]] = [[]]
    x = 12.0
    for number, name in enumerate(names):
        width = 26 + 6.3 * len(name)
        if x + width > wide and rows[-1]:
            rows.append([])
            x = 12.0
        rows[-1].append((x, number, name))
        x += width
    shown = rows[:_LEGEND_ROWS]
    hidden = len(names) - sum(len(row) for row in shown)
    axes = _axes(figure, (left, top + high - 18 * len(shown) - 4, wide, 18 * len(shown)), "none")
    axes.set(xlim=(0, wide), ylim=(18 * len(shown), 0))
    for line, row in enumerate(shown):
        for at, number, name in row:
            color = _COLORS[number % len(_COLORS)]
            axes.plot([at, at + 12], [18 * line + 9] * 2, color=color, linewidth=2.5)
            axes.text(at + 17, 18 * line + 9, name, color=_TEXT, fontsize=7.5, va="center")
    if hidden:
        more = f"and {hidden} more"
        axes.text(wide - 8, 18 * len(shown) - 9, more, color=_DIM, fontsize=7.5, va="center", ha="right")
    return 18.0 * len(shown)


_KINDS = {"stat": _stat, "timeseries": _lines, "heatmap": _heatmap}
