"""A real Prometheus scrapes a real worker and a real trainer; every query returns numbers, every dashboard is drawn."""

import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from streams.children import Child
from tests.deploy.exported import DEPLOY
from tests.deploy.test_grafana import DASHBOARDS, GRAFANA, filled, queries
from tests.streams.event_log import Record, event_log
from tests.streams.worker_cluster import Cluster, open_cluster
from tests.streams.worker_process import Worker, free_port, wait_for

pytestmark = [
    pytest.mark.broker,
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("prometheus") is None,
        reason="prometheus is not installed (Debian: apt-get install prometheus, or `make tools`)",
    ),
]
WINDOW = "15s"  # what Grafana would put for $__rate_interval at this scrape interval, and more than one flush
WITHOUT_DATA = {"recstream_trainer_epsilon > 0": "Privacy spent"}  # nothing is trained with differential privacy here


class Prometheus:
    """A running Prometheus with the project's configuration and rules; it scrapes other addresses every second.

    All rules run every second too: those of the objective would be waited for up to a minute.
    """

    def __init__(self, directory: Path, targets: dict[str, int]) -> None:
        config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        for found in [path for pattern in config["rule_files"] for path in (DEPLOY / "prometheus").glob(pattern)]:
            groups = [{**group, "interval": "1s"} for group in yaml.safe_load(found.read_text())["groups"]]
            (directory / f"rules-{found.name}").write_text(yaml.safe_dump({"groups": groups}))
        config["rule_files"] = [str(directory / "rules-*.yml")]
        config["scrape_configs"] = [
            {"job_name": job["job_name"], "static_configs": [{"targets": [f"127.0.0.1:{targets[job['job_name']]}"]}]}
            for job in config["scrape_configs"]
            if job["job_name"] in targets
        ]
        path = directory / "prometheus.yml"
        path.write_text(yaml.safe_dump(config))
        self.url = f"http://127.0.0.1:{free_port()}"
        self._client = httpx.Client(base_url=self.url, timeout=10)
        self._log = (directory / "prometheus.log").open("wb")
        self._child = Child(
            [
                "prometheus", f"--config.file={path}", f"--storage.tsdb.path={directory / 'tsdb'}",
                f"--web.listen-address={self.url.removeprefix('http://')}", "--log.level=warn",
            ],
            {"PATH": "/usr/bin:/bin:/usr/local/bin"}, self._log, grace_seconds=10,
        )  # fmt: skip

    def get(self, path: str, **parameters: str) -> Any:
        reply = self._client.get(f"/api/v1/{path}", params=parameters)
        return reply.raise_for_status().json()["data"]

    def numbers(self, expr: str) -> list[float]:
        """The finite values of an instant query."""
        result = self.get("query", query=filled(expr, WINDOW))["result"]
        return [value for series in result if math.isfinite(value := float(series["value"][1]))]

    def answers(self) -> bool:
        try:
            return self._client.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def close(self) -> None:
        self._client.close()
        self._child.stop()
        self._log.close()


@pytest.fixture
def cluster(embedded_broker: str, tmp_path: Path, unique: Callable[[str], str]) -> Iterator[Cluster]:
    with open_cluster(embedded_broker, tmp_path, unique("live"), tmp_path / "registry") as opened:
        yield opened


@pytest.fixture
def prometheus(cluster: Cluster, tmp_path: Path) -> Iterator[Prometheus]:
    worker = cluster.worker(snapshot_interval_seconds="2")
    port = free_port()
    trainer = Worker(
        tmp_path / "trainer.log", ("-m", "streams.cli", "trainer", "--device", "cpu"),
        {
            **cluster.environment(), "RECSTREAM_TRAINER_HTTP_PORT": str(port), "RECSTREAM_COLD_START_EVENTS": "1500",
            "RECSTREAM_MODEL_HIDDEN": "16", "RECSTREAM_MODEL_EMBEDDING": "8", "RECSTREAM_TRAIN_EPOCHS": "1",
        },
    )  # fmt: skip
    cluster.workers.append(trainer)
    started = Prometheus(tmp_path, {"recstream-worker": worker.port, "recstream-trainer": port})
    try:
        wait_for(started.answers, 20, (tmp_path / "prometheus.log").read_text)
        worker.wait_ready()
        yield started
    finally:
        started.close()


def test_every_query_of_every_dashboard_returns_data_and_is_drawn(
    cluster: Cluster, prometheus: Prometheus, tmp_path: Path
) -> None:
    events = event_log(count=20_000, users=80, items=60, seed=3)
    broken = [Record(e.topic, e.partition, e.key, b"{", e.timestamp_ms) for e in events[:200]]
    records = [record for pair in zip(events[:200], broken, strict=True) for record in pair] + events[200:]
    waiting = {expr: f"{dashboard} / {panel}" for dashboard, panel, expr in queries() if expr not in WITHOUT_DATA}
    for start in range(0, len(records), 400):  # at most 100 s
        cluster.load(records[start : start + 400], rate=200).finish()
        print(f"{len(waiting)} queries have no data yet: {sorted(set(waiting.values()))[:3]}")
        waiting = {expr: panel for expr, panel in waiting.items() if not prometheus.numbers(expr)}
        if not waiting:
            break
    assert not waiting, f"no data: {waiting}\n{cluster.output()}"

    cluster.load(records[start + 400 : start + 2400], rate=200).finish()  # 10 s: points of a range are 4 s apart
    for name, dashboard in DASHBOARDS.items():
        png = tmp_path / f"{name}.png"
        options = ["--prometheus", prometheus.url, "--minutes", "2", "--scrape-seconds", "4", "--out", str(png)]
        drawn = subprocess.run(
            [sys.executable, str(GRAFANA / "preview.py"), name, *options],
            env=cluster.environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        without = [panel["title"] for panel in dashboard["panels"] if panel["title"] in WITHOUT_DATA.values()]
        assert drawn.stderr.endswith(
            f"{len(dashboard['panels'])} panels, no data in {', '.join(without) or 'none'}\n"
        ), drawn.stderr
        assert png.read_bytes().startswith(b"\x89PNG") and 100_000 < png.stat().st_size < 1_000_000

    groups = prometheus.get("rules")["groups"]
    bad = [rule["name"] for group in groups for rule in group["rules"] if rule["health"] != "ok"]
    assert (len(groups), bad) == (7, [])
    assert prometheus.numbers('up{job=~"recstream-.*"}') == [1.0, 1.0]
    assert prometheus.numbers("recstream_model_created_timestamp_seconds")[0] > time.time() - 300
