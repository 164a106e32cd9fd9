"""The drawing of dashboards: units, variables, thresholds, panels with and without numbers, errors."""

import doctest
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import numpy as np
import pytest
import yaml

from state.errors import RecstreamError
from tests.deploy.exported import DEPLOY
from tests.deploy.test_grafana import DASHBOARDS, GRAFANA
from tests.streams.worker_process import free_port

END = 1_700_000_000.0


@pytest.fixture
def preview(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(str(GRAFANA))
    import preview

    yield preview
    for module in ("preview", "drawing"):
        sys.modules.pop(module, None)


@pytest.fixture
def drawing(preview: Any) -> Any:
    return sys.modules["drawing"]


def test_examples(preview, drawing):
    for module in (preview, drawing):
        found = doctest.testmod(module)
        assert found.attempted and not found.failed


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "s", "0 s"), (0.00002, "s", "20 µs"), (0.25, "s", "250 ms"), (1.5, "s", "1.5 s"), (90, "s", "1.5 min"),
        (7200, "s", "2 hours"), (172_800, "s", "2 days"), (0, "percentunit", "0%"), (0.00903, "percentunit", "0.903%"),
        (1, "percentunit", "100%"), (999, "bytes", "999 B"), (1536, "bytes", "1.5 KiB"), (2**30, "bytes", "1 GiB"),
        (249.6, "eps", "250 evt/s"), (33_700, "eps", "33.7 K evt/s"), (0.5, "ops", "0.5 ops/s"), (1000, "short", "1 K"),
        (0, "short", "0"), (-1500, "short", "-1.5 K"), (2_000_000, "short", "2 M"), (float("nan"), "s", "nan"),
    ],
)  # fmt: skip
def test_values_have_units(drawing, value, unit, text):
    assert drawing.formatted(value, unit) == text


def test_every_unit_of_the_dashboards_is_known(drawing):
    used = {panel["fieldConfig"]["defaults"]["unit"] for board in DASHBOARDS.values() for panel in board["panels"]}
    assert used <= {"short", "s", "percentunit", "bytes", *drawing._SUFFIX}


def test_the_window_follows_grafanas_rules(preview):
    short, week = preview.Window(END, 600), preview.Window(END, 7 * 86_400)
    assert (short.step, week.step) == (10, 864)
    assert short.variables(DASHBOARDS["overview"])["__rate_interval"] == "40s"  # four scrapes
    assert week.variables(DASHBOARDS["overview"])["__rate_interval"] == "874s"  # a step and a scrape
    assert preview.Window(END, 30 * 86_400, 0.5).variables(DASHBOARDS["overview"])["__range"] == "2592000s"
    assert preview.Window(END, 60, 0.3).variables(DASHBOARDS["overview"])["__rate_interval"] == "1300ms"
    times = short.times()
    assert len(times) == 61 and not (times % 10).any() and END - 10 < times[-1] <= END


def test_variables_are_filled_in(preview):
    board = {"templating": {"list": [{"name": "job", "current": {"value": "shop"}}, {"name": "datasource"}]}}
    variables = preview.Window(END, 600).variables(board)
    query = 'rate(a{job="$job",j="${job:regex}"}[$__rate_interval]) / max_over_time(b[$__range])'
    assert preview.filled(query, variables) == 'rate(a{job="shop",j="shop"}[40s]) / max_over_time(b[600s])'
    with pytest.raises(RecstreamError, match=r"\$datasource has no value"):
        preview.filled("a[$datasource]", variables)


def test_the_scrape_interval_is_that_of_the_data_source(preview):
    source = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text())["datasources"][0]
    scrape = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scrape == f"{preview.SCRAPE_SECONDS:g}s"


def test_thresholds_colour_what_has_reached_them(drawing):
    ready, alerts = DASHBOARDS["overview"]["panels"][:2]  # red below 1, red from 1 on
    assert drawing.color_of(0, ready) == drawing.color_of(1, alerts) != drawing.color_of(1, ready)
    assert drawing.color_of(0, alerts) == drawing.color_of(2, ready)


def _series(drawing: Any, panel: dict[str, Any], points: int) -> list[Any]:
    names = ("0.1", "1.0", "+Inf") if panel["type"] == "heatmap" else ("first", "second", "third")
    values = np.arange(points, dtype=float)
    return [drawing.Series(name, values * (number + 1)) for number, name in enumerate(names)]


def _texts(figure: Any) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


@pytest.mark.parametrize("name", DASHBOARDS)
def test_every_dashboard_is_drawn(preview, drawing, name, tmp_path):
    board, times = DASHBOARDS[name], preview.Window(END, 600).times()
    answers = {panel["id"]: _series(drawing, panel, len(times)) for panel in board["panels"]}
    figure = drawing.draw(board, answers, [END - 300], times, "a test")
    figure.savefig(tmp_path / "board.png")
    assert (tmp_path / "board.png").read_bytes().startswith(b"\x89PNG")
    assert {panel["title"] for panel in board["panels"]} <= set(_texts(figure))
    assert drawing.empty(board, answers) == []


def test_panels_without_numbers_say_so(preview, drawing):
    board, times = DASHBOARDS["overview"], preview.Window(END, 600).times()
    nan = [drawing.Series("a", np.full(len(times), np.nan))]
    answers = {panel["id"]: nan if panel["id"] % 2 else [] for panel in board["panels"]}
    said = [panel["fieldConfig"]["defaults"]["noValue"] or "No data" for panel in board["panels"]]
    shown = _texts(drawing.draw(board, answers, [], times, "a test"))
    assert sorted(text for text in shown if text in said) == sorted(said)
    assert drawing.empty(board, answers) == [panel["title"] for panel in board["panels"]]


def _refused(preview: Any, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[Any, str]:
    with pytest.raises(SystemExit) as ended:
        preview.main(arguments)
    return ended.value.code, capsys.readouterr().err


def test_a_prometheus_that_is_not_there(preview, capsys, tmp_path):
    url, out = f"http://127.0.0.1:{free_port()}", tmp_path / "a.png"
    status, text = _refused(preview, capsys, "overview", "--prometheus", url, "--out", str(out))
    assert status == 1 and not out.exists()
    assert f"error: no answer of Prometheus at {url}\n" in text
    assert "why: " in text and "fix: docker compose up --detach prometheus" in text


def test_a_server_that_is_no_prometheus(preview, capsys):
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:  # answers every GET with 501 and HTML
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        status, text = _refused(preview, capsys, "overview", "--prometheus", url)
        server.shutdown()
    assert status == 1 and f"error: no answer of Prometheus at {url}\n" in text


def test_a_dashboard_that_is_not_there(preview, capsys):
    status, text = _refused(preview, capsys, "nonsense")
    assert status == 2
    assert "error: there is no dashboard nonsense\n" in text
    assert "learning, overview, state, stream" in text and "fix: " in text
