from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.course import Step
from models.finetune import fine_tune
from state.errors import StateError
from state.replay_sample import Sample
from tests.models.learning import FINE, QUICK, a_buffer, stream
from tests.models.test_finetune import same


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    with a_buffer(tmp_path / "buffer", stream(3_000)) as buffer:
        return buffer.sample(1_000, 1_000, 1)


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("kept", ["gru", "lstm"])
def test_a_pass_stopped_anywhere_resumes_to_the_very_same_candidate(
    sample: Sample, tmp_path: Path, kept: str, sampled: bool
) -> None:
    training = replace(QUICK, sampled_above=5, negatives=64) if sampled else QUICK
    settings = replace(FINE, first=training, first_epochs=2, cell="lstm" if kept == "lstm" else "gru")
    whole = fine_tune(None, sample, settings, seed=4)
    checkpoint, shown = tmp_path / "checkpoint.pt", []
    stops = iter([1, 5, 2, 9, 3])
    found, steps = None, 0
    for _ in range(60):
        left = next(stops, 4)

        def progress(step: Step) -> bool:
            nonlocal left, steps
            left, steps = left - 1, steps + 1
            shown.append(step.done)
            return left <= 0

        found = fine_tune(None, sample, settings, 4, progress, checkpoint=checkpoint)
        if found is not None:
            break
    assert same(found, whole)
    assert found is not None and whole is not None and found.loss == whole.loss
    assert shown == sorted(shown) and len(set(shown)) == len(shown)  # no batch twice


def test_a_kill_between_checkpoints_goes_back_to_the_last_one(sample: Sample, tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    whole = fine_tune(None, sample, FINE, seed=4)
    checkpoint, count = tmp_path / "checkpoint.pt", 0
    for end in (2, 4, 8, 20):

        def progress(step: Step, end: int = end) -> None:
            nonlocal count
            count += 1
            if count % end == 0:
                raise Killed

        with pytest.raises(Killed):
            fine_tune(None, sample, FINE, 4, progress, checkpoint=checkpoint)
    assert same(fine_tune(None, sample, FINE, 4, None, checkpoint=checkpoint), whole)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed")])
def test_a_checkpoint_that_cannot_be_written_says_where_and_why(
    sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(StateError, match="cannot write the checkpoint") as raised:
        fine_tune(None, sample, FINE, 4, checkpoint=tmp_path / "checkpoint.pt")
    assert str(error) in raised.value.why and raised.value.fix


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint", None])
def test_a_checkpoint_that_does_not_fit_is_ignored(sample: Sample, tmp_path: Path, damage: bytes | None) -> None:
    checkpoint = tmp_path / "checkpoint.pt"
    if damage is None:
        fine_tune(None, sample, FINE, 3, None, checkpoint=checkpoint)  # of another seed
    else:
        checkpoint.write_bytes(damage)
    assert same(fine_tune(None, sample, FINE, 4, None, checkpoint=checkpoint), fine_tune(None, sample, FINE, 4))
