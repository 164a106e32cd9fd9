import json

import numpy as np
import pytest
from torch import Tensor

from models.evaluation.dataset import Dataset
from models.evaluation.run import Settings, evaluate
from models.evaluation.splits import PROTOCOLS
from models.family.counting import Markov
from models.family.registry import MODELS
from state.errors import RecstreamError
from tests.models.evaluation.walks import dataset, histories, ring

WARM = [protocol for protocol in PROTOCOLS if protocol != "cold-items"]
FAST = ["popularity", "markov", "skip-markov", "session-knn", "bpr"]


class Clock:
    """A clock that goes on by a second with every look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def run(data: Dataset, names: list[str], protocol="leave-one-out", **changes):
    settings = Settings(protocol, Clock(), effort=1e-6, **changes)
    return evaluate(data, names, settings, lambda name, share, note: None)


@pytest.mark.parametrize("protocol", WARM)
def test_every_protocol_gives_the_same_kind_of_figures(protocol):
    body = run(dataset(ring()), FAST, protocol)
    assert list(body["models"]) == FAST
    for figures in body["models"].values():
        for side in ("unmasked", "masked"):
            assert all(isinstance(value, float | int) for value in figures[side].values())
            assert 0 <= figures[side]["ndcg@10"] <= figures[side]["hr@10"] <= 1
            low, high = figures["intervals"][side]["ndcg@10"]
            assert low <= figures[side]["ndcg@10"] <= high
        assert figures["seconds"] > 0
        assert figures["cost"]["state_bytes"] > 0
    assert json.loads(json.dumps(body)) == body
    ndcg = {name: body["models"][name]["unmasked"]["ndcg@10"] for name in FAST}
    assert ndcg["markov"] > 0.6 > 1.5 * ndcg["popularity"]  # four steps of five lead to the next item of the ring


@pytest.mark.parametrize("name", list(MODELS))
def test_every_model_can_be_evaluated(name):
    body = run(dataset(ring(users=12, length=8)), [name])
    assert body["models"][name]["unmasked"]["events"] == 12


def test_seeds_are_averaged_and_shown_for_models_that_draw():
    body = run(dataset(ring()), ["markov", "bpr"], seeds=2)
    bpr = body["models"]["bpr"]
    assert len(bpr["by_seed"]["unmasked"]["ndcg@10"]) == 2
    assert bpr["unmasked"]["ndcg@10"] == pytest.approx(np.mean(bpr["by_seed"]["unmasked"]["ndcg@10"]), abs=1e-6)
    assert "by_seed" not in body["models"]["markov"]


def test_a_later_seed_is_the_same_fit_alone():
    ranks = {}
    for first, seeds in ((0, 2), (1, 1)):
        settings = Settings("leave-one-out", Clock(), seeds, 1e-6, first_seed=first)
        keep = lambda name, seed, judgement: ranks.setdefault(seed, []).append(judgement.unmasked.ranks)  # noqa: E731
        evaluate(dataset(ring()), ["bpr"], settings, lambda name, share, note: None, keep)
    assert len(ranks[0]) == 1
    assert (ranks[1][0] == ranks[1][1]).all()


def test_settings_of_models_are_used_and_told():
    body = run(dataset(ring()), ["gru", "gru:fp16"], model_settings={"gru": {"hidden": 8, "rate": 0.02}})
    assert (
        body["models"]["gru"]["cost"]["state_bytes"]
        == body["models"]["gru:fp16"]["cost"]["state_bytes"]
        == 4 * (8 + 50)
    )
    assert body["model_settings"] == {"gru": {"hidden": 8, "rate": 0.02}}


def test_an_interruption_leaves_what_is_done():
    def interrupt(name, share, note):
        if name == "bpr":
            raise KeyboardInterrupt

    settings = Settings("leave-one-out", Clock(), effort=1e-6)
    body = evaluate(dataset(ring()), ["markov", "bpr", "popularity"], settings, interrupt)
    assert list(body["models"]) == ["markov"] and body["interrupted"] == "bpr"
    with pytest.raises(KeyboardInterrupt):
        evaluate(dataset(ring()), ["bpr"], settings, interrupt)


def test_smaller_copies_come_from_the_same_fit():
    body = run(dataset(ring()), ["gru", "gru:int8", "gru:dynamic"])["models"]
    assert body["gru:int8"]["cost"]["model_bytes"] < 0.4 * body["gru"]["cost"]["model_bytes"]
    assert body["gru:int8"]["unmasked"]["ndcg@10"] == pytest.approx(body["gru"]["unmasked"]["ndcg@10"], abs=0.05)
    with pytest.raises(RecstreamError, match="no compression 'zip'"):
        run(dataset(ring()), ["gru:zip"])


def test_many_judged_events_are_drawn_by_user_and_that_is_said():
    body = run(dataset(ring(users=40)), ["markov"], judged=15)
    assert body["models"]["markov"]["unmasked"]["events"] == body["data"]["judged_events"] == 15
    assert any("drawn at random" in note for note in body["data"]["notes"])


def test_cold_items_are_judged_as_new_items_only():
    body = run(dataset(ring(items=30)), ["markov", "fusion"], "cold-items")
    assert list(body["models"]["fusion"]["segments"]["unmasked"]) == ["warm users", "new items"]
    assert body["models"]["markov"]["unmasked"]["hr@10"] == 0


def test_ratings_are_judged_where_there_are_some():
    source = ring(users=40)
    ratings = (source.items % 5 + 1).astype(np.float32)
    plain = dataset(source)
    data = Dataset(plain.name, source, plain.vocabulary, plain.catalogue, ratings)
    errors = run(data, ["markov"])["models"]["markov"]["ratings"]
    assert 0 < errors["mae"] <= errors["rmse"] < 1.5  # the rating follows from the item


class Counted(Markov):
    """Markov's chain, with a note of how many rankings it was asked for."""

    asked = 0

    def item_scores(self, queries: Tensor) -> Tensor:
        Counted.asked += len(queries)
        return super().item_scores(queries)


