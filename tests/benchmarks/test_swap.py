from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.harness.arrivals import Answers
from benchmarks.swap import _fits, _latency, _swap
from models.network import RECENT
from models.repeats import LastItems
from models.serving import ServingModel, gap_feature
from tests.models.conftest import Build

OLD, NEW = "v0001-00000001", "v0002-00000002"


def answers(offsets: list[int], versions: list[int], waited_ms: list[float] | None = None) -> Answers:
    count = len(offsets)
    due = 1_000_000 + 1_000 * np.arange(count)
    waited = np.array(waited_ms or [5.0] * count)
    return Answers(
        (due + waited) / 1000, due + 1, due, np.zeros(count, np.int64), np.array(offsets), np.array(versions),
        [OLD, NEW], [b""] * count,
    )  # fmt: skip


def load(events: int) -> Any:
    return SimpleNamespace(events=range(events), versions=[OLD, NEW], published=1002.5)


def test_losses_repeats_and_a_version_that_comes_back_are_counted() -> None:
    clean = _swap(answers([0, 1, 2, 3], [0, 0, 1, 1]), load(4))
    assert (clean["events_lost"], clean["answered_twice"], clean["versions_out_of_order"]) == (0, 0, 0)
    assert clean["seconds_with_both_versions"] == 0
    bad = _swap(answers([0, 1, 1, 3], [0, 1, 1, 0]), load(5))
    assert (bad["events_lost"], bad["answered_twice"], bad["versions_out_of_order"]) == (2, 1, 1)


def test_latency_is_compared_on_both_sides_of_the_publication() -> None:
    found = _latency(answers(list(range(6)), [0] * 6, [10, 10, 10, 40, 40, 40]), load(6), 3)
    assert (found["p99_ms"], found["p99_ratio"]) == ({"before": 10.0, "swap": 40.0}, 4.0)


def test_a_list_fits_the_version_that_made_it_and_no_other(build_version: Build) -> None:
    words = ["", *(f"i{number}" for number in range(1, 31))]
    models = [
        ServingModel.from_version(build_version(vocabulary=words, seed=seed, fingerprint=9 + seed)[1])
        for seed in (1, 2)
    ]
    items, times = np.array([3, 7, 7, 12]), np.array([1_000, 5_000, 9_000, 60_000])
    gaps = gap_feature(np.array([0, 4, 4, 51]))
    hidden = models[0].steps(
        np.zeros((1, 8), np.float32), np.zeros(4, np.int32), items.astype(np.int32), np.zeros(4, np.uint8), gaps
    )
    recent = np.zeros((4, RECENT), np.int32)
    recent[0, :1], recent[1, :2], recent[2, :3], recent[3, :4] = [3], [7, 3], [7, 7, 3], [12, 7, 7, 3]
    scores = models[0].scores(hidden, LastItems.of_rows(recent.astype(np.int32)))
    scores[:, 0] = -np.inf
    best = np.argsort(-scores, axis=1)[:, :5]
    messages = [
        {"items": [{"item_id": words[row], "score": float(scores[place, row])} for row in rows.tolist()]}
        for place, rows in enumerate(best)
    ]
    assert _fits(models[0], items, times, messages).all()
    assert not _fits(models[1], items, times, messages).any()
    messages[2]["items"][0]["score"] += 0.1
    assert _fits(models[0], items, times, messages).tolist() == [True, True, False, True]
