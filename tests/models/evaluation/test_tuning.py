from dataclasses import replace

import numpy as np
import pytest

from models.evaluation.splits import split_by
from models.evaluation.tuning import SPACES, Search, tune
from models.family.registry import build
from state.errors import RecstreamError
from tests.models.evaluation.walks import dataset, ring

pytest.importorskip("optuna")


class Clock:
    """A clock that goes on by a second with every look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def silent(number, share, best, note) -> None:
    """Say nothing and go on."""


@pytest.fixture
def search(tmp_path):
    return Search("skip-markov", "leave-one-out", Clock(), tmp_path / "study.journal", 1e9, trials=6)


def test_the_best_trial_is_at_least_as_good_as_the_defaults(search):
    body = tune(dataset(ring()), search, silent)
    assert body["default"] == body["trials"][0] and body["default"]["settings"] == {}
    assert body["best"]["ndcg@10"] == max(trial["ndcg@10"] for trial in body["trials"])
    assert len(body["trials"]) == 6 and body["resumed"] == 0
    build("skip-markov", 15, body["best"]["settings"])


def test_the_same_seed_tries_the_same_settings(search, tmp_path):
    first, second = (
        tune(dataset(ring()), replace(search, study=tmp_path / name), silent)["trials"] for name in ("a", "b")
    )
    assert first == second


def test_a_search_goes_on_with_its_file(search):
    first = tune(dataset(ring()), search, silent)
    second = tune(dataset(ring()), replace(search, trials=9), silent)
    assert second["trials"][:6] == first["trials"] and len(second["trials"]) == 9
    assert second["resumed"] == 6
    assert all(trial["settings"] for trial in second["trials"][1:])  # the defaults are tried once
    nothing_left = tune(dataset(ring()), search, silent)
    assert nothing_left["trials"] == second["trials"]


def test_a_file_of_another_search_is_refused(search):
    tune(dataset(ring()), replace(search, trials=1), silent)
    with pytest.raises(RecstreamError, match="of another search") as caught:
        tune(dataset(ring(users=31)), search, silent)
    assert "events was 600, not 620" in caught.value.why
    search.study.write_text("no journal\n")
    with pytest.raises(RecstreamError, match="cannot be read as a study"):
        tune(dataset(ring()), search, silent)


def test_judged_events_change_nothing(search, tmp_path):
    data = dataset(ring())
    split, _ = split_by(data, "leave-one-out")
    other = dataset(ring())
    other.source.items[split.judged] = 1 + np.arange(split.judged.sum()) % 14
    first = tune(data, search, silent)["trials"]
    assert tune(other, replace(search, study=tmp_path / "other"), silent)["trials"] == first


def test_time_ends_the_search_and_the_trial_under_way(search):
    body = tune(dataset(ring()), replace(search, seconds=0.0, trials=None), silent)
    assert [trial["settings"] for trial in body["trials"]] == [{}]  # one is always finished
    later = tune(dataset(ring()), replace(search, seconds=30.0, trials=None), silent)
    assert 1 < len(later["trials"]) < 31


def test_the_caller_ends_the_search(search):
    seen = []

    def stop(number, share, best, note):
        seen.append((number, share, best))
        return number == 2

    body = tune(dataset(ring()), search, stop)
    assert [trial["trial"] for trial in body["trials"]] == [0, 1]
    assert seen[0][2] is None and seen[-1][2] == pytest.approx(body["best"]["ndcg@10"], abs=1e-6)
    with pytest.raises(RecstreamError, match="No trial was finished"):
        tune(dataset(ring()), replace(search, study=search.study.with_name("new")), lambda *told: True)


@pytest.mark.parametrize("name", list(SPACES))
def test_every_space_builds_its_model(name, search):
    import optuna

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(12):
        settings = SPACES[name](study.ask())
        assert build(name, 20, settings).settings().items() >= settings.items()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"model": "popularity"}, "nothing to tune in 'popularity'"),
        ({"model": "oracle"}, "no model 'oracle'"),
        ({"protocol": "prequential"}, "keeps no validation events"),
    ],
)
def test_what_cannot_be_tuned_is_said(search, changes, words):
    with pytest.raises(RecstreamError) as caught:
        tune(dataset(ring()), replace(search, **changes), silent)
    assert words in f"{caught.value.what} {caught.value.why}"
