import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models.finetune import Step
from models.job import Job, LearnSettings, fine_settings
from models.learner import Learner
from state.replay_buffer import ReplayBuffer, ReplaySettings
from tests.models.learning import FINE, SETTINGS, a_buffer, feed, learner_in, run, stream


def test_a_cold_start_publishes_a_first_version_that_serves(begun: tuple[Learner, ReplayBuffer]) -> None:
    learner, buffer = begun
    outcome = run(learner, learner.begin(buffer, "cold-start"))
    assert outcome.promoted
    assert learner.registry.current() == outcome.version
    found = learner.registry.load(outcome.version or "")
    assert found.metrics["gate"]["rival"] == "popularity"
    expected = {"parent": None, "trigger": "cold-start", "code": "test", "seen": 1_500, "fitted_seen": 1_500}
    assert expected.items() <= found.lineage.items()
    assert found.lineage["offsets"] == {"clicks:0": 1_500}
    assert learner.pending() is None


def test_versions_follow_each_other_and_refit_when_the_stream_has_grown(begun: tuple[Learner, ReplayBuffer]) -> None:
    learner, buffer = begun
    first = run(learner, learner.begin(buffer, "cold-start"))
    rows = stream(5_000)
    feed(buffer, rows[1_500:2_500])
    job = learner.begin(buffer, "events")
    assert job is not None and not job.anew
    second = run(learner, job)
    assert second.lineage["parent"] == first.version
    assert second.lineage["origin"] == "fine-tuned"
    feed(buffer, rows[2_500:])
    job = learner.begin(buffer, "events")
    assert job is not None and job.anew
    third = run(learner, job)
    assert third.lineage["origin"] == "fitted anew"
    assert third.metrics["gate"]["rival"] == third.lineage["parent"]


def test_a_pass_costs_in_proportion_to_what_is_new(begun: tuple[Learner, ReplayBuffer]) -> None:
    learner, buffer = begun
    run(learner, learner.begin(buffer, "cold-start"))
    rows = stream(1_840)
    feed(buffer, rows[1_500:1_610])
    job = learner.begin(buffer, "time")
    assert job is not None and not job.anew
    assert job.sample.recent.sum() == 440
    older = int((job.sample.learn & ~job.sample.recent).sum())
    assert 740 < older <= 880  # as many for each of two epochs, in blocks of 64
    feed(buffer, rows[1_610:])
    job = learner.begin(buffer, "events")
    assert job is not None and job.sample.recent.sum() == SETTINGS.recent


def test_passes_go_on_from_one_another_whatever_is_killed_in_between(begun: tuple[Learner, ReplayBuffer]) -> None:
    learner, buffer = begun
    going_on = replace(FINE, training=replace(FINE.training, learning_rate=0.01, averaged=0.9))
    learner.settings = replace(SETTINGS, fine=going_on)
    rows = stream(2_700)
    run(learner, learner.begin(buffer, "cold-start"))
    steps = []
    for upto in (1_900, 2_300, 2_700):
        feed(buffer, rows[buffer.seen : upto])
        job = learner.begin(buffer, "events")
        assert job is not None and not job.anew
        assert learner.run(job, lambda step: step.done > 0.4) is None  # as a kill would
        again = learner_in(learner._directory.parent, learner.settings)
        outcome = run(again, again.pending())
        assert outcome.promoted, outcome.metrics
        steps.append(outcome.lineage["goes_on_from_update"])
        again.tidy()
        assert [path.stem for path in learner._carried.iterdir()] == [job.id]
    assert steps[0] is None
    assert 0 < steps[1] < steps[2]
    for path in learner._carried.iterdir():
        path.write_bytes(b"damaged")
    feed(buffer, stream(3_000)[2_700:])
    assert run(learner, learner.begin(buffer, "events")).lineage["goes_on_from_update"] is None


def test_learning_goes_on_by_time_when_the_buffer_was_lost(begun: tuple[Learner, ReplayBuffer], tmp_path: Path) -> None:
    learner, buffer = begun
    first = run(learner, learner.begin(buffer, "cold-start"))
    assert first.lineage["log"] == buffer.log_id
    rows = stream(1_850)
    with a_buffer(tmp_path / "new", rows[850:1_350]) as again:  # what the topics still hold
        assert learner.begin(again, "events") is None
        feed(again, rows[1_350:1_750])  # what the gate judged the first version on comes first
        job = learner.begin(again, "events")
        assert job is not None and not job.anew and job.sample.seen == 900
        second = run(learner, job)
        assert second.promoted and second.lineage["parent"] == first.version
        assert second.lineage["log"] == again.log_id
        feed(again, rows[1_750:1_850])
        job = learner.begin(again, "events")
        assert job is not None and job.sample.recent.sum() == 400  # four times what is new


