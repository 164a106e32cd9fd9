import json

import numpy as np
import pytest

from benchmarks.harness.quality_cells import Cell, fill, measure_costs, pooled, store, wanted_seeds
from benchmarks.harness.quality_report import collect, keep_published, markdown, write
from benchmarks.harness.recbole_models import RECBOLE_MODELS, histories_before, longest_history, write_samples
from benchmarks.quality_table import groups, with_copies
from models.evaluation.metrics import accuracy
from tests.models.evaluation.walks import dataset, ring

LOG = dataset(ring(users=20))


def quiet(name: str, share: float, note: str) -> None:
    """Say nothing."""


def test_cells_are_pooled_over_the_seeds_there_are(tmp_path) -> None:
    for seed in (0, 1):
        fill(tmp_path, LOG, "leave-one-out", ["bpr"], seed, 1e-6, "cpu", quiet)
    one = pooled(tmp_path, "test", "leave-one-out", "bpr", [0])
    both = pooled(tmp_path, "test", "leave-one-out", "bpr", [0, 1, 2])
    assert one is not None and both is not None
    assert one["seeds"] == [0] and both["seeds"] == [0, 1]
    for side in ("unmasked", "masked"):
        assert both[side]["ndcg@10"] == pytest.approx(np.mean(both[side]["ndcg@10 by seed"]), abs=1e-6)
        low, high = both[side]["ndcg@10 interval"]
        assert low <= both[side]["ndcg@10"] <= high
    assert pooled(tmp_path, "test", "time-split", "bpr", [0, 1]) is None


def test_costs_are_measured_again_and_the_least_counts(tmp_path) -> None:
    fill(tmp_path, LOG, "leave-one-out", ["bpr"], 0, 1e-6, "cpu", quiet)
    before = pooled(tmp_path, "test", "leave-one-out", "bpr", [0])
    measure_costs(tmp_path, LOG, ["bpr", "gru:dynamic"], quiet)
    path = tmp_path / "test" / "costs.json"
    found = json.loads(path.read_text())
    assert list(found) == ["bpr", "gru:dynamic"] and found["gru:dynamic"]["step_us"] > 0
    path.write_text(json.dumps({"bpr": {**found["bpr"], "step_us": 0.001, "score_us": 1e9}}))
    after = pooled(tmp_path, "test", "leave-one-out", "bpr", [0])
    assert before is not None and after is not None
    assert after["cost"] == {**before["cost"], "step_us": 0.001}


def test_smaller_copies_have_cells_of_their_own(tmp_path) -> None:
    fill(tmp_path, LOG, "leave-one-out", with_copies(["gru"]), 0, 1e-6, "cpu", quiet)
    found = collect(tmp_path, [LOG], ["leave-one-out"], with_copies(["popularity", "gru"]), [0])
    models = found["tables"]["test"]["leave-one-out"]
    assert list(models) == ["gru", "gru:fp16", "gru:int8", "gru:pruned", "gru:dynamic"]
    assert models["gru:int8"]["cost"]["model_bytes"] < models["gru"]["cost"]["model_bytes"]
    copies = ["gru:fp16", "gru:int8", "gru:pruned", "gru:dynamic"]
    assert groups(["markov", "gru", "ensemble"])[1] == ["gru", *copies, "ensemble"]
    assert groups(["bpr", "ensemble"]) == [["bpr"], ["ensemble"]]
    assert wanted_seeds("gru:int8", [0, 1]) == [0, 1] and wanted_seeds("markov", [0, 1]) == [0]


