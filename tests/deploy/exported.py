"""What workers and trainer export, read from their metric objects, and which of it a PromQL expression names."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from prometheus_client import CollectorRegistry

from streams.metrics import Metrics
from streams.trainer_metrics import TrainerMetrics

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
_SUFFIXES = {
    "counter": ("_total",),
    "gauge": ("",),
    "info": ("_info",),
    "histogram": ("_bucket", "_sum", "_count"),
}
# Prometheus' own; `instance` and `job` are labels of everything it scrapes.
_OF_PROMETHEUS = {"up": set(), "ALERTS": {"alertname", "alertstate", "severity"}}
_OF_EVERY_TARGET = {"instance", "job"}


@cache
def exported() -> dict[str, set[str]]:
    """Series name -> its label names, of everything the processes export."""
    found: dict[str, set[str]] = {}
    for registry in (Metrics().registry, TrainerMetrics().registry):
        found |= _series(registry)
    # What `Info` holds is in its values: those that the worker's and the trainer's code give it.
    found["recstream_model_info"] |= {"version", "cell", "items"}
    found["recstream_trainer_model_info"] |= {"version"}
    return found


def _series(registry: CollectorRegistry) -> dict[str, set[str]]:
    found = {}
    for collector in list(registry._collector_to_names):
        labels = set(getattr(collector, "_labelnames", ()))
        for family in collector.collect():
            for suffix in _SUFFIXES[family.type]:
                samples = {label for sample in family.samples for label in sample.labels}
                found[family.name + suffix] = labels | samples | _OF_EVERY_TARGET
    return found


def rules() -> list[dict[str, Any]]:
    """Every recording and alerting rule."""
    files = sorted((DEPLOY / "prometheus" / "rules").glob("*.yml"))
    return [rule for path in files for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


@cache
def recorded() -> dict[str, set[str]]:
    """Series that recording rules make -> their label names (those that the rule keeps with `by`)."""
    return {
        rule["record"]: {label for group in re.findall(r"by \(([^)]*)\)", rule["expr"]) for label in _names(group)}
        for rule in rules()
        if "record" in rule
    }


def problems(expr: str) -> list[str]:
    """Names in a PromQL expression that nothing exports or records, and labels that its metrics do not have."""
    known = exported() | recorded() | _OF_PROMETHEUS
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|\"[^\"]*\"", " ", expr)
    groups = re.findall(r"\b(?:by|on|without|ignoring) \(([^)]*)\)", bare)
    bare = re.sub(r"\b(?:by|on|without|ignoring|group_left|group_right) \([^)]*\)", " ", bare)
    words = set(re.findall(r"(?<![\w:])[a-zA-Z_][\w:]*(?!\w|\s*\()", bare)) - {"and", "or", "unless", "offset", "bool"}
    words = {word for word in words if not re.fullmatch(r"\d*[smhdw]", word)}
    if not words:
        return ["names no metric"]
    labels = set().union(*(known.get(word, set()) for word in words))
    used = {label for group in groups for label in _names(group)}
    used |= {name for matchers in re.findall(r"\{([^}]*)\}", expr) for name in re.findall(r"(\w+)\s*(?:=|!)", matchers)}
    return [f"{word} is not exported" for word in sorted(words - known.keys())] + [
        f"no metric of it has the label {label}" for label in sorted(used - labels - {"job", "instance"})
    ]


def _names(group: str) -> set[str]:
    return {name.strip() for name in group.split(",") if name.strip()}