def test_a_model_begun_on_much_is_not_fitted_anew_on_the_little_of_a_new_buffer(tmp_path: Path) -> None:
    learner, rows = learner_in(tmp_path), stream(8_000)
    with a_buffer(tmp_path / "buffer", rows[:1_000]) as buffer:
        run(learner, learner.begin(buffer, "cold-start"))
        feed(buffer, rows[1_000:3_000])
        assert run(learner, learner.begin(buffer, "events")).lineage["origin"] == "fitted anew"
        feed(buffer, rows[3_000:3_110])
        last = run(learner, learner.begin(buffer, "time"))
        assert last.lineage["events"] < 1_500
        learner.registry.promote(last.version or "")
    with a_buffer(tmp_path / "new", rows[3_110:7_110]) as again:
        job = learner.begin(again, "events")
        assert job is not None and not job.anew and job.fitted_seen == 3_000


def test_learning_goes_on_when_the_buffer_was_restored_from_a_copy(
    begun: tuple[Learner, ReplayBuffer], tmp_path: Path
) -> None:
    learner, buffer = begun
    buffer.commit()
    shutil.copytree(tmp_path / "buffer", tmp_path / "copy")
    run(learner, learner.begin(buffer, "cold-start"))
    rows = stream(5_000)
    feed(buffer, rows[1_500:4_000])
    serving = run(learner, learner.begin(buffer, "events"))
    assert serving.promoted and serving.lineage["seen"] == 4_000
    with ReplayBuffer(tmp_path / "copy", ReplaySettings(capacity=50_000)) as restored:
        assert (restored.log_id, restored.seen) == (buffer.log_id, 1_500)
        restored.pass_over("clicks", 0, 4_000)  # the topics hold no more of what came in between
        feed(restored, rows[4_000:])
        job = learner.begin(restored, "events")
        assert job is not None and not job.anew
        assert run(learner, job).lineage["parent"] == serving.version


