import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.finetune import fine_tune, gate
from models.learner import figures_of
from models.private import PrivacySettings, PrivateTrainer, epsilon, without_events
from models.registry import Registry
from models.sequences import Histories
from models.training_settings import TrainingSettings
from state.errors import RecstreamError
from state.replay_sample import Sample
from tests.models.learning import FINE, a_buffer, stream
from tests.models.test_training import build, cycling

TRAINING = TrainingSettings(learning_rate=0.03, window=5, warmup=0.0)  # 15 events of a user are three windows
QUIET = PrivacySettings(noise=1e-9, clip=0.5, users_per_step=8, seed=3)


def private(privacy: PrivacySettings = QUIET, epochs: int = 1, source: Histories | None = None) -> PrivateTrainer:
    trainer = PrivateTrainer(build(), epochs, 0, TRAINING, privacy)
    if source is not None:
        for _ in range(epochs):
            trainer.epoch(source, lambda share, loss: False)
    return trainer


def step_sums(source: Histories, users: list[int], clip: float) -> list[torch.Tensor]:
    """The sum of clipped gradients of one step over the given users' windows."""
    trainer = private(replace(QUIET, clip=clip))
    trainer.network.eval()  # no dropout
    trainer._objective.item_dropout = 0.0  # type: ignore[assignment]
    begun = trainer._begin(source, None)
    windows = trainer._plan(source, None, begun.order).windows
    owners = np.searchsorted(source.starts, windows[:, 0], side="right") - 1
    trainer._optimizer.step = lambda: None  # type: ignore[method-assign,assignment]
    mine = np.flatnonzero(np.isin(owners, users))
    trainer._update(source, windows[mine], None, begun.states[torch.from_numpy(mine)])
    expected = trainer._rate(trainer.users) * trainer.users
    return [part.grad * expected for part in trainer.network.parameters() if part.grad is not None]


