from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.kernels import fast_log, jit
from models.lanes import (
    below,
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
    positive,
    put,
    put_in,
    reciprocal,
    smaller,
    spread,
    sum_of,
)
from models.vectors import LANES


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
