from typing import Any

import numpy as np

from models.gathers import columns_of, picked
from models.kernels import jit
from models.lanes import put
from models.vectors import LANES


@jit
def transposed(table: Any, rows: Any, at: Any, out: Any) -> None:
    a, b, c, d, e, f, g, h = columns_of(table, rows, at)
    put(out, 0, 0, a)
    put(out, 1, 0, b)
    put(out, 2, 0, c)
    put(out, 3, 0, d)
    put(out, 4, 0, e)
    put(out, 5, 0, f)
    put(out, 6, 0, g)
    put(out, 7, 0, h)


def test_rows_are_read_as_columns():
    rng = np.random.default_rng(0)
    table, rows = rng.normal(size=(50, 8)).astype(np.float32), rng.integers(0, 50, 40).astype(np.int32)
    out = np.zeros((8, LANES), np.float32)
    transposed(table, rows, 5, out)
    np.testing.assert_array_equal(out, table[rows[5:21]].T)


@jit
def found(scores: Any, place_of: Any, items: Any, at: Any, out: Any) -> None:
    values, there = picked(scores, 1, place_of, items, at)
    put(out, 0, 0, values)
    put(out, 1, 0, there)


def test_elements_are_picked_by_the_place_of_items_and_place_0_is_none():
    rng = np.random.default_rng(0)
    scores, items = rng.normal(size=(2, 30)).astype(np.float32), rng.integers(0, 60, 40).astype(np.int32)
    scores[:, 0] = -np.inf
    place_of, out = rng.integers(0, 30, 60).astype(np.int32) * (rng.random(60) < 0.7), np.zeros((2, LANES), np.float32)
    found(scores, place_of.astype(np.int32), items, 7, out)
    places = place_of[items[7:23]]
    assert 0 in places
    np.testing.assert_array_equal(out, [np.where(places > 0, scores[1, places], 0), places > 0])
