from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.kernels import fast_log, jit
from models.lanes import (
    LANES,
    below,
    columns_of,
    equal_in,
    equal_to,
    exp_lanes,
    highest,
    lanes,
    lanes_of,
    larger,
    log_lanes,
    lowest_bit,
    no_less,
    picked,
    positive,
    put,
    put_in,
    reciprocal,
    smaller,
    spread,
    sum_of,
)


@jit
def arithmetic(table: Any, line: Any, out: Any) -> None:
    x, y = lanes(table, 1, 3), lanes_of(line, 2)
    put(out, 0, 0, x + y)
    put(out, 1, 0, x - y)
    put(out, 2, 0, x * y)
    put(out, 3, 0, np.float32(2.0) * x - np.float32(1.0))
    z = spread(0.5)
    z += x
    put(out, 4, 0, z)
    put(out, 5, 0, larger(x, y))
    put(out, 6, 0, smaller(x, y))
    put(out, 7, 0, positive(x))
    put(out, 8, 0, below(x, np.float32(0.25), 0.0))
    put(out, 9, 0, reciprocal(y))
    put_in(out[10], 0, log_lanes(y))


def test_arithmetic_is_numpys():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(3, 40)).astype(np.float32)
    line = rng.uniform(1e-6, 50, 40).astype(np.float32)
    out = np.zeros((11, LANES), np.float32)
    arithmetic(table, line, out)
    x, y = table[1, 3:19], line[2:18]
    expected = [
        x + y, x - y, x * y, 2 * x - 1, 0.5 + x, np.maximum(x, y), np.minimum(x, y), x > 0, np.where(x < 0.25, x, 0),
        1 / y,
    ]  # fmt: skip
    np.testing.assert_allclose(out[:10], expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(out[10], [fast_log(v) for v in y], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(out[10], np.log(y), atol=1e-4)


@jit
def sums(line: Any, out: Any) -> None:
    out[0] = sum_of(lanes_of(line, 0))
    out[1] = highest(lanes_of(line, 0))


@jit
def powers(line: Any, out: Any) -> None:
    put_in(out, 0, exp_lanes(lanes_of(line, 0)))


@given(st.lists(st.floats(-100, 0, width=32), min_size=LANES, max_size=LANES))
def test_sums_maxima_and_powers(values):
    line, out = np.array(values, np.float32), np.zeros(LANES, np.float32)
    sums(line, out)
    np.testing.assert_allclose(out[:2], [line.sum(), line.max()], rtol=1e-5, atol=1e-5)
    powers(line, out)
    np.testing.assert_allclose(out, np.exp(line), rtol=1e-4, atol=1e-30)


@jit
def places(line: Any, value: Any, table: Any, number: Any, out: Any) -> None:
    out[0] = equal_to(lanes_of(line, 0), value)
    out[1] = equal_in(table, 1, 2, number)
    out[2] = lowest_bit(out[0])
    out[3] = no_less(lanes_of(line, 0), value)


@pytest.mark.parametrize("place", range(LANES - 1))
def test_where_a_number_stands(place):
    line, table, out = np.zeros(LANES, np.float32), np.zeros((2, 40), np.int32), np.zeros(4, np.int32)
    line[place:] = 3
    line[place // 2] = 4
    table[1, 2 + place] = table[0, 5] = table[1, 30] = 7
    places(line, np.float32(3), table, np.int32(7), out)
    at_least = sum(1 << lane for lane in range(LANES) if line[lane] >= 3)
    equal = sum(1 << lane for lane in range(LANES) if line[lane] == 3)
    first = (equal & -equal).bit_length() - 1
    assert out.tolist() == [equal, 1 << place, first, at_least]


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
