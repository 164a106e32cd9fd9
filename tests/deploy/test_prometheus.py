"""Scrape configuration, rules and alerts: names that exist, cases that promtool has tried, runbooks that exist."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.deploy.exported import DEPLOY, ROOT, exported, problems, rules

PROMETHEUS = DEPLOY / "prometheus"
ALERTS = [rule for rule in rules() if "alert" in rule]
NO_PROMTOOL = "promtool is not installed (Debian: apt-get install prometheus, or `make tools`)"


def promtool(*arguments: str) -> None:
    if shutil.which("promtool") is None:
        pytest.skip(NO_PROMTOOL)
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule.get("alert") or rule["record"]))
def test_every_metric_and_label_of_a_rule_is_exported(rule):
    assert problems(rule["expr"]) == []


def test_a_name_that_nobody_exports_is_found():
    assert problems("sum(rate(recstream_evnts_total[5m]))") == ["recstream_evnts_total is not exported"]
    assert problems("sum by (subject) (recstream_consumer_lag)") == ["no metric of it has the label subject"]
    assert problems('recstream_ready{cell="gru"}') == ["no metric of it has the label cell"]
    assert problems("up + vector(1)") == []


def test_histograms_counters_and_process_metrics_are_known_by_their_series_names():
    names = exported()
    assert {"recstream_event_to_recommendation_seconds_bucket", "recstream_events_total"} <= names.keys()
    assert {"process_start_time_seconds", "process_resident_memory_bytes"} <= names.keys()
    assert "le" in names["recstream_event_to_recommendation_seconds_bucket"]
    assert {"topic", "outcome"} <= names["recstream_events_total"]


def test_the_bucket_of_the_latency_objective_exists():
    from streams.metrics import LATENCY_BUCKETS

    bounds = {le for rule in rules() for le in re.findall(r'le="([^"]+)"', rule["expr"])}
    assert bounds == {"0.25"}
    assert bounds <= {str(float(bound)) for bound in LATENCY_BUCKETS}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: f"{alert['alert']}-{alert['labels']['severity']}")
def test_an_alert_says_what_it_means_and_links_to_its_runbook(alert):
    notes = alert["annotations"]
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert notes["summary"]
    assert notes["description"].endswith(".")
    path, _, anchor = notes["runbook_url"].partition("#")
    assert anchor == alert["alert"].lower()
    headings = re.findall(r"^#+ (.+)$", (ROOT / path).read_text(), re.MULTILINE)
    assert anchor in [re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings]


def test_every_alert_is_tried_with_promtool_firing_and_silent():
    fired, silent = set(), set()
    for path in sorted((PROMETHEUS / "tests").glob("*.yml")):
        for test in yaml.safe_load(path.read_text())["tests"]:
            for case in test["alert_rule_test"]:
                (fired if case["exp_alerts"] else silent).add(case["alertname"])
    names = {alert["alert"] for alert in ALERTS}
    assert fired == names
    assert silent == names


def test_rules_are_valid():
    promtool("check", "rules", *map(str, sorted((PROMETHEUS / "rules").glob("*.yml"))))


def test_alerts_fire_when_they_should():
    promtool("test", "rules", *map(str, sorted((PROMETHEUS / "tests").glob("*.yml"))))


def test_the_scrape_configuration_is_valid():
    promtool("check", "config", str(PROMETHEUS / "prometheus.yml"))


def test_jobs_have_the_names_that_rules_use():
    jobs = {job["job_name"] for job in yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]}
    used = {name for rule in rules() for name in re.findall(r'job="([^"]+)"', rule["expr"])}
    assert used == {"recstream-worker", "recstream-trainer"}
    assert used <= jobs


def test_the_operators_rules_are_the_same(monkeypatch):
    monkeypatch.syspath_prepend(str(PROMETHEUS))
    sys.modules.pop("operator_rules", None)
    import operator_rules

    assert operator_rules.TARGET.read_text() == operator_rules.render(), f"run python {PROMETHEUS}/operator_rules.py"
    assert isinstance(operator_rules.TARGET, Path)
