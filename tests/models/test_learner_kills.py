"""Passes that are killed or meet damage: what is gone on with, and what is dropped."""

import json
from pathlib import Path

import pytest

from models.finetune import Step
from models.job import Job
from models.learner import Learner
from models.registry import VersionRefused
from state.errors import StateError
from state.replay_buffer import ReplayBuffer
from tests.models.learning import FINE, feed, learner_in, run, stream


class Killed(BaseException):
    pass


def killed_at(learner: Learner, job: Job | None, batch: int) -> None:
    """Run the pass in a process that dies at so many batches."""
    assert job is not None
    left = iter(range(batch, -1, -1))

    def progress(_: Step) -> None:
        if next(left) == 1:
            raise Killed

    with pytest.raises(Killed):
        learner.run(job, progress)


def test_a_pass_that_kills_its_process_wherever_it_goes_on_is_dropped(
    begun: tuple[Learner, ReplayBuffer], tmp_path: Path
) -> None:
    learner, buffer = begun
    killed_at(learner, learner.begin(buffer, "cold-start"), FINE.checkpoint_batches + 1)
    for _ in range(3):  # before the next checkpoint
        again = learner_in(tmp_path)
        killed_at(again, again.pending(), 1)
    with pytest.raises(StateError, match="was begun 3 times"):
        learner_in(tmp_path).pending()
    assert not (tmp_path / "pass").exists()
    assert learner_in(tmp_path).pending() is None
    assert learner.begin(buffer, "cold-start") is not None  # and counted anew
    assert learner_in(tmp_path).pending() is not None


def test_a_pass_that_gets_on_between_kills_is_gone_on_with(begun: tuple[Learner, ReplayBuffer], tmp_path: Path) -> None:
    learner, buffer = begun
    job = learner.begin(buffer, "cold-start")
    for _ in range(4):
        for _ in range(2):  # twice nowhere
            killed_at(learner, job, 1)
        killed_at(learner, job, FINE.checkpoint_batches + 1)
        learner = learner_in(tmp_path)
        job = learner.pending()
    assert run(learner, job).promoted


def test_a_version_rolled_back_before_its_pass_ended_is_not_promoted_again(
    begun: tuple[Learner, ReplayBuffer], tmp_path: Path
) -> None:
    learner, buffer = begun
    first = run(learner, learner.begin(buffer, "cold-start"))
    feed(buffer, stream(2_000)[1_500:])
    job = learner.begin(buffer, "events")
    assert job is not None
    second = learner.run(job)  # killed before `finish`
    assert second is not None and second.promoted
    assert learner.registry.rollback() == first.version
    outcome = learner_in(tmp_path).run(job)
    assert outcome is not None and not outcome.promoted
    assert "another version was promoted meanwhile" in outcome.metrics["gate"]["reasons"]
    assert learner_in(tmp_path).pending() is None  # it is not even gone on with
    assert not (tmp_path / "pass").exists()
    assert learner.registry.pointer() == ([first.version], 3)
    feed(buffer, stream(2_500)[2_000:])
    following = run(learner, learner.begin(buffer, "events"))  # the next one is made from what serves
    assert following.promoted and following.lineage["parent"] == first.version


def test_a_first_version_taken_back_by_hand_before_its_pass_ended_is_not_promoted_again(
    begun: tuple[Learner, ReplayBuffer], tmp_path: Path
) -> None:
    learner, buffer = begun
    older = run(learner, learner.begin(buffer, "cold-start"))
    (tmp_path / "registry" / "CURRENT").write_text("turn 7")  # nothing serves
    feed(buffer, stream(2_000)[1_500:])
    job = learner.begin(buffer, "cold-start")
    assert job is not None and (job.parent, job.turn) == (None, 7)
    learner.registry.promote(older.version or "")
    outcome = learner.run(job)
    assert outcome is not None and not outcome.promoted
    assert learner.registry.pointer() == ([older.version], 8)


def test_a_pass_of_a_release_that_noted_no_turn_is_gone_on_with(
    begun: tuple[Learner, ReplayBuffer], tmp_path: Path
) -> None:
    learner, buffer = begun
    job = learner.begin(buffer, "cold-start")
    killed_at(learner, job, FINE.checkpoint_batches + 1)
    path = tmp_path / "pass" / "pass.json"
    head = json.loads(path.read_text())
    assert head.pop("turn") == 0
    path.write_text(json.dumps(head))
    again = learner_in(tmp_path)
    pending = again.pending()
    assert pending is not None and pending.turn is None
    assert run(again, pending).promoted


@pytest.mark.parametrize("broken", ["weights.safetensors", "lineage.json"])
def test_a_damaged_version_that_serves_is_replaced_by_one_fitted_from_nothing(
    begun: tuple[Learner, ReplayBuffer], tmp_path: Path, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    learner, buffer = begun
    first = run(learner, learner.begin(buffer, "cold-start"))
    path = tmp_path / "registry" / str(first.version) / broken
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    feed(buffer, stream(2_000)[1_500:])
    if broken.startswith("weights"):  # which only a pass reads
        job = learner.begin(buffer, "events")
        assert job is not None and job.parent == first.version
        with pytest.raises(VersionRefused):
            learner.run(job)
        learner.finish()
    job = learner.begin(buffer, "cold-start")
    assert job is not None and job.parent is None and job.anew
    assert f"{first.version} serves and is damaged" in caplog.text
    second = run(learner, job)
    assert second.promoted and learner.registry.current() == second.version != first.version
    assert learner.serving()[0] == second.version


def test_storage_that_does_not_answer_is_no_damage(
    begun: tuple[Learner, ReplayBuffer], monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, buffer = begun
    first = run(learner, learner.begin(buffer, "cold-start"))
    feed(buffer, stream(2_000)[1_500:])

    def refuse(path: str) -> bytes:
        raise PermissionError(path)

    job = learner.begin(buffer, "events")
    with monkeypatch.context() as patch:
        pointer = learner.registry.pointer()
        patch.setattr(learner.registry, "pointer", lambda: pointer)
        patch.setattr(learner.registry._fs, "cat_file", refuse)
        with pytest.raises(VersionRefused):
            learner.serving()
        with pytest.raises(VersionRefused):
            learner._parent(job)
    assert learner.serving()[0] == first.version
