"""The rules as a PrometheusRule of the Prometheus operator: `python deploy/prometheus/operator_rules.py` writes it.

The file is committed and never edited; a test compares it with what this program makes.
"""

import json
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
TARGET = HERE.parent / "kubernetes" / "components" / "monitoring" / "rules.json"


def resource() -> dict[str, Any]:
    """The Kubernetes resource with the groups of all rule files."""
    groups = [
        group for path in sorted((HERE / "rules").glob("*.yml")) for group in yaml.safe_load(path.read_text())["groups"]
    ]
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "recstream"},
        "spec": {"groups": groups},
    }


def render() -> str:
    """The text of the file."""
    return json.dumps(resource(), indent=1) + "\n"


if __name__ == "__main__":
    TARGET.write_text(render())
