from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from state.waves import waves


@given(st.lists(st.integers(0, 8) | st.integers(0, 2**31 - 1), max_size=80))
def test_waves_agree_with_counting_one_by_one(slots: list[int]) -> None:
    expected: list[list[int]] = []
    previous = []
    seen: dict[int, list[int]] = {}
    for event, slot in enumerate(slots):
        before = seen.setdefault(slot, [])
        if len(before) == len(expected):
            expected.append([])
        expected[len(before)].append(event)
        previous.append(before[-1] if before else -1)
        before.append(event)
    order, bounds, found_previous = waves(np.array(slots, np.int32))
    assert [order[a:b].tolist() for a, b in pairwise(bounds)] == expected
    assert bounds[0] == 0
    assert bounds[-1] == len(slots)
    assert found_previous.tolist() == previous
    assert order.dtype == found_previous.dtype == np.int64
