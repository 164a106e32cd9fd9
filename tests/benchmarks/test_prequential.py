import json
from pathlib import Path

import polars as pl
import pytest

from benchmarks import prequential
from benchmarks.prequential import TITLES
from tests.benchmarks.logs import random_events

REQUIRED = ("popularity", "markov", "skip_markov", "own_recent", "frozen", "fine_tuned", "transitions", "fused")


def test_the_program_ranks_a_table_with_other_column_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in (("COLD_START_EVENTS", "300"), ("TRAIN_EPOCHS", "1"), ("MODEL_HIDDEN", "16")):
        monkeypatch.setenv(f"RECSTREAM_{name}", value)
    events = random_events(900, 30, 30)
    table = pl.DataFrame(
        {
            "uid": events.users,
            "sku": events.items,
            "at": events.times_ms,
            "what": ["look" if kind else "buy" for kind in events.kinds.tolist()],
        }
    )
    table.write_csv(tmp_path / "walks.csv")
    prequential.main(
        str(tmp_path / "walks.csv"), columns="user_id=uid,item_id=sku,timestamp=at,event_type=what",
        types="look=views,buy=purchases", events=800, batch=64, rate=1000.0, train_delay=100, pace=100.0,
        out=tmp_path / "out", json=True,
    )  # fmt: skip
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["events"] == 800
    assert result["events_counted"] == 400
    for figure in ("hit_rate_at_10", "mrr_at_10"):
        assert set(REQUIRED) <= set(result[figure]) == set(TITLES)
        assert all(0 <= value <= 1 for value in result[figure].values())
    assert all(result["mrr_at_10"][name] <= result["hit_rate_at_10"][name] for name in TITLES)
    assert result["hit_rate_at_10"]["popularity"] == pytest.approx(max(result["popularity_windows"].values()))
    assert result["passes"][0]["trigger"] == "cold-start"
    assert result["settings"]["batch"] == 64
    assert len(result["over_time"]["fused"]) == len(result["over_time"]["events"]) == 50
    assert (tmp_path / "out" / "prequential-walks.json").is_file()
    assert (tmp_path / "out" / "prequential-walks.png").is_file()


def test_rows_that_are_left_out_are_counted_in_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"u{n % 7},i{n % 5},{n},{'share' if n % 4 == 0 else 'view'}\n" for n in range(40))
    (tmp_path / "few.csv").write_text("user_id,item_id,timestamp,event_type\n" + rows)
    prequential.main(
        str(tmp_path / "few.csv"), columns=None, types=None, events=None, batch=500, rate=1000.0, train_delay=None,
        train_share=1.0, pace=100.0, out=tmp_path / "out", json=True,
    )  # fmt: skip
    printed = capsys.readouterr()
    result = json.loads(printed.out.splitlines()[-1])
    assert (result["events"], result["skipped"]) == (30, {"unmapped event_type": 10})
    assert "10 rows skipped; unmapped event_type: 10" in printed.err
