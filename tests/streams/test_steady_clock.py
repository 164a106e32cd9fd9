import logging
import time
from pathlib import Path

import pytest

from streams.flushes import Flushes
from streams.metrics import Metrics
from streams.settings import load_settings
from streams.steady_clock import SteadyClock

HOUR, DAY = 3_600.0, 86_400.0
T0 = 1_700_000_000.0


class Clocks:
    """The machine's two clocks, moved by hand."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.wall, self.monotonic = T0, 500.0
        patch.setattr(time, "time", lambda: self.wall)
        patch.setattr(time, "monotonic", lambda: self.monotonic)

    def pass_by(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    return Clocks(monkeypatch)


def test_time_passes_and_small_corrections_are_followed(clocks: Clocks) -> None:
    clock = SteadyClock(HOUR)
    for correction in (0.0, 3_000.0, 3_000.0, -3_000.0, 0.5):
        clocks.pass_by(60.0)
        clocks.wall += correction
        assert clock.seconds() == pytest.approx(clocks.wall)
    clocks.pass_by(100 * DAY)  # asked again only then
    assert clock.seconds() == pytest.approx(clocks.wall)


def test_a_clock_that_is_ahead_for_a_moment_is_not_believed(clocks: Clocks, caplog: pytest.LogCaptureFixture) -> None:
    clock = SteadyClock(HOUR)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            clocks.pass_by(60.0)
            right = clocks.wall
            clocks.wall += 40 * DAY
            assert clock.seconds() == pytest.approx(right)
            clocks.pass_by(1.0)
            assert clock.seconds() == pytest.approx(right + 1)
            clocks.wall -= 40 * DAY
            assert clock.seconds() == pytest.approx(clocks.wall)
    assert caplog.text.count("jumped ahead by 960.0 hours") == 3


def test_a_clock_that_stays_ahead_is_believed_after_a_day(clocks: Clocks, caplog: pytest.LogCaptureFixture) -> None:
    clock = SteadyClock(HOUR)
    clocks.wall += 2 * DAY  # the machine was suspended
    with caplog.at_level(logging.WARNING):
        for _ in range(24):
            assert clock.seconds() == pytest.approx(clocks.wall - 2 * DAY)
            clocks.pass_by(HOUR)
        assert clock.seconds() == pytest.approx(clocks.wall)
    assert caplog.text.count("jumped ahead") == 1


def test_a_clock_set_back_is_followed_at_once_and_not_believed_when_it_is_wrong_again(clocks: Clocks) -> None:
    clock = SteadyClock(HOUR)  # begun under a wrong clock
    clocks.wall -= 40 * DAY
    for _ in range(25):
        assert clock.seconds() == pytest.approx(clocks.wall)
        clocks.pass_by(HOUR)
    clocks.wall += 40 * DAY
    assert clock.seconds() == pytest.approx(clocks.wall - 40 * DAY)


def test_users_do_not_expire_by_a_clock_that_jumps_between_two_flushes(clocks: Clocks, tmp_path: Path) -> None:
    flushes = Flushes(load_settings(user_ttl_days=30, state_dir=str(tmp_path)), Metrics(), "log", lambda: "held")
    clocks.pass_by(100.0)
    right = clocks.wall
    clocks.wall += 40 * DAY
    _, before_ms = flushes.plan()
    assert before_ms == pytest.approx((right - 30 * DAY) * 1000, abs=1)
    clocks.wall -= 40 * DAY
    clocks.pass_by(100.0)
    _, before_ms = flushes.plan()
    assert before_ms == pytest.approx((clocks.wall - 30 * DAY) * 1000, abs=1)
    _, before_ms = flushes.plan()
    assert before_ms is None
