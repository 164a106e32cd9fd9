import json
from pathlib import Path

import polars as pl
import pytest

from benchmarks import live
from tests.benchmarks.logs import random_events


@pytest.mark.broker
@pytest.mark.slow
def test_events_that_the_worker_refuses_are_counted_by_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KAFKA_HOME", raising=False)
    monkeypatch.setattr(live, "DRAIN_SECONDS", 2.0)
    rows = "".join(f"u{n % 7},{'i' * 300}{n % 5},{n},{'share' if n % 4 == 0 else 'view'}\n" for n in range(40))
    (tmp_path / "long.csv").write_text("user_id,item_id,timestamp,event_type\n" + rows)
    live.main(
        str(tmp_path / "long.csv"), rate=1000.0, columns=None, types=None, events=None, pace=100.0,
        out=tmp_path / "out", json=True,
    )  # fmt: skip
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["events"], result["unanswered"]) == (30, 30)
    assert result["rejected"] == {"oversized-id": 30}
    assert result["skipped"] == {"unmapped event_type": 10}
    assert result["latency_ms"] == {"p50": None, "p99": None}
    assert result["hit_rate_at_10"] == {"fused": 0.0, "in_hand": 0.0}


@pytest.mark.broker
@pytest.mark.slow
def test_worker_and_trainer_are_scored_from_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KAFKA_HOME", raising=False)
    for name, value in (
        ("COLD_START_EVENTS", "200"),
        ("MODEL_HIDDEN", "16"),
        ("MODEL_EMBEDDING", "8"),
        ("MODEL_POLL_SECONDS", "0.2"),
    ):
        monkeypatch.setenv(f"RECSTREAM_{name}", value)
    events = random_events(2000, 30, 30)
    table = pl.DataFrame({"user_id": events.users, "item_id": events.items, "timestamp": events.times_ms})
    table.write_csv(tmp_path / "walks.csv")
    live.main(
        str(tmp_path / "walks.csv"), rate=150.0, columns=None, types=None, events=None, pace=100.0,
        out=tmp_path / "out", json=True,
    )  # fmt: skip
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["events"] == 2000
    assert result["unanswered"] == 0
    assert result["hit_rate_at_10"]["fused"] > 0.5  # a third of the items would be found by chance
    assert result["hit_rate_at_10"]["in_hand"] > 0.45
    assert sum(result["lists_by_version"].values()) == 2000
    assert result["passes"]
    assert (tmp_path / "out" / "live-walks.png").is_file()
