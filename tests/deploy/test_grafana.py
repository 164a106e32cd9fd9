"""Dashboards: what the generator makes, every query of metrics that exist and of PromQL that parses."""

import json
import shutil
import subprocess
import sys
from typing import Any

import pytest
import yaml

from tests.deploy.exported import DEPLOY, exported, problems

GRAFANA = DEPLOY / "grafana"
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in sorted((GRAFANA / "dashboards").glob("*.json"))}


def queries() -> list[tuple[str, str, str]]:
    """Dashboard, panel and expression of every query."""
    return [
        (name, panel["title"], target["expr"])
        for name, dashboard in DASHBOARDS.items()
        for panel in dashboard["panels"]
        for target in panel["targets"]
    ]


def filled(expr: str, window: str) -> str:
    """A query with Grafana's variables replaced by one window."""
    return expr.replace("$__rate_interval", window).replace("$__range", window)


@pytest.fixture
def generator(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(GRAFANA))
    import content
    import panels

    yield panels, content.DASHBOARDS
    for module in ("panels", "content"):
        sys.modules.pop(module, None)


def test_the_four_dashboards_are_there():
    assert set(DASHBOARDS) == {"overview", "stream", "learning", "state"}
    assert len({dashboard["uid"] for dashboard in DASHBOARDS.values()}) == 4


def test_the_files_are_what_the_generator_makes(generator):
    panels, dashboards = generator
    for name, dashboard in dashboards.items():
        text = (GRAFANA / "dashboards" / f"{name}.json").read_text()
        assert text == panels.render(dashboard), "run python deploy/grafana/panels.py"


@pytest.mark.parametrize(("dashboard", "panel", "expr"), queries(), ids=lambda part: part[:40])
def test_every_query_is_of_metrics_that_are_exported(dashboard, panel, expr):
    assert problems(expr) == []


def test_every_metric_that_is_exported_is_shown():
    shown = " ".join(expr for _, _, expr in queries()) + _alert_and_rule_text()
    shown += " ".join(a["expr"] for dashboard in DASHBOARDS.values() for a in dashboard["annotations"]["list"])
    families = {name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for name in exported()}
    ours = {name for name in families if name.startswith("recstream_")}
    hidden = {name for name in ours if name not in shown}
    # Each swap shows as an annotation, and the trainer's version is the one on the workers' panel.
    hidden -= {"recstream_model_swaps_total", "recstream_trainer_model_info"}
    assert not hidden, "show them in deploy/grafana/content.py and run python deploy/grafana/panels.py"


def _alert_and_rule_text() -> str:
    return " ".join(path.read_text() for path in (DEPLOY / "prometheus" / "rules").glob("*.yml"))


def test_every_query_is_promql(tmp_path):
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus, or `make tools`)")
    rules = [{"record": f"query:{n}", "expr": filled(expr, "1m")} for n, (_, _, expr) in enumerate(queries())]
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_panels_do_not_overlap_and_stay_within_the_grid():
    for name, dashboard in DASHBOARDS.items():
        taken: set[tuple[int, int]] = set()
        for panel in dashboard["panels"]:
            place = panel["gridPos"]
            cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
            assert place["x"] + place["w"] <= 24
            assert not cells & taken, f"{name}: {panel['title']} lies over another panel"
            taken |= cells


def test_single_figures_are_of_now():
    for dashboard in DASHBOARDS.values():
        for panel in dashboard["panels"]:
            assert {target["instant"] for target in panel["targets"]} == {panel["type"] == "stat"}, panel["title"]


def test_versions_that_serve_no_more_are_not_drawn():
    by_version = [expr for _, _, expr in queries() if "by (model_version)" in expr]
    assert by_version and all("(recstream_recommendations_total[" in expr and "> 0" in expr for expr in by_version)


def test_what_is_provisioned_is_where_compose_mounts_it():
    compose = yaml.safe_load((DEPLOY.parent / "docker-compose.yml").read_text())["services"]["grafana"]
    mounts = dict(volume.split(":")[1::-1] for volume in compose["volumes"])
    provider = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "recstream.yml").read_text())["providers"][0]
    assert mounts[provider["options"]["path"]] == "./deploy/grafana/dashboards"
    assert mounts["/etc/grafana/provisioning"] == "./deploy/grafana/provisioning"
    home = compose["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/overview.json"
    source = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text())["datasources"][0]
    assert source["url"] == "http://prometheus:9090"