def test_the_page_tells_seeds_goals_and_what_was_not_measured(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    for names in (["markov"], ["bpr"], ["gru"]):
        fill(tmp_path, LOG, "leave-one-out", names, 0, 1e-6, "cpu", quiet)
    ranks = np.full(20, 3.0)
    figures = {side: accuracy(ranks, 14) for side in ("unmasked", "masked")}
    figures |= {"seconds": 9.0, "note": "2 epochs of 4 s, best 2; not converged"}
    store(
        tmp_path, Cell("test", "leave-one-out", RECBOLE_MODELS[0], 0), {"figures": figures}, np.arange(20), [ranks] * 2
    )
    models = ["markov", "bpr", "gru", *RECBOLE_MODELS]
    result = collect(tmp_path, [LOG], ["leave-one-out", "time-split"], models, [0])
    result["machine"] = {"cpu": "a processor", "cores": 2}
    page = markdown(result)
    assert "| RecBole GRU4Rec | 1 | 1.0000 | 0.5000 (0.5000-0.5000)" in page
    assert "2 epochs of 4 s, best 2; not converged" in page
    assert "gru >= RecBole GRU4Rec" in page and "**missed**" in page
    assert "time-split\n" not in page  # nothing was measured by it
    write(result, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"quality.md", "quality.json", "quality-pareto.png"}
    assert json.loads((tmp_path / "out" / "quality.json").read_text())["tables"] == result["tables"]


def test_rows_without_a_cell_are_kept_from_the_page_before(tmp_path) -> None:
    fill(tmp_path / "cells", LOG, "leave-one-out", ["markov"], 0, 1e-6, "cpu", quiet)
    models = ["popularity", "markov", "gru"]
    now = collect(tmp_path / "cells", [LOG], ["leave-one-out"], models, [0]) | {"effort": 1.0}
    mine = now["tables"]["test"]["leave-one-out"]["markov"]
    before = {
        "effort": 1.0,
        "data": {"test": {"users": 1}, "other": {"users": 7}},
        "tables": {
            "test": {"leave-one-out": {"gru": {"note": "kept"}, "markov": {"note": "old"}, "gone": {"note": "none"}}},
            "other": {"time-split": {"popularity": {"note": "kept"}}},
        },
    }  # fmt: skip
    keep_published(now, tmp_path, models)  # there is no page yet
    assert list(now["tables"]) == ["test"]
    (tmp_path / "quality.json").write_text(json.dumps(before | {"effort": 0.5}))
    keep_published(now, tmp_path, models)  # not comparable
    assert list(now["tables"]) == ["test"]
    (tmp_path / "quality.json").write_text(json.dumps(before))
    keep_published(now, tmp_path, models)
    assert list(now["tables"]["test"]["leave-one-out"].items()) == [("markov", mine), ("gru", {"note": "kept"})]
    assert now["tables"]["other"] == {"time-split": {"popularity": {"note": "kept"}}}
    assert now["data"]["test"]["users"] == 20 and now["data"]["other"]["users"] == 7


def test_recbole_learns_the_same_events_and_is_asked_the_same(tmp_path) -> None:
    assert longest_history(LOG) == 20
    learnt = np.arange(len(LOG.source)) % 20 < 18
    write_samples(LOG, learnt, tmp_path, 10)
    lines = (tmp_path / "log" / "log.train.inter").read_text().splitlines()
    assert len(lines) == 1 + 20 * 17
    items = LOG.source.items[:20].tolist()
    assert lines[3].split("\t") == ["0", " ".join(map(str, items[:3])), str(items[3])]
    assert lines[17].split("\t") == ["0", " ".join(map(str, items[7:17])), str(items[17])]
    asked = histories_before(LOG, np.array([19, 25]), "test", 10)
    assert asked["test_lists"].tolist() == [items[9:19], [*LOG.source.items[20:25].tolist(), 0, 0, 0, 0, 0]]
    assert asked["test_lengths"].tolist() == [10, 5]
    assert asked["test_targets"].tolist() == LOG.source.items[[19, 25]].tolist()
    assert np.bincount(asked["test_had_rows"]).tolist() == [19, 5]
    assert asked["test_had_items"][-5:].tolist() == LOG.source.items[20:25].tolist()