def test_versions_of_a_release_that_did_not_name_its_log_are_gone_on_from(
    begun: tuple[Learner, ReplayBuffer], monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, buffer = begun
    with monkeypatch.context() as patch:
        publish = learner.registry.publish

        def unnamed(network: Any, vocabulary: Any, figures: Any, lineage: dict[str, Any], **how: Any) -> str:
            return publish(network, vocabulary, figures, {k: v for k, v in lineage.items() if k != "log"}, **how)

        patch.setattr(learner.registry, "publish", unnamed)
        first = run(learner, learner.begin(buffer, "cold-start"))
    assert "log" not in first.lineage
    assert learner.begin(buffer, "time") is None
    feed(buffer, stream(1_610)[1_500:])
    job = learner.begin(buffer, "time")
    assert job is not None and job.sample.recent.sum() == 440 and job.fitted_seen == 1_500


def test_nothing_new_is_no_pass(begun: tuple[Learner, ReplayBuffer]) -> None:
    learner, buffer = begun
    run(learner, learner.begin(buffer, "cold-start"))
    assert learner.begin(buffer, "time") is None
    assert learner.pending() is None


def test_after_an_alarm_only_what_came_since_is_learnt(begun: tuple[Learner, ReplayBuffer]) -> None:
    learner, buffer = begun
    run(learner, learner.begin(buffer, "cold-start"))
    feed(buffer, [(u, i, t + 1_500_000) for u, i, t in stream(500, stride=7)])
    job = learner.begin(buffer, "drift", changed_at=1_500)
    assert job is not None and job.since == 1_500
    assert job.sample.times_ms[job.sample.learn].min() >= 1_500_000
    assert len(job.sample) > 500  # earlier events lead to the state
    outcome = run(learner, job)
    assert outcome.promoted
    feed(buffer, [(u, i, t + 2_000_000) for u, i, t in stream(500, stride=7, seed=1)])
    following = learner.begin(buffer, "events")
    assert following is not None and following.since == 1_500  # and it stays so, across restarts too


def test_what_followed_a_change_is_learnt_harder_while_there_is_little_of_it(tmp_path: Path) -> None:
    settings = LearnSettings(recent=600, changed_least=1_000)
    with a_buffer(tmp_path / "buffer", stream(1_700)) as buffer:
        sample = buffer.sample(600, 0, 0, 1_500)
    job = Job("id", "v0001-0000000a", False, 0, "drift", 1_500, 1_000, sample)
    fine = fine_settings(settings, job)
    assert (fine.epochs, fine.training.learning_rate) == (settings.changed_epochs, settings.changed_rate)
    assert fine_settings(settings, replace(job, since=0)) is settings.fine
    assert fine_settings(settings, replace(job, anew=True)) is settings.fine
    assert fine_settings(settings, replace(job, since=1_000)) is settings.fine  # 700 events: an old change


def test_a_rejected_pass_after_an_alarm_takes_older_events_back_in(begun: tuple[Learner, ReplayBuffer]) -> None:
    learner, buffer = begun
    first = run(learner, learner.begin(buffer, "cold-start"))
    feed(buffer, [(f"x{number % 9}", "i0", 1_500_000 + number) for number in range(300)])
    job = learner.begin(buffer, "drift", changed_at=1_500)
    assert job is not None
    worse = replace(learner.settings.fine.gate, margin=-0.9, least_margin=-1.0)  # nothing is good enough
    strict = Learner(learner.registry, learner._directory.parent, replace(SETTINGS, fine=replace(FINE, gate=worse)))
    outcome = strict.run(job)
    assert outcome is not None and not outcome.promoted and outcome.version is not None
    assert learner.registry.current() == first.version
    strict.finish()
    following = strict.begin(buffer, "events")
    assert following is not None and following.since == 0


def test_a_stopped_pass_goes_on_in_another_process(begun: tuple[Learner, ReplayBuffer], tmp_path: Path) -> None:
    learner, buffer = begun
    job = learner.begin(buffer, "cold-start")
    assert job is not None
    batches: list[float] = []

    def stop_soon(step: Step) -> bool:
        batches.append(step.done)
        return len(batches) == 7

    assert learner.run(job, stop_soon) is None
    other = learner_in(tmp_path)
    again = other.pending()
    assert again is not None and again.id == job.id
    seen: list[float] = []
    outcome = other.run(again, lambda step: seen.append(step.done))
    assert outcome is not None and outcome.promoted
    assert seen[0] > batches[-1]


def test_a_version_published_just_before_a_kill_is_not_published_twice(
    begun: tuple[Learner, ReplayBuffer], tmp_path: Path
) -> None:
    learner, buffer = begun
    job = learner.begin(buffer, "cold-start")
    assert job is not None
    first = learner.run(job)  # killed before `finish`, the announcement perhaps not sent
    again = learner_in(tmp_path).pending()
    assert again is not None
    second = learner_in(tmp_path).run(again)
    assert first == second
    assert len(learner.registry.versions()) == 1


def test_a_version_published_but_not_yet_promoted_is_promoted(
    begun: tuple[Learner, ReplayBuffer], tmp_path: Path
) -> None:
    learner, buffer = begun
    job = learner.begin(buffer, "cold-start")
    assert job is not None
    outcome = learner.run(job)
    Path(tmp_path, "registry", "CURRENT").unlink()  # as if killed between the two
    again = learner_in(tmp_path).pending()
    assert again is not None
    assert learner_in(tmp_path).run(again) == outcome
    assert learner.registry.current() is not None


@pytest.mark.parametrize("broken", ["pass.json", "sample.replay"])
def test_half_a_pass_is_dropped(begun: tuple[Learner, ReplayBuffer], tmp_path: Path, broken: str) -> None:
    learner, buffer = begun
    assert learner.begin(buffer, "cold-start") is not None
    path = tmp_path / "pass" / broken
    path.write_bytes(path.read_bytes()[:-5])
    assert learner_in(tmp_path).pending() is None
    assert not (tmp_path / "pass").exists()
    assert learner_in(tmp_path).begin(buffer, "cold-start") is not None


def test_old_versions_go(begun: tuple[Learner, ReplayBuffer]) -> None:
    learner, buffer = begun
    rows = stream(4_000)
    run(learner, learner.begin(buffer, "cold-start"))
    for start in range(1_500, 4_000, 400):
        feed(buffer, rows[start : start + 400])
        run(learner, learner.begin(buffer, "events"))
        learner.tidy()
    versions = learner.registry.versions()
    assert len(versions) in (4, 5)  # the newest four, and the one that serves
    assert learner.registry.current() in versions


def test_passes_depend_on_the_log_and_the_seed_alone(tmp_path: Path) -> None:
    names = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        learner = learner_in(folder)
        with a_buffer(folder / "buffer", stream(1_500)) as buffer:
            names.append(run(learner, learner.begin(buffer, "cold-start")).version)
    assert names[0] == names[1]  # a name carries the fingerprint of the weights
