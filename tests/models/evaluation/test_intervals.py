import numpy as np
import pytest

from models.evaluation.intervals import bootstrap, intervals, segments
from models.evaluation.metrics import Background
from tests.models.evaluation.walks import histories


def test_the_interval_has_about_the_width_of_the_normal_one():
    hits = (np.arange(1000) % 10 == 0) * 1.0
    low, high = bootstrap(hits, np.arange(1000))
    assert low == pytest.approx(0.1 - 1.96 * 0.0095, abs=0.004)
    assert high == pytest.approx(0.1 + 1.96 * 0.0095, abs=0.004)


def test_events_of_one_user_count_as_one_opinion():
    hits = np.repeat([0.0, 1.0] * 10, 50)
    together = bootstrap(hits, np.repeat(np.arange(20), 50))
    apart = bootstrap(hits, np.arange(1000))
    assert together[1] - together[0] > 4 * (apart[1] - apart[0])


def test_one_user_has_no_spread():
    assert bootstrap(np.array([0.0, 1.0]), np.zeros(2, int)) == (0.5, 0.5)
    assert bootstrap(np.zeros(0), np.zeros(0, int)) == (0.0, 0.0)


def test_intervals_are_of_the_three_headline_figures():
    found = intervals(np.array([1.0, 2.0, 30.0] * 20), np.arange(60))
    assert list(found) == ["hr@10", "ndcg@10", "mrr@10"]
    assert all(low < high for low, high in found.values())


def test_segments_part_users_by_history_and_items_by_popularity():
    source = histories([[1, 1, 2], [1, 3, 1, 4, 1, 2, 5], [6]])
    background = Background.of(histories([[1, 1], [1, 3, 1, 4, 1, 2]]), 7)
    events = np.array([2, 9, 10])
    found = segments(np.array([1.0, 20.0, np.inf]), events, source, background)
    assert found["cold users"] == {"hr@10": 1.0, "ndcg@10": 1.0, "events": 1}
    assert found["warm users"]["events"] == found["new users"]["events"] == 1
    assert found["tail items"]["events"] == 1
    assert found["new items"] == {"hr@10": 0.0, "ndcg@10": 0.0, "events": 2}
    assert "head items" not in found
