import numpy as np
import pytest

from benchmarks.quality.scores import curve, ends, figures


def test_figures_count_from_the_start_given() -> None:
    ranks = np.array([1.0, np.inf, 2.0, 10.0, 10.5, np.inf])
    hit, mrr = figures(ranks, 2)
    assert hit == 0.5
    assert mrr == pytest.approx((0.5 + 0.1) / 4)


def test_a_tie_counts_half_a_place() -> None:
    assert figures(np.array([1.5]), 0) == (1.0, pytest.approx(0.66667))


def test_no_events_give_zero() -> None:
    assert figures(np.zeros(0), 0) == (0.0, 0.0)


def test_the_curve_has_a_point_for_each_stretch() -> None:
    ranks = np.concatenate([np.ones(30), np.full(30, np.inf)])
    assert curve(ranks, 4) == [1.0, 1.0, 0.0, 0.0]
    assert ends(60, 4) == [15, 30, 45, 60]
    assert len(curve(np.ones(3), 50)) == len(ends(3, 50)) == 3