def test_ratings_are_read_by_no_more_events_than_are_judged(monkeypatch):
    monkeypatch.setitem(MODELS, "markov", Counted)
    source = ring(users=400, length=4)
    plain = dataset(source)
    data = Dataset(plain.name, source, plain.vocabulary, plain.catalogue, (source.items % 5 + 1).astype(np.float32))
    asked = []
    for rated in (plain, data):
        Counted.asked = 0
        body = run(rated, ["markov"], judged=30)
        asked.append(Counted.asked)
    assert "ratings" in body["models"]["markov"]
    assert asked[1] - asked[0] == 30  # and not the 400 events there are for validation


def test_progress_is_told_by_model_and_grows():
    seen: list[tuple[str, float]] = []
    settings = Settings("leave-one-out", Clock(), effort=1e-6)
    evaluate(dataset(ring()), ["markov", "gru"], settings, lambda name, share, note: seen.append((name, share)))
    for name in ("markov", "gru"):
        shares = [share for of, share in seen if of == name]
        assert shares == sorted(shares) and shares[-1] == 1.0


def test_unknown_models_and_logs_too_short_are_said():
    with pytest.raises(RecstreamError, match="no model 'oracle'"):
        run(dataset(ring()), ["oracle"])
    with pytest.raises(RecstreamError, match="No model was named"):
        run(dataset(ring()), [])
    with pytest.raises(RecstreamError, match="no user has 3 events"):
        run(dataset(histories([[1, 2], [3]])), ["markov"])


@pytest.mark.parametrize("protocol", WARM)
def test_one_user_and_users_with_one_event_are_no_trouble(protocol):
    alone = histories([[1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2]])
    singles = histories([[1], [2], [1, 2, 1], [3], [2, 3, 1, 2]], [[0], [1], [2, 3, 4], [5], [6, 7, 8, 9]])
    for source in (alone, singles):
        body = run(dataset(source), ["popularity", "skip-markov", "session-knn", "gru", "transformer"], protocol)
        assert all(figures["unmasked"]["events"] > 0 for figures in body["models"].values())
