from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.finetune import (
    Candidate,
    FineTuneSettings,
    fine_tune,
    gate,
)
from models.registry import Registry, Version
from state.errors import RecstreamError
from state.replay_sample import Sample
from tests.models.learning import FINE, a_buffer, stream


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    with a_buffer(tmp_path / "buffer", stream(3_000)) as buffer:
        return buffer.sample(1_000, 1_000, 1)


def published(candidate: Candidate | None, folder: Path) -> Version:
    assert candidate is not None
    registry = Registry(folder)
    return registry.load(registry.publish(candidate.network, candidate.vocabulary, {}, candidate.lineage))


def weights_of(candidate: Candidate | None) -> dict[str, torch.Tensor]:
    assert candidate is not None
    return candidate.network.state_dict()


def same(one: Candidate | None, other: Candidate | None) -> bool:
    left, right = weights_of(one), weights_of(other)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_a_first_fit_learns_and_beats_popularity(sample: Sample) -> None:
    candidate = fine_tune(None, sample, FINE, seed=1)
    assert candidate is not None
    assert candidate.loss[-1] < candidate.loss[0] - 0.5
    verdict = gate(candidate, None, sample, FINE)
    assert verdict.promoted
    assert verdict.candidate["ndcg@10"] > 2 * verdict.serving["ndcg@10"]
    assert candidate.lineage["parent"] is None
    assert candidate.added == len(candidate.vocabulary) - 1 == 30


def test_fine_tuning_improves_on_its_parent_and_learns_new_items(tmp_path: Path) -> None:
    rows = stream(2_500)
    with a_buffer(tmp_path / "early", rows) as buffer:
        first = published(fine_tune(None, buffer.sample(2_000, 0, 1), FINE, seed=1), tmp_path / "registry")
    later = rows + [(user, f"new-{item}", time + 3_000_000) for user, item, time in stream(3_000, seed=9)]
    with a_buffer(tmp_path / "late", later) as buffer:
        sample = buffer.sample(3_000, 1_000, 2)
    candidate = fine_tune(first, sample, replace(FINE, epochs=6), seed=2)
    assert candidate is not None
    assert candidate.vocabulary[: len(first.vocabulary)] == first.vocabulary
    assert candidate.added == 30
    verdict = gate(candidate, first, sample, FINE)
    assert verdict.promoted
    assert verdict.serving["ndcg@10"] == 0.0  # the parent knows none of the items asked for
    assert verdict.candidate["ndcg@10"] > 0.1
    assert candidate.lineage["parent"] == first.name


def test_the_same_arguments_give_the_same_candidate(sample: Sample) -> None:
    assert same(fine_tune(None, sample, FINE, seed=4), fine_tune(None, sample, FINE, seed=4))
    assert not same(fine_tune(None, sample, FINE, seed=4), fine_tune(None, sample, FINE, seed=5))


def test_a_diverged_candidate_is_not_promoted(sample: Sample) -> None:
    candidate = fine_tune(None, sample, FINE, seed=1)
    assert candidate is not None
    with torch.no_grad():
        candidate.network.item_bias[3] = torch.nan
    verdict = gate(candidate, None, sample, FINE)
    assert not verdict.promoted and "diverged" in verdict.reasons[0]


def test_too_little_to_learn_is_said(tmp_path: Path) -> None:
    with a_buffer(tmp_path, [(f"u{number}", "i", number) for number in range(200)]) as buffer:
        sample = buffer.sample(200, 0, 0)
    with pytest.raises(RecstreamError, match="events to learn"):
        fine_tune(None, sample, FineTuneSettings())
