"""What an operator does while passes run: rollbacks and other settings."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models.learner import Learner
from models.registry import Registry, Summary
from state.replay_buffer import ReplayBuffer
from tests.models.learning import FINE, SETTINGS, feed, learner_in, run, stream


def test_an_operators_rollback_during_a_pass_wins(begun: tuple[Learner, ReplayBuffer], tmp_path: Path) -> None:
    learner, buffer = begun
    first = run(learner, learner.begin(buffer, "cold-start"))
    feed(buffer, stream(2_000)[1_500:])
    second = run(learner, learner.begin(buffer, "events"))
    assert second.promoted
    feed(buffer, stream(2_500)[2_000:])
    job = learner.begin(buffer, "events")
    assert job is not None
    learner.registry.promote(first.version or "")
    outcome = learner.run(job)
    assert outcome is not None and not outcome.promoted
    assert learner.registry.current() == first.version
    assert learner_in(tmp_path).pending() is None  # and after a restart there is nothing left of it


def test_a_pass_after_a_rollback_trains_instead_of_finding_the_version_that_was_rolled_back(
    begun: tuple[Learner, ReplayBuffer], tmp_path: Path
) -> None:
    learner, buffer = begun
    first = run(learner, learner.begin(buffer, "once"))
    feed(buffer, stream(2_100)[1_500:])
    bad = run(learner, learner.begin(buffer, "once"))
    assert bad.promoted and learner.registry.rollback() == first.version
    changed = learner_in(tmp_path, replace(SETTINGS, seed=5, fine=replace(FINE, epochs=3)))
    again = run(changed, changed.begin(buffer, "once"))
    assert again.version not in (first.version, bad.version)
    assert again.lineage["settings"]["epochs"] == 3
    assert learner.registry.current() != bad.version


def test_a_rejected_pass_is_made_anew_with_other_settings(begun: tuple[Learner, ReplayBuffer], tmp_path: Path) -> None:
    learner, buffer = begun
    run(learner, learner.begin(buffer, "once"))
    feed(buffer, stream(2_100)[1_500:])
    strict = replace(SETTINGS, fine=replace(FINE, gate=replace(FINE.gate, risk=-1.0)))
    rejecting = learner_in(tmp_path, strict)
    rejected = run(rejecting, rejecting.begin(buffer, "once"))
    assert not rejected.promoted
    assert run(rejecting, rejecting.begin(buffer, "once")).version == rejected.version  # it would be the same again
    again = run(learner, learner.begin(buffer, "once"))
    assert again.version != rejected.version


def test_an_operators_rollback_at_the_last_moment_wins(
    begun: tuple[Learner, ReplayBuffer], monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, buffer = begun
    registry, rows = learner.registry, stream(2_500)
    first = run(learner, learner.begin(buffer, "cold-start"))
    feed(buffer, rows[1_500:2_000])
    assert run(learner, learner.begin(buffer, "events")).promoted
    feed(buffer, rows[2_000:])
    job = learner.begin(buffer, "events")
    assert job is not None
    describe, info = registry.describe, registry._fs.info

    def described(name: str) -> Summary:
        monkeypatch.setattr(registry._fs, "info", rolled_back)  # the next thing asked for: is the version there?
        return describe(name)

    def rolled_back(path: str) -> object:
        monkeypatch.undo()
        assert Registry(registry.url).rollback() == first.version
        return info(path)

    real = learner._publish

    def publish(*args: Any) -> str:
        monkeypatch.setattr(registry, "describe", described)
        return real(*args)

    monkeypatch.setattr(learner, "_publish", publish)
    outcome = learner.run(job)
    assert outcome is not None and not outcome.promoted
    assert "meanwhile" in outcome.metrics["gate"]["reasons"][-1]
    assert registry.promoted() == [first.version]
