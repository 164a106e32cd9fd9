"""What is gathered about each candidate, against the plain definitions."""

from collections import defaultdict

import numpy as np
import pytest

from models.candidates import gather, release, workspace
from models.features import (
    F_AGREE,
    F_COUNT,
    F_LAST,
    F_NEAR,
    F_NEURAL,
    F_NO_ROW,
    F_OWN,
    F_OWN_NEXT,
    F_SKIP10,
    SMOOTHING,
)
from models.mixing import SELECTOR_SIZES
from models.popularity import Popularity
from models.transition_rows import ALL_BACK, ALL_SKIP, BACK, HOT, SKIP
from models.transitions import Transitions
from tests.models.test_transitions import random_events

ITEMS = 64
NO_SCORES, NO_TOP, NO_ROWS = np.zeros((0, 0), np.float32), np.zeros((0, 0), np.int32), np.zeros(1, np.int32)


@pytest.fixture(scope="module")
def memories() -> tuple[Transitions, Popularity]:
    log = random_events(3000, 30, 50, seed=1)
    transitions, popularity = Transitions(ITEMS), Popularity(ITEMS)
    transitions.learn(*log)
    popularity.learn(log[2])
    return transitions, popularity


def look(memories, history, scores=NO_SCORES, top=NO_TOP, number_of=NO_ROWS, gap=0, kind=0):
    """Features by item, and the rows of the weight table that were chosen."""
    transitions, popularity = memories
    w = workspace(ITEMS)
    histories = np.zeros((1, 50), np.int32)
    histories[0, : len(history)] = history
    row_of = np.zeros(ITEMS, np.int32)
    row_of[number_of[1:]] = np.arange(1, len(number_of))
    n = gather(
        w, transitions.arrays, popularity.arrays, histories, 0, len(history), gap, kind, scores, top, 0, row_of,
        number_of,
    )  # fmt: skip
    found = {int(item): w.features[:, k].copy() for k, item in enumerate(w.items[:n])}
    assert len(found) == n
    chosen = w.chosen.copy()
    release(w.place, w.items, w.sums, n)
    assert (w.place == -1).all() and (w.sums == 0).all()  # nothing is left for the next event
    return found, chosen


def test_candidates_are_what_the_memories_know_of_the_history(memories):
    transitions, popularity = memories
    history = [7, 3, 7, 12, 40, 41, 42, 43]
    found, _ = look(memories, history)
    rows = {row: transitions.arrays.items[row, :HOT] for row in range(ITEMS)}
    expected = set(history) | set(popularity.arrays.top.ravel().tolist())
    for d, row in enumerate(history[:6]):
        expected |= set(rows[row][: HOT if d < 3 else 16].tolist())
    for via in rows[7][:10].tolist():
        expected |= set(rows[via][:10].tolist())
    expected -= {0}
    assert expected <= set(found)
    assert all(np.isfinite(features).all() for features in found.values())


def test_sums_over_the_last_items_follow_their_definition(memories):
    arrays, history = memories[0].arrays, [5, 9, 30]
    skip, agreement = defaultdict(float), defaultdict(float)
    for d, row in enumerate(history):
        for s in range(HOT):
            item = int(arrays.items[row, s])
            p = arrays.counts[row, s, SKIP] / (arrays.totals[row, ALL_SKIP] + SMOOTHING)
            q = arrays.counts[row, s, BACK] / (arrays.totals[row, ALL_BACK] + SMOOTHING)
            skip[item] += p
            agreement[item] += 0.3 / (d + 1) * np.log1p(100 * (p + q))
    found, _ = look(memories, history)
    popular = {item: memories[1].shares(np.array([item]), life).item() for item in found for life in (1e4,)}
    for item, features in found.items():
        assert features[F_AGREE] == pytest.approx(agreement[item], abs=2e-3)
        # backed off to a twentieth of the mean popularity, which this does not compute anew
        assert np.exp(features[F_SKIP10] - 8) == pytest.approx(
            skip[item] / len(history) + 0.05 * popular[item], rel=0.2, abs=3e-4
        )


def test_own_items_say_when_and_how_often(memories):
    found, _ = look(memories, [4, 8, 4, 6])
    assert [found[item][F_OWN] for item in (4, 8, 6)] == [1, 1, 1]
    assert found[4][F_LAST] == 1 and found[8][F_LAST] == 0
    assert found[6][F_NEAR] == pytest.approx(1 / 4)
    assert found[4][F_COUNT] == pytest.approx(np.log(2), abs=1e-3)
    assert found[8][F_OWN_NEXT] == pytest.approx(
        np.log(2), abs=1e-3
    )  # came after 4, the last item, when it came before
    others = [features for item, features in found.items() if item not in (4, 8, 6)]
    assert others and all(features[F_OWN] == 0 and features[F_COUNT] == 0 for features in others)


def test_items_without_a_number_leave_no_trace(memories):
    found, _ = look(memories, [0, 5, 0, 9])
    assert 0 not in found
    assert found[5][F_OWN] == 1


def test_scores_are_centred_and_items_outside_the_model_get_the_mean(memories):
    number_of = np.array([0, 60, 5, 9], np.int32)  # 60 is known to the model alone
    scores = np.array([[-9, 4.0, 1.0, 2.5]], np.float32)
    found, _ = look(memories, [5], scores, np.array([[1]], np.int32), number_of)
    assert 60 in found
    known = [found[item][F_NEURAL] for item in (60, 5, 9) if item in found]
    assert sum(known) == pytest.approx(0, abs=1e-5)
    assert found[60][F_NEURAL] - found[5][F_NEURAL] == pytest.approx(3)
    assert all(found[item][F_NO_ROW] == (item not in (60, 5, 9)) for item in found)
    assert all(found[item][F_NEURAL] == 0 for item in found if item not in (60, 5, 9))


def test_the_situation_chooses_one_row_of_every_block(memories):
    ends = np.cumsum(SELECTOR_SIZES)
    starts = ends - SELECTOR_SIZES
    situations = ([], [5], [5, 5, 5, 9], list(range(1, 51)))
    seen = [look(memories, history, gap=gap, kind=2)[1] for history in situations for gap in (0, 5, 10**7)]
    for chosen in seen:
        assert (chosen >= starts).all() and (chosen < ends).all()
    assert len({tuple(chosen) for chosen in seen}) >= 8
