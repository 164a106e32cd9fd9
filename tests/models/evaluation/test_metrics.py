import numpy as np
import pytest

from models.evaluation.judging import Ranking
from models.evaluation.metrics import Background, accuracy, beyond, rounded
from models.ranking import quality
from tests.models.evaluation.walks import histories


def ranking(lists: list[list[int]]) -> Ranking:
    return Ranking(np.ones(len(lists)), np.array(lists, np.int32), np.zeros(len(lists), np.float32))


def test_accuracy_agrees_with_hand_counted_figures():
    found = accuracy(np.array([1.0, 3.0, 11.0, np.inf]), items=101)
    assert found["hr@1"] == 0.25 and found["hr@10"] == 0.5 and found["hr@20"] == 0.75
    assert found["ndcg@5"] == pytest.approx((1 + 0.5) / 4)
    assert found["mrr@10"] == pytest.approx((1 + 1 / 3) / 4)
    assert found["recall@10"] == 0.5 and found["precision@10"] == 0.05
    assert found["f1@10"] == pytest.approx(2 * 0.5 * 0.05 / 0.55)
    assert found["auc"] == pytest.approx((1 + 0.98 + 0.9 + 0) / 4)
    assert found["auc@10"] == pytest.approx((1 + 0.98 + 0.45 + 0.45) / 4)
    assert found["events"] == 4


def test_accuracy_agrees_with_the_trainers_ranking_figures():
    ranks = np.random.default_rng(0).integers(1, 40, 200) + 0.5
    ours, theirs = rounded(accuracy(ranks, 50)), quality(ranks)
    assert all(ours[name] == value for name, value in theirs.items())


def test_no_events_have_no_figures():
    assert accuracy(np.zeros(0), 10) == {}
    background = Background.of(histories([[1, 2]]), 5)
    nothing = Ranking(np.zeros(0), np.zeros((0, 10), np.int32), np.zeros(0, np.float32))
    assert beyond(nothing, np.zeros(0, int), background) == {}


def test_the_same_list_for_everybody_is_impersonal_and_covers_little():
    past = histories([[1, 1, 1, 2, 2, 3], [1, 2, 4, 5, 6, 7]])
    background = Background.of(past, 8)
    found = beyond(ranking([[1, 2], [1, 2]]), np.array([0, 1]), background)
    assert found["coverage@10"] == pytest.approx(2 / 7)
    assert found["personalisation@10"] == pytest.approx(0)
    assert found["popularity_bias@10"] > 1
    own = beyond(ranking([[1, 3], [6, 7]]), np.array([0, 1]), background)
    assert own["personalisation@10"] == pytest.approx(1)
    assert own["novelty@10"] > found["novelty@10"]
    assert own["gini@10"] < found["gini@10"]


def test_items_with_the_same_audience_are_not_diverse():
    users = [[1, 2]] * 40 + [[3]] * 40
    background = Background.of(histories(users), 4)
    alike = beyond(ranking([[1, 2]]), np.array([0]), background)["diversity@10"]
    apart = beyond(ranking([[1, 3]]), np.array([0]), background)["diversity@10"]
    assert alike == pytest.approx(0, abs=1e-6)
    assert apart == pytest.approx(1, abs=0.2)


def test_lists_like_the_history_are_calibrated():
    past = histories([[1] * 8 + [2] * 4, *[[item] for item in range(3, 12)]])
    background = Background.of(past, 12)
    like = beyond(ranking([[1, 1, 2]]), np.array([0]), background)["calibration@10"]
    unlike = beyond(ranking([[9, 10, 11]]), np.array([0]), background)["calibration@10"]
    assert like < 0.3 < unlike <= 1


def test_blank_places_of_short_lists_do_not_count():
    background = Background.of(histories([[1, 2, 3]]), 4)
    found = beyond(ranking([[1, 0, 0], [2, 0, 0]]), np.array([0, 0]), background)
    assert found["coverage@10"] == pytest.approx(2 / 3)


def test_short_lists_are_measured_by_the_items_they_hold():
    users = [[1, 2]] * 40 + [[1]] * 20
    background = Background.of(histories(users), 3)
    owners = np.array([0, 1])
    full = beyond(ranking([[1, 2], [1, 2]]), owners, background)
    short = beyond(ranking([[1, 2, 0, 0, 0], [1, 2, 0, 0, 0]]), owners, background)
    for name in ("diversity@10", "personalisation@10", "calibration@10"):
        assert short[name] == pytest.approx(full[name])
    blank = beyond(ranking([[0, 0], [0, 0]]), owners, background)
    assert blank["diversity@10"] == blank["personalisation@10"] == blank["calibration@10"] == 0


def test_an_item_of_most_events_is_in_the_head():
    background = Background.of(histories([[1] * 85 + list(range(2, 17))]), 17)
    assert background.group[1] == 0
    assert set(background.group[2:]) == {2}
