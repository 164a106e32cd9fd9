import tracemalloc

import numpy as np
import pytest
import torch

from models.family.counting import Markov, Popularity, SkipMarkov
from models.family.pairs import PairCounts
from models.sequences import Histories
from tests.models.family.walks import ITEMS, lesson, walks


def one_user(items: list[int]) -> Histories:
    size = len(items)
    zeros = np.zeros(size, np.int64)
    return Histories(
        np.array(items, np.int32), zeros.astype(np.uint8), zeros, np.arange(size) * 1000, np.array([0, size])
    )


def test_pairs_grow_and_keep_their_weights():
    counts = PairCounts(3000)
    rng = np.random.default_rng(0)
    expected = np.zeros((3000, 3000), np.float32)
    for _ in range(4):
        sources, targets = rng.integers(0, 3000, (2, 2000))
        counts.add(sources, targets, np.ones(2000, np.float32))
        np.add.at(expected, (sources, targets), 1)
    expected[0] = expected[:, 0] = 0
    rows = rng.integers(0, 3000, (50, 3))
    factors = np.array([1, 0.5, 0.25], np.float32)
    np.testing.assert_allclose(counts.sums(rows, factors), (expected[rows] * factors[:, None]).sum(1), atol=1e-6)
    assert counts.size == (expected > 0).sum()


def test_markov_counts_what_came_right_after():
    model = Markov(5)
    model.fit(lesson(one_user([1, 2, 1, 2, 1, 3, 4]), held_out=0, items=5))
    scores = model.scores(torch.tensor([[1.0], [2.0]]))
    assert scores[0, 1:].argsort(descending=True)[:2].tolist() == [1, 2]  # after 1 came 2 twice and 3 once
    assert scores[1].argmax() == 1
    assert scores[0, 2] == pytest.approx(2, abs=0.01)


def test_markov_falls_back_on_popularity():
    model = Markov(5)
    model.fit(lesson(one_user([1, 2, 2, 2, 3, 3, 4]), held_out=0, items=5))
    assert model.scores(torch.tensor([[4.0]])).argmax() == 2


def test_skip_markov_weighs_by_distance_and_recency():
    model = SkipMarkov(6)
    model.fit(lesson(one_user([1, 2, 3]), held_out=0, items=6))
    scores = model.scores(torch.tensor([[2.0, 1.0, *[0.0] * 8]]))[0]
    assert scores[3] == pytest.approx(1 + 1 / 2 * 1 / 2, abs=0.01)  # after 2 at distance 1, after 1 at distance 2
    assert scores[2] == pytest.approx(1 / 2, abs=0.01)


def test_popularity_decays_only_where_that_foretells_more():
    # The first half of a long log is all item 1, the rest all item 2: newer events tell more.
    past = [1] * 600 + [2] * 400
    source = one_user(past + [2] * 30)
    model = Popularity(4)
    model.fit(lesson(source, held_out=30, items=4))
    assert model.half_life > 0
    assert model.scores(torch.zeros(1, 1)).argmax() == 2
    steady = Popularity(ITEMS)
    steady.fit(lesson(walks(), timed=False))
    assert steady.half_life == 0


def test_choosing_a_half_life_needs_no_table_of_events_and_items():
    rng, items = np.random.default_rng(0), 200_001
    source = one_user([*rng.integers(1, items, 4000), *rng.integers(1, items, 1000)])
    told = lesson(source, held_out=1000, items=2)
    model = Popularity(items)
    tracemalloc.start()
    model.fit(told)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 8 * items  # a few columns; a table of 1000 events had 200 MB


def test_decayed_popularity_learnt_in_parts_is_that_learnt_at_once():
    rows = np.random.default_rng(0).integers(1, 9, 4000)
    whole, parts = Popularity(9, half_life=20.0), Popularity(9, half_life=20.0)
    whole.learn(torch.zeros(0, 1), rows, rows)
    for part in np.split(rows, 40):
        parts.learn(torch.zeros(0, 1), part, part)
    torch.testing.assert_close(whole.scores(torch.zeros(1, 1)), parts.scores(torch.zeros(1, 1)), rtol=1e-4, atol=1e-4)
    assert whole.scores(torch.zeros(1, 1))[0, 1:].sum() == pytest.approx(1 / (1 - 0.5 ** (1 / 20)), rel=0.01)
