"""Draws a dashboard to a PNG from a running Prometheus, where Grafana is not at hand.

    python deploy/grafana/preview.py overview --prometheus http://localhost:9090 --minutes 10 --out overview.png

It asks what Grafana would ask (the same queries, steps and `$__rate_interval`) and lays panels out on Grafana's grid.
The look is its own, see drawing.py: it shows what the queries return, not how Grafana paints.
"""

import json
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from drawing import Answers, Marks, Series, draw, empty

from state.errors import RecstreamError
from streams.console import exit_status, say
from streams.errors import SettingsError

DASHBOARDS = Path(__file__).parent / "dashboards"
SCRAPE_SECONDS = 10.0  # as in provisioning/datasources/prometheus.yml and deploy/prometheus/prometheus.yml
_POINTS = 700  # at most so many steps: about the pixels of a panel of half the width
_VARIABLE = re.compile(r"\$(?:\{(\w+)(?::\w+)?\}|([A-Za-z_]\w*))")


def load(name: str) -> dict[str, Any]:
    """The dashboard's JSON.

    Raises:
        SettingsError: there is no such dashboard.
    """
    path = DASHBOARDS / f"{name}.json"
    if not path.is_file():
        there = ", ".join(sorted(found.stem for found in DASHBOARDS.glob("*.json")))
        what, why = f"there is no dashboard {name}", f"{DASHBOARDS} has {there or 'none'}"
        raise SettingsError(what, why, "name one of them, or write them with python deploy/grafana/panels.py")
    return dict(json.loads(path.read_text()))


def filled(expr: str, variables: Mapping[str, str]) -> str:
    """A query with its variables replaced, as `$name`, `${name}` or `${name:format}`.

    Raises:
        RecstreamError: a variable has no value.

    Example:
        >>> filled("rate(a[$__rate_interval])", {"__rate_interval": "40s"})
        'rate(a[40s])'
    """

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in variables:
            what, why = f"the query {expr} cannot be filled in", f"${name} has no value"
            raise RecstreamError(what, why, "give the variable a current value in the dashboard's templating")
        return variables[name]

    return _VARIABLE.sub(value, expr)


