"""Grafana's JSON out of a few words per panel: `python deploy/grafana/panels.py` writes dashboards/*.json.

The dashboards are in `content.py` beside this file. The JSON is committed, since Grafana reads files, and never edited;
a test compares it with what this program makes.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

HERE = Path(__file__).parent
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_GRID = 24  # columns of Grafana's grid
_HEIGHTS = {"stat": 4, "timeseries": 8, "heatmap": 8}


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel.

    Args:
        title: What it shows.
        queries: Pairs of PromQL and legend.
        unit: Grafana's name of the unit: `short`, `s`, `percentunit`, `bytes`, `eps` (events per second), ...
        kind: How it is drawn.
        width: Columns of 24.
        text: What a reader should know; shown behind the panel's (i).
        above: A value from which on a stat is red; a dashed line in a time series.
        below: A value below which it is drawn red, with `kind` stat.
        name: Show the series' name instead of its value, with `kind` stat.
        stack: Pile the series up.
        log: A logarithmic axis, for what spans orders of magnitude.
        nothing: What the panel says instead of `No data`, where having none is well.
    """

    title: str
    queries: Sequence[tuple[str, str]]
    unit: str = "short"
    kind: Literal["stat", "timeseries", "heatmap"] = "timeseries"
    width: int = 12
    text: str = ""
    above: float | None = None
    below: float | None = None
    name: bool = False
    stack: bool = False
    log: bool = False
    nothing: str = ""


@dataclass(frozen=True, slots=True)
class Dashboard:
    """A page of panels, laid out left to right and top to bottom in rows of equal height."""

    uid: str
    title: str
    text: str
    panels: Sequence[Panel]


def build(dashboard: Dashboard) -> dict[str, Any]:
    """The dashboard as Grafana's JSON."""
    panels, x, y, height = [], 0, 0, 0
    for number, panel in enumerate(dashboard.panels, 1):
        if x + panel.width > _GRID:
            x, y = 0, y + height
        height = _HEIGHTS[panel.kind]
        panels.append(_panel(panel, number, {"x": x, "y": y, "w": panel.width, "h": height}))
        x += panel.width
    return {
        "uid": dashboard.uid,
        "title": f"recstream / {dashboard.title}",
        "description": dashboard.text,
        "tags": ["recstream"],
        "schemaVersion": 41,
        "editable": False,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "graphTooltip": 1,  # one crosshair for all panels
        "links": [{"type": "dashboards", "tags": ["recstream"], "title": "recstream", "includeVars": True,
                   "keepTime": True, "asDropdown": False}],
        "templating": {"list": [{"name": "datasource", "label": "Prometheus", "type": "datasource",
                                 "query": "prometheus", "current": {}, "hide": 0}]},
        "annotations": {"list": [{
            "name": "model swaps", "datasource": SOURCE, "enable": True, "iconColor": "blue",
            "expr": "1000 * recstream_model_loaded_timestamp_seconds > 0", "useValueForTime": True, "step": "10s",
            "titleFormat": "model swapped in", "textFormat": "{{instance}}",
        }]},
        "panels": panels,
    }  # fmt: skip


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.above is not None:
        steps.append({"color": "red", "value": panel.above})
    if panel.below is not None:
        steps = [{"color": "red", "value": None}, {"color": "green", "value": panel.below}]
    custom: dict[str, Any] = {}
    options: dict[str, Any] = {}
    if panel.kind == "timeseries":
        custom = {"fillOpacity": 25 if panel.stack else 0, "showPoints": "never", "lineWidth": 1,
                  "stacking": {"mode": "normal" if panel.stack else "none"},
                  "thresholdsStyle": {"mode": "off" if panel.above is None else "dashed"},
                  "axisSoftMax": None if panel.above is None else 2 * panel.above,  # the line is always in sight
                  "scaleDistribution": {"type": "log", "log": 10} if panel.log else {"type": "linear"}}  # fmt: skip
        options = {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    elif panel.kind == "stat":
        text = "name" if panel.name else "value"
        options = {
            "reduceOptions": {"calcs": ["lastNotNull"]},
            "colorMode": "value",
            "graphMode": "none",
            "textMode": text,
        }
    else:
        options = {"calculate": False, "yAxis": {"unit": panel.unit}, "color": {"scheme": "Blues", "steps": 64}}
    return {
        "id": number,
        "title": panel.title,
        "description": panel.text,
        "type": panel.kind,
        "gridPos": place,
        "datasource": SOURCE,
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "min": 0 if panel.kind == "timeseries" and not panel.log else None,
                "noValue": panel.nothing or None,
                "thresholds": {"mode": "absolute", "steps": steps},
                "custom": custom,
            },
            "overrides": [],
        },
        "options": options,
        "targets": [
            {
                "refId": chr(ord("A") + i),
                "datasource": SOURCE,
                "expr": expr,
                "legendFormat": legend,
                "format": "heatmap" if panel.kind == "heatmap" else "time_series",
                # A range's last value would stay on the panel for as long as the range after its series has ended.
                "instant": panel.kind == "stat",
                "range": panel.kind != "stat",
            }
            for i, (expr, legend) in enumerate(panel.queries)
        ],
    }


def render(dashboard: Dashboard) -> str:
    """The text of the dashboard's file."""
    return json.dumps(build(dashboard), indent=1) + "\n"


def main() -> int:
    """Write every dashboard."""
    sys.path.insert(0, str(HERE))
    from content import DASHBOARDS

    for name, dashboard in DASHBOARDS.items():
        (HERE / "dashboards" / f"{name}.json").write_text(render(dashboard))
    return 0


if __name__ == "__main__":
    sys.modules.setdefault("panels", sys.modules["__main__"])  # content imports it by name
    sys.exit(main())
