from dataclasses import replace

import numpy as np
import pytest
import torch

from models.evaluation.dataset import Dataset
from models.evaluation.splits import Split
from models.evaluation.tasks import task_figures
from models.family.catalogue import Catalogue
from models.family.heads import Answers, head_scores, item_heads, parse_tasks, ratings_of, type_odds
from models.family.interface import Lesson, Tasks
from models.family.registry import MODELS, load
from models.family.transformer import Bert
from models.sequences import Histories
from state.errors import RecstreamError
from tests.models.evaluation.walks import histories
from tests.models.family.walks import ITEMS, SMALL, lesson, walks, windows

NEURAL = ["rnn", "lstm", "gru", "time-lstm", "transformer", "bert", "fusion"]
EVERYTHING = parse_tasks("all", 3)


def shop(users: int = 80, length: int = 24, seed: int = 0) -> tuple[Histories, np.ndarray]:
    """Users who walk along a ring; an item's place in it says its type, the item and the user say the rating."""
    source = walks(users, length, seed=seed)
    rng = np.random.default_rng(seed)
    kinds = np.array([0, 0, 1, 2])[source.items % 4].astype(np.uint8)
    liking = np.repeat(rng.normal(0, 0.5, users), length)
    ratings = 3 + (source.items % 5 - 2) * 0.6 + liking + rng.normal(0, 0.2, len(source))
    return replace(source, kinds=kinds), ratings.astype(np.float32)


def taught(name: str, tasks: Tasks = EVERYTHING, effort: float = 1e-6):
    source, ratings = shop(20, 12)
    given = lesson(source)
    model = MODELS[name](ITEMS, **SMALL.get(name, {}))
    model.fit(replace(given, tasks=tasks, ratings=ratings[~given.judged], effort=effort))
    return model


def test_the_right_answers_before_each_event():
    source = replace(histories([[1, 2, 3, 4], [5, 6]]), kinds=np.array([0, 2, 0, 1, 1, 3], np.uint8))
    answers = Answers.of(source, Tasks(("click", "purchase"), 3))
    assert answers.rows["click"].tolist() == [1, 3, 3, 0, 0, 0]
    assert answers.rows["purchase"].tolist() == [2, 2, 0, 0, 0, 0]
    assert answers.rows["ahead-2"].tolist() == [2, 3, 4, 0, 6, 0]
    assert answers.rows["ahead-3"].tolist() == [3, 4, 0, 0, 0, 0]
    assert answers.places["click"].tolist() == [0, 2, 2, -1, -1, -1]
    assert answers.kinds.tolist() == [0, 2, 0, 1, 1, -1]  # the last type is not known


@pytest.mark.parametrize("name", NEURAL)
def test_one_mechanism_serves_every_neural_model(name, tmp_path):
    model = taught(name)
    assert model.task_heads is not None and not model.task_heads.training
    queries = model.sequence(windows())[:, -1]
    for head in ("click", "view", "purchase", "ahead-2", "ahead-3"):
        scores = head_scores(model, head, queries)
        assert scores.shape == (4, ITEMS) and (scores[:, 0] == -torch.inf).all() and scores[:, 1:].isfinite().all()
    odds, read = type_odds(model, queries), ratings_of(model, queries, torch.tensor([1, 2, 3, 4]))
    torch.testing.assert_close(odds.exp().sum(1), torch.ones(4))
    assert read.shape == (4,) and read.isfinite().all()
    model.save(tmp_path / "model.safetensors")
    copy = load(tmp_path / "model.safetensors")
    assert copy.task_heads is not None and copy.task_heads.tasks == EVERYTHING
    assert torch.equal(head_scores(copy, "ahead-3", queries), head_scores(model, "ahead-3", queries))
    assert torch.equal(type_odds(copy, queries), odds)
    state = model.initial_state(4)
    for step in range(13):
        state = model.step(state, windows().at(step))
    torch.testing.assert_close(model.query(state), queries, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["gru", "transformer"])
def test_heads_learn_more_than_what_needs_no_model(name):
    source, ratings = shop()
    place = np.arange(len(source)) % 24
    split = Split(place < 18, (place >= 18) & (place < 20), place >= 20)
    keep = split.learnt | split.validation
    starts = np.concatenate(([0], np.cumsum(keep)))[source.starts]
    columns = (source.items, source.kinds, source.gaps_seconds, source.times_ms)
    kept = Histories(*(column[keep] for column in columns), starts=starts)
    model = MODELS[name](ITEMS, **({"width": 24, "reach": 5, "dropout": 0.1} if name == "transformer" else {}))
    given = Lesson(split.past(source), kept, split.validation[keep], Catalogue.empty(ITEMS), effort=0.004)
    model.fit(replace(given, tasks=EVERYTHING, ratings=ratings[split.learnt]))
    data = Dataset("shop", source, [""] * ITEMS, Catalogue.empty(ITEMS), ratings)
    found = task_figures(model, data, split)
    assert found["type"]["accuracy"] > found["type"]["majority_accuracy"] + 0.15
    assert found["type"]["log_loss"] < found["type"]["frequency_log_loss"]
    assert found["rating"]["rmse"] < 0.8 * found["rating"]["mean_rmse"]
    for distance in (2, 3):  # .8 ** 2 and .8 ** 3 of the walks are still where the ring says
        ahead = found[f"ahead-{distance}"]
        assert ahead["ndcg@10"] > ahead["popularity_ndcg@10"] + 0.1
        assert ahead["ndcg@10"] > ahead["next_ndcg@10"]
    for kind in ("view", "purchase"):
        assert found[kind]["ndcg@10"] > found[kind]["popularity_ndcg@10"] + 0.05
        assert found[kind]["ndcg@10"] > found[kind]["next_ndcg@10"]


def test_what_lies_in_the_middle_teaches_no_head_of_a_model_that_sees_both_sides():
    torch.manual_seed(0)
    model = Bert(ITEMS, width=8, window=8)
    model.module.train()
    targets = torch.randint(1, ITEMS, (64, 6))
    asked = model.outputs(windows(64, 6), targets)
    assert asked.ahead.any() and not asked.ahead.all()
    assert (asked.events[asked.ahead] == 6).all()  # the last event of every window


def test_without_tasks_there_are_no_heads():
    model = taught("gru", Tasks())
    assert model.task_heads is None
    assert not any("head" in name for name in model.tensors())
    with pytest.raises(RecstreamError, match="no heads"):
        type_odds(model, torch.zeros(1, 6))
    with pytest.raises(RecstreamError, match="no item vectors"):
        MODELS["markov"](ITEMS).item_vectors(torch.ones(1, dtype=torch.int64))


def test_heads_are_named_and_mistakes_said():
    assert parse_tasks("next, purchase,type") == Tasks(("type", "purchase"), 1)
    assert not parse_tasks("next") and not parse_tasks(None)
    assert item_heads(parse_tasks("all", 2)) == {"click": 0, "view": 1, "purchase": 2, "ahead-2": -2}
    with pytest.raises(RecstreamError, match="no head 'price'"):
        parse_tasks("price")
    with pytest.raises(RecstreamError, match="horizon of 99"):
        parse_tasks(None, 99)