@dataclass(frozen=True, slots=True)
class Window:
    """The time range and what follows from it, by Grafana's rules.

    Args:
        end: Unix time in seconds.
        seconds: Length.
        scrape_seconds: The data source's scrape interval.
    """

    end: float
    seconds: float
    scrape_seconds: float = SCRAPE_SECONDS

    @property
    def step(self) -> float:
        """Seconds between two points."""
        return max(self.scrape_seconds, float(np.ceil(self.seconds / _POINTS)))

    def times(self) -> Any:
        """(T,) Unix times of the points, multiples of the step."""
        last = np.floor(self.end / self.step) * self.step
        return last - self.step * np.arange(int(self.seconds // self.step), -1, -1)

    def variables(self, dashboard: Mapping[str, Any]) -> dict[str, str]:
        """What variables stand for: Grafana's own and the current values of the dashboard's."""
        rate_seconds = max(self.step + self.scrape_seconds, 4 * self.scrape_seconds)
        values = {each["name"]: each.get("current", {}).get("value") for each in dashboard["templating"]["list"]}
        return {
            **{name: value for name, value in values.items() if isinstance(value, str)},
            "__rate_interval": _duration(rate_seconds),
            "__interval": _duration(self.step),
            "__range": _duration(self.seconds),
        }


def _duration(seconds: float) -> str:
    """As PromQL has it: no fractions, no powers of ten."""
    return f"{seconds:.0f}s" if seconds == round(seconds) else f"{1000 * seconds:.0f}ms"


def legend(template: str, labels: Mapping[str, str]) -> str:
    """A series' name from its legend format.

    Example:
        >>> legend("{{topic}} {{outcome}}", {"topic": "clicks", "outcome": "applied"})
        'clicks applied'
    """
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda match: labels.get(match[1], ""), template).strip()


class Prometheus:
    """A Prometheus server's query API.

    Args:
        url: Its address, such as http://localhost:9090.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def get(self, path: str, **parameters: str) -> list[dict[str, Any]]:
        """The result of a query.

        Raises:
            RecstreamError: Prometheus is not there, or refuses.
        """
        address = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            try:
                with urllib.request.urlopen(address, timeout=30) as reply:
                    answer = json.load(reply)
            except urllib.error.HTTPError as error:
                answer = json.load(error)  # what is wrong with the query
            if answer["status"] == "success":
                return list(answer["data"]["result"])
        except (OSError, ValueError, LookupError, TypeError) as error:  # no server; no JSON; another program's JSON
            what, why = f"no answer of Prometheus at {self.url}", str(getattr(error, "reason", error))
            fix = "docker compose up --detach prometheus, or name yours with --prometheus http://HOST:9090"
            raise RecstreamError(what, why, fix) from error
        what, why = f"Prometheus refuses the query {parameters['query']}", answer.get("error", "it does not say why")
        raise RecstreamError(what, why, f"try it at {self.url}/graph")

    def points(self, expr: str, name: str, window: Window) -> list[Series]:
        """A query over the window, each series (T,) with NaN where it has no value."""
        times = window.times()
        result = self.get("query_range", query=expr, start=f"{times[0]}", end=f"{times[-1]}", step=f"{window.step}")
        series = []
        for found in result:
            values = np.full(len(times), np.nan)
            at, of = np.array(found["values"], np.float64).T
            values[np.rint((at - times[0]) / window.step).astype(int)] = of
            series.append(Series(legend(name, found["metric"]), values))
        return series

    def now(self, expr: str, name: str, window: Window) -> list[Series]:
        """A query at the window's end, each series (1,)."""
        return [
            Series(legend(name, found["metric"]), np.array([float(found["value"][1])]))
            for found in self.get("query", query=expr, time=f"{window.end}")
        ]


def ask(dashboard: Mapping[str, Any], prometheus: Prometheus, window: Window) -> tuple[Answers, Marks]:
    """What every panel shows, by panel id, and the times of the annotations."""
    variables = window.variables(dashboard)
    answers: dict[int, Sequence[Series]] = {}
    for panel in dashboard["panels"]:
        answers[panel["id"]] = [
            series
            for target in panel.get("targets", [])
            for series in (prometheus.now if target.get("instant") else prometheus.points)(
                filled(target["expr"], variables), target["legendFormat"], window
            )
        ]
    marks = []
    for annotation in dashboard["annotations"]["list"]:
        step = float(annotation["step"].removesuffix("s"))
        steps = Window(window.end, window.seconds, step)
        for series in prometheus.points(filled(annotation["expr"], variables), "", steps):
            there = np.isfinite(series.values)
            at = series.values[there] / 1000 if annotation["useValueForTime"] else steps.times()[there]
            marks += at[np.diff(at, prepend=-np.inf) > step].tolist()  # Grafana makes one of those within a step
    return answers, [mark for mark in marks if window.end - window.seconds <= mark]


def preview(
    dashboard: Annotated[str, typer.Argument(help="overview, stream, learning or state")],
    prometheus: Annotated[str, typer.Option(help="address of Prometheus")] = "http://localhost:9090",
    minutes: Annotated[float, typer.Option(min=0.1, help="length of the time range, which ends now")] = 60.0,
    out: Annotated[Path | None, typer.Option(help="file to write [default: DASHBOARD.png]")] = None,
    scrape_seconds: Annotated[float, typer.Option(min=0.1, help="the scrape interval")] = SCRAPE_SECONDS,
) -> None:
    """Draw a dashboard to a PNG from a running Prometheus."""
    if find_spec("matplotlib") is None:
        what, why = "drawing needs matplotlib", "it is not installed"
        raise SettingsError(what, why, "pip install 'recstream[bench]'")
    board, window = load(dashboard), Window(time.time(), 60 * minutes, scrape_seconds)
    answers, marks = ask(board, Prometheus(prometheus), window)
    target = out or Path(f"{dashboard}.png")
    draw(board, answers, marks, window.times(), prometheus).savefig(target)
    without = empty(board, answers)
    say(f"{target}: {len(board['panels'])} panels, no data in {', '.join(without) or 'none'}")


def main(arguments: Sequence[str]) -> None:
    """Run the program: 0 done, 1 failed with a reason, 2 usage, 130 interrupted."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(preview)
    with exit_status():
        app(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
