from dataclasses import replace

import numpy as np
import pytest

from models.evaluation.dataset import Dataset
from models.evaluation.fitting import Teaching
from models.evaluation.run import Settings, evaluate
from models.evaluation.tasks import head_notes, mean_of, teachable
from models.family.augmentation import OPERATIONS
from models.family.heads import parse_tasks
from state.errors import RecstreamError
from tests.models.evaluation.test_run import Clock
from tests.models.evaluation.walks import dataset, ring


def rated(**changes) -> Dataset:
    source = ring(users=20, length=12)
    source = replace(source, kinds=(source.items % 3).astype(np.uint8))
    ratings = (source.items % 5 + 1).astype(np.float32)
    return replace(dataset(source), ratings=ratings, **changes)


def run(data: Dataset, names: list[str], protocol="leave-one-out", **changes):
    seeds = changes.pop("seeds", 1)
    settings = Settings(protocol, Clock(), effort=1e-6, seeds=seeds, teaching=Teaching(**changes))
    return evaluate(data, names, settings, lambda *_: None)


@pytest.mark.parametrize("protocol", ["leave-one-out", "time-split"])
def test_heads_stand_beside_what_needs_no_model(protocol):
    body = run(rated(), ["gru", "markov"], protocol, tasks=parse_tasks("all", 3), seeds=2)
    heads = body["models"]["gru"]["heads"]
    assert set(heads) == {"type", "click", "view", "purchase", "rating", "ahead-2", "ahead-3"}
    judged = body["data"]["judged_events"]
    assert heads["ahead-3"]["events"] == heads["ahead-2"]["events"] == heads["type"]["events"] == judged
    for name in ("click", "view", "purchase", "ahead-2"):
        assert all(0 <= heads[name][f"{by}hr@10"] <= 1 for by in ("", "next_", "popularity_"))
    assert {"accuracy", "majority_accuracy", "last_accuracy", "log_loss"} <= heads["type"].keys()
    assert heads["rating"]["means_rmse"] < heads["rating"]["mean_rmse"]  # the rating follows from the item
    assert "heads" not in body["models"]["markov"]


def test_what_a_log_cannot_teach_is_left_out_and_said():
    plain = dataset(ring(users=10, length=8))
    tasks = parse_tasks("all", 2)
    assert teachable(tasks, plain) == parse_tasks("type,click", 2)
    assert head_notes(tasks, plain) == [
        "no head for view, purchase: the log has no such event",
        "no head for ratings: the log has none",
    ]
    body = run(plain, ["transformer"], tasks=tasks)
    assert set(body["models"]["transformer"]["heads"]) == {"type", "click", "ahead-2"}
    assert head_notes(tasks, plain)[0] in body["data"]["notes"]


def test_heads_are_not_judged_by_test_then_learn():
    with pytest.raises(RecstreamError, match="test-then-learn"):
        run(rated(), ["gru"], "prequential", tasks=parse_tasks("type"))


def test_figures_are_means_over_seeds():
    assert mean_of([]) == mean_of([{}]) == {}
    found = mean_of([{"type": {"events": 3, "accuracy": 0.2}}, {"type": {"events": 3, "accuracy": 0.4}}])
    assert found == {"type": {"events": 3, "accuracy": 0.3}}


@pytest.mark.parametrize("protocol", ["leave-one-out", "prequential"])
def test_sessions_and_variations_go_through_every_protocol(protocol):
    names = ["session-knn", "markov", "gru", "gru:int8"]
    data = rated()
    changes = {"session_gap": 40.0, "augment": tuple(OPERATIONS)}  # every break of the ring is 20 s
    marked = run(data, names, protocol, **changes)["models"]
    anew = run(data, names, protocol, anew=True, **{**changes, "session_gap": 15.0})["models"]
    plain = run(data, names, protocol)["models"]
    assert marked["session-knn"]["unmasked"] == plain["session-knn"]["unmasked"]
    assert marked["markov"]["unmasked"] == plain["markov"]["unmasked"]
    assert anew["markov"]["unmasked"]["ndcg@10"] < 0.9 * plain["markov"]["unmasked"]["ndcg@10"]  # nothing follows
    assert anew["gru:int8"]["unmasked"]["events"] == plain["gru:int8"]["unmasked"]["events"]
