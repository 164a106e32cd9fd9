import numpy as np
import pytest

from models.drift import DriftWatch


def watched(rates: list[tuple[int, float]], users: int = 300, seed: int = 0) -> list[tuple[int, int]]:
    """(position, width) of every alarm while hits come at these rates, a hundred at a time."""
    rng, watch, alarms = np.random.default_rng(seed), DriftWatch(), []
    for count, rate in rates:
        for _ in range(count // 100):
            alarm = watch.watch(rng.random(100) < rate, rng.integers(0, users, 100))
            if alarm is not None:
                alarms.append((alarm.position, alarm.width))
    return alarms


@pytest.mark.parametrize(("before", "after"), [(0.3, 0.1), (0.1, 0.02), (0.8, 0.1), (0.15, 0.03)])
@pytest.mark.parametrize("seed", range(5))
def test_an_abrupt_fall_is_noticed_within_2000_events(before: float, after: float, seed: int) -> None:
    alarms = watched([(20_000, before), (4_000, after)], seed=seed)
    assert len(alarms) == 1
    position, width = alarms[0]
    assert 20_000 < position <= 22_000
    assert width <= 2 * (position - 20_000) + 256  # and where it began is about right


@pytest.mark.parametrize("seed", range(5))
def test_a_steady_or_rising_rate_raises_no_alarm(seed: int) -> None:
    assert watched([(30_000, 0.1), (10_000, 0.3), (10_000, 0.28)], seed=seed) == []


def test_it_alarms_again_for_the_next_change() -> None:
    alarms = watched([(10_000, 0.3), (5_000, 0.1), (10_000, 0.3), (5_000, 0.1)])
    assert [position // 1_000 for position, _ in alarms] == [10, 25]


def test_users_who_are_harder_to_foretell_are_no_drift() -> None:
    """A hundred users at a time, each with a rate of its own, replaced by the next hundred: 300,000 hits."""
    for seed in range(3):
        rng, watch = np.random.default_rng(seed), DriftWatch()
        rates = rng.beta(1.4, 9.0, 1_000)
        for start in range(0, 1_000, 100):
            for _ in range(100):
                users = rng.permutation(np.arange(start, start + 100))
                assert watch.watch(rng.random(100) < rates[users], users) is None


def test_one_user_alone_raises_no_alarm() -> None:
    rng, watch = np.random.default_rng(0), DriftWatch()
    watch.watch(rng.random(10_000) < 0.3, rng.integers(0, 300, 10_000))
    assert watch.watch(np.zeros(3_000, np.bool_), np.full(3_000, 7)) is None
