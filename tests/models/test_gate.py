import numpy as np
import pytest
import torch

from models.gate import GateSettings, followers, judge, ranks_of
from models.network import Network, NetworkConfig
from models.sequences import Histories

SETTINGS = GateSettings()
USERS = np.repeat(np.arange(50), 20)


def ranks(rate: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(rng.random(1_000) < rate, rng.integers(1, 11, 1_000), 50).astype(float)


def test_the_same_model_is_promoted() -> None:
    same = ranks(0.2, 1)
    verdict = judge(same, same, USERS, SETTINGS, 0, "v0001-00000001")
    assert verdict.promoted
    assert (verdict.difference, verdict.interval, verdict.losing) == (0.0, (0.0, 0.0), 0.0)
    assert (verdict.events, verdict.users) == (1_000, 50)


@pytest.mark.parametrize("seed", range(5))
def test_a_much_worse_model_is_rejected_with_reasons(seed: int) -> None:
    verdict = judge(ranks(0.05, seed), ranks(0.2, seed + 100), USERS, SETTINGS, seed, "v0001-00000001")
    assert not verdict.promoted
    assert verdict.losing > 0.95
    assert verdict.interval[1] < 0
    assert "v0001-00000001" in verdict.reasons[0] and "loses more than" in verdict.reasons[0]


@pytest.mark.parametrize("seed", range(5))
def test_a_better_model_is_promoted(seed: int) -> None:
    verdict = judge(ranks(0.3, seed), ranks(0.2, seed + 100), USERS, SETTINGS, seed, "v0001-00000001")
    assert verdict.promoted
    assert verdict.difference > 0


def test_a_small_loss_within_the_margin_is_forgiven() -> None:
    rival = ranks(0.5, 1)
    candidate = rival.copy()
    hits = np.flatnonzero(rival <= 10)
    candidate[hits[::50]] = 50.0  # of many users
    assert judge(candidate, rival, USERS, GateSettings(margin=0.05), 0, "v").promoted
    assert not judge(candidate, rival, USERS, GateSettings(margin=0.0, least_margin=0.0), 0, "v").promoted


def test_the_bootstrap_is_over_users() -> None:
    """One user's events all lost: few resamples draw that user out, so the interval is far wider than by events."""
    rival = np.ones(1_000)
    candidate = np.where(USERS == 0, 50.0, 1.0)
    verdict = judge(candidate, rival, USERS, SETTINGS, 0, "v")
    assert verdict.difference == pytest.approx(-0.02)
    assert verdict.interval[1] == 0.0  # over a third of the resamples miss this user
    assert verdict.interval[0] < -0.035


def test_the_verdict_is_seeded() -> None:
    arguments = (ranks(0.2, 1), ranks(0.2, 2), USERS, SETTINGS)
    assert judge(*arguments, 7) == judge(*arguments, 7)
    assert judge(*arguments, 7).interval != judge(*arguments, 8).interval


def test_on_too_few_events_only_a_first_model_may_serve() -> None:
    few = np.ones(10)
    assert judge(few, few, np.arange(10), SETTINGS, 0).promoted
    verdict = judge(few, few, np.arange(10), SETTINGS, 0, "v0001-00000001")
    assert not verdict.promoted and "too few" in verdict.reasons[0]
    assert not judge(few[:0], few[:0], np.arange(0), SETTINGS, 0, "v").promoted


def test_the_verdict_is_plain_json() -> None:
    import json

    found = judge(ranks(0.2, 1), ranks(0.2, 2), USERS, SETTINGS, 0).to_dict()
    assert json.loads(json.dumps(found)) == found
    assert found["rival"] == "popularity"


def test_items_a_model_does_not_know_are_misses() -> None:
    items = np.array([1, 2, 0, 3, 1, 0], np.int32)
    zeros = np.zeros(6, np.int64)
    source = Histories(items, zeros.astype(np.uint8), zeros, np.arange(6), np.array([0, 4, 6]))
    torch.manual_seed(0)
    network = Network(NetworkConfig(items=4, hidden=4, embedding=3)).eval()
    wanted = np.ones(6, np.bool_)
    assert followers(source, wanted).tolist() == [1, 2, 3, 5]
    found = ranks_of(network, source, wanted)
    assert np.isinf(found[[1, 3]]).all()
    assert np.isfinite(found[[0, 2]]).all()