def distance(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    return float(torch.stack([(a - b).norm() for a, b in zip(one, other, strict=True)]).norm())


def test_one_user_more_or_less_moves_a_step_by_the_clipping_norm_at_most() -> None:
    source = cycling()
    for clip in (0.001, 0.02):
        all_of_them = step_sums(source, list(range(10)), clip)
        for missing in (0, 9):
            others = step_sums(source, [user for user in range(10) if user != missing], clip)
            assert distance(all_of_them, others) == pytest.approx(clip, rel=1e-3)  # a gradient is about 0.1
    unclipped = step_sums(source, [0, 1], 1e6), step_sums(source, [0], 1e6)
    assert 0.02 < distance(*unclipped) < 1e3


def test_all_windows_of_a_user_are_drawn_together_and_as_often_as_said() -> None:
    source, sizes = cycling(users=200), []
    trainer = private()
    for _ in range(4):
        begun = trainer._begin(source, None)
        plan = trainer._plan(source, None, begun.order)
        owners = np.searchsorted(source.starts, plan.windows[:, 0], side="right")
        for batch in plan.batches:
            _, counts = np.unique(owners[batch], return_counts=True)
            assert set(counts) <= {3}
            sizes.append(len(counts))
    assert len(sizes) == 4 * 25
    assert np.mean(sizes) == pytest.approx(8, rel=0.1)
    assert np.std(sizes) == pytest.approx(np.sqrt(8), rel=0.35)  # binomial, not fixed: the accountant assumes it


def test_with_little_noise_it_learns() -> None:
    source = cycling()
    trainer = PrivateTrainer(build(), 12, 0, TRAINING, replace(QUIET, clip=5.0))
    losses = [trainer.epoch(source, lambda share, loss: False) for _ in range(12)]
    assert losses[0] > 2.0
    assert losses[-1] < losses[0] - 0.5


def test_the_noise_is_as_large_as_said() -> None:
    source = cycling(users=5, length=1)  # nothing to learn: noise alone
    source = replace(source, starts=np.array([0, 5]))
    trainer = private(PrivacySettings(noise=2.0, clip=0.5, users_per_step=1, seed=1))
    trainer._optimizer.step = lambda: None  # type: ignore[method-assign,assignment]
    trainer.epoch(source, lambda share, loss: False, wanted=np.zeros(5, np.bool_))
    gradient = torch.cat([part.grad.flatten() for part in trainer.network.parameters() if part.grad is not None])
    expected = trainer._rate(1) * 1
    assert float(gradient.std()) * expected == pytest.approx(1.0, rel=0.05)


def test_noise_is_secret_unless_a_test_asks_for_a_seed() -> None:
    def weights(privacy: PrivacySettings) -> torch.Tensor:
        return private(privacy, 1, cycling()).network.item_bias.detach()

    loud = PrivacySettings(users_per_step=8)
    assert not torch.equal(weights(loud), weights(loud))
    assert torch.equal(weights(replace(loud, seed=4)), weights(replace(loud, seed=4)))


def test_steps_are_counted_and_epsilon_follows() -> None:
    trainer = private(PrivacySettings(noise=1.0, users_per_step=5, seed=0), epochs=3, source=cycling())
    assert trainer.spent == [(1.0, 0.25, 12)]
    assert epsilon([], 1e-5) == 0.0
    little, more = epsilon([(1.0, 0.01, 100)], 1e-5), epsilon([(1.0, 0.01, 1000)], 1e-5)
    assert 1.0 < little < more < epsilon([(0.7, 0.01, 1000)], 1e-5)
    assert epsilon([(1.0, 0.01, 500), (1.0, 0.01, 500)], 1e-5) == pytest.approx(more)


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    with a_buffer(tmp_path / "buffer", stream(3_000)) as buffer:
        return buffer.sample(2_000, 500, 1)


PRIVATE = replace(FINE, privacy=PrivacySettings(noise=1.0, clip=0.5, users_per_step=10, seed=5))


def test_epsilon_is_published_and_adds_up_along_the_line(sample: Sample, tmp_path: Path) -> None:
    registry, found = Registry(tmp_path / "registry"), []
    public = fine_tune(None, sample, FINE, seed=1)
    assert public is not None
    parent = registry.load(registry.publish(public.network, public.vocabulary, {}, public.lineage))
    for _ in range(2):
        candidate = fine_tune(parent, sample, PRIVATE, seed=1)
        assert candidate is not None
        metrics = figures_of(candidate, gate(candidate, parent, sample, PRIVATE))
        parent = registry.load(registry.publish(candidate.network, candidate.vocabulary, metrics, candidate.lineage))
        found.append((parent.metrics["epsilon"], parent.lineage["privacy"]))
    assert 0 < found[0][0] < found[1][0]
    assert found[0][1]["spent"] == [[1.0, 0.25, 8]]
    assert found[1][1]["spent"] == [[1.0, 0.25, 8]] * 2
    assert found[0][1]["since"] == found[1][1]["since"] == registry.versions()[0]
    assert found[0][1]["delta"] == 1e-5


def test_a_private_pass_resumes_to_the_very_same_candidate(sample: Sample, tmp_path: Path) -> None:
    quick = replace(PRIVATE, first_epochs=2)
    whole = fine_tune(None, sample, quick, seed=4)
    shown: list[float] = []

    def progress(step: Any) -> bool:
        shown.append(step.done)
        return len(shown) % 3 == 0

    candidate = None
    for _ in range(20):
        candidate = fine_tune(None, sample, quick, 4, progress, checkpoint=tmp_path / "checkpoint.pt")
        if candidate is not None:
            break
    assert whole is not None and candidate is not None
    left, right = whole.network.state_dict(), candidate.network.state_dict()
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert whole.lineage["privacy"] == candidate.lineage["privacy"]


def test_training_starts_from_nothing_that_counts_tell(sample: Sample) -> None:
    blind = without_events(sample)
    assert len(blind) == 0 and not blind.item_counts.any()
    assert blind.item_ids == sample.item_ids


def test_without_opacus_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opacus.accountants", None)
    with pytest.raises(RecstreamError, match=r"recstream\[dp\]"):
        private()


@pytest.mark.parametrize("wrong", [{"noise": 0.0}, {"clip": -1.0}, {"users_per_step": 0}, {"delta": 2.0}])
def test_settings_that_protect_nobody_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(RecstreamError, match="privacy settings"):
        PrivacySettings(**wrong)
