import numpy as np
import pytest

from models.exclusion import Exclusion, NamedItems
from models.history import EXCLUDE_NONE, EXCLUDE_PURCHASED, EXCLUDE_SEEN
from state.items import ItemIndex


@pytest.mark.parametrize(
    ("named", "policy"), [("none", EXCLUDE_NONE), ("purchased", EXCLUDE_PURCHASED), ("seen", EXCLUDE_SEEN)]
)
def test_a_named_policy_stays(named, policy):
    exclusion = Exclusion(named)
    exclusion.watch(np.ones(100, np.bool_))
    assert exclusion.policy == policy


def test_auto_follows_the_share_of_repeats_among_the_last_ten_thousand():
    exclusion = Exclusion("auto")
    assert exclusion.policy == EXCLUDE_SEEN
    exclusion.watch(np.array([True, False, False, False]))
    assert exclusion.repeat_share == 0.25 and exclusion.policy == EXCLUDE_NONE
    exclusion.watch(np.zeros(0, np.bool_))
    assert exclusion.repeat_share == 0.25
    for _ in range(50):
        exclusion.watch(np.zeros(1_000, np.bool_))
    assert exclusion.policy == EXCLUDE_SEEN


def test_items_without_an_id_leave_and_the_others_move_up():
    items = ItemIndex()
    a, b = items.number("a"), items.number("b")
    items.learn([None, None], np.array([11, 12], np.uint64))
    unnamed = len(items.ids) - 2
    lists = np.array([[a, unnamed, b, unnamed + 1], [b, a, 0, 0]], np.int32)
    scores = np.array([[4, 3, 2, 1], [2, 1, 0, 0]], np.float32)
    shown, kept = NamedItems(items).only(lists, scores)
    assert shown.tolist() == [[a, b, 0, 0], [b, a, 0, 0]]
    assert kept.tolist() == [[4, 2, -np.inf, -np.inf], [2, 1, 0, 0]]
