"""Search for a model's settings: which of them rank the validation events best. Judged events are never looked at.

Trials are drawn by a tree-structured Parzen estimator; the first is the model's defaults, so that what is found is at
least as good on the validation events. The study is a file: a later search of the same data, split and model goes on
with it. Times are told by the caller's clock, so that a search ends within its budget.

Letters: N events.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from models.evaluation.dataset import Dataset
from models.evaluation.fitting import lesson_of
from models.evaluation.judging import judge
from models.evaluation.metrics import gains
from models.evaluation.splits import Protocol, Split, split_by, thinned
from models.family.registry import MODELS, build
from state.errors import RecstreamError

GOAL: Final = "ndcg@10"
VALIDATED: Final = 10_000  # most validation events a trial is judged by
STARTUP: Final = 8  # random trials before the estimator has anything to go by
Report = Callable[[int, float, float | None, str], object]
Suggest = Callable[[Trial], dict[str, Any]]


def _recurrent(trial: Trial) -> dict[str, Any]:
    return {
        "hidden": trial.suggest_categorical("hidden", [64, 96, 128, 192, 256]),
        "embedding": trial.suggest_categorical("embedding", [32, 48, 64, 96, 128]),
        "dropout": trial.suggest_float("dropout", 0.0, 0.6, step=0.05),
        "rate": trial.suggest_float("rate", 0.001, 0.03, log=True),
    }


def _attention(trial: Trial) -> dict[str, Any]:
    return {
        "width": trial.suggest_categorical("width", [32, 48, 64, 96, 128]),
        "layers": trial.suggest_int("layers", 1, 3),
        "heads": trial.suggest_categorical("heads", [1, 2, 4]),
        "dropout": trial.suggest_float("dropout", 0.0, 0.6, step=0.05),
        "rate": trial.suggest_float("rate", 0.0005, 0.01, log=True),
    }


def _transformer(trial: Trial) -> dict[str, Any]:
    reach = trial.suggest_categorical("reach", [20, 50, 100])
    return {**_attention(trial), "reach": reach, "loss": trial.suggest_categorical("loss", ["ce", "gbce"])}


def _bert(trial: Trial) -> dict[str, Any]:
    return {**_attention(trial), "window": trial.suggest_categorical("window", [20, 50, 100])}


def _fusion(trial: Trial) -> dict[str, Any]:
    encoder = trial.suggest_categorical("encoder", ["transformer", "gru"])
    return {**_attention(trial), "encoder": encoder}


SPACES: Final[Mapping[str, Suggest]] = {
    "skip-markov": lambda trial: {
        "latest": trial.suggest_int("latest", 1, 20),
        "farthest": trial.suggest_int("farthest", 1, 20),
    },
    "bpr": lambda trial: {"width": trial.suggest_categorical("width", [16, 32, 64, 128, 256])},
    **dict.fromkeys(("rnn", "lstm", "gru", "time-lstm"), _recurrent),
    "transformer": _transformer,
    "bert": _bert,
    "fusion": _fusion,
}


@dataclass(frozen=True, slots=True)
class Search:
    """How to search.

    Attributes:
        model: One of `SPACES`.
        protocol: Says which events are for validation.
        clock: Seconds.
        study: File of the study; made when it is not there.
        seconds: Time for the search; the trial under way is given up when they are over, unless none was finished.
        trials: Most trials, those of earlier searches included; None for no limit.
        effort: Factor on training budgets.
        seed: Of the draws and of every fit.
        device: Where neural models are trained.
    """

    model: str
    protocol: Protocol
    clock: Callable[[], float]
    study: Path
    seconds: float
    trials: int | None = None
    effort: float = 0.5
    seed: int = 0
    device: str = "cpu"


def tune(data: Dataset, search: Search, report: Report) -> dict[str, Any]:
    """Search until the time or the trials are over, or until ``report`` says so.

    Args:
        data: The events.
        search: How.
        report: Called with a trial's number, the share of it that is done, the best figure so far and a note; True
            ends the search.

    Returns:
        ``{"best": {"settings": {...}, "ndcg@10": ..., "trial": ...}, "default": ..., "trials": [...], ...}``: NDCG@10
        of the validation events, unmasked, full ranking.

    Raises:
        RecstreamError: The model has nothing to tune, the log is too short, or the file is of another search.
    """
    if search.model not in SPACES:
        known = search.model in MODELS
        what = f"There is nothing to tune in {search.model!r}" if known else f"There is no model {search.model!r}"
        raise RecstreamError(what, f"models with settings are {', '.join(SPACES)}", "Name one of them: --model gru")
    split, _ = split_by(data, search.protocol)
    if not split.validation.any():
        what, why = f"There is nothing to tune by under {search.protocol}", "it keeps no validation events"
        raise RecstreamError(what, why, "Use --protocol leave-one-out or time-split")
    study = _study(data, search)
    begun = search.clock()
    earlier = len(_finished(study))
    state = _Progress(search, report, study, begun + search.seconds)
    number = earlier
    while not state.over and (search.trials is None or number < search.trials):
        trial = study.ask()
        try:
            first = all(done.user_attrs["settings"] for done in _finished(study))
            value = _tried(data, split, search, trial, {} if first else SPACES[search.model](trial), state)
        except (_GivenUp, KeyboardInterrupt) as ended:
            study.tell(trial, state=TrialState.FAIL)
            if isinstance(ended, KeyboardInterrupt) and not _finished(study):
                raise
            break
        study.tell(trial, value)
        number += 1
    finished = _finished(study)
    if not finished:
        what = "No trial was finished"
        raise RecstreamError(what, "the search was ended before", "Give it more time (--minutes) or less --effort")
    best = max(finished, key=lambda trial: trial.value or 0.0)
    return {
        "model": search.model,
        "data": {"name": data.name, "events": len(data.source), "items": data.items - 1},
        "protocol": search.protocol,
        "effort": search.effort,
        "seed": search.seed,
        "validation_events": int(split.validation.sum()),
        "best": _described(best),
        "default": _described(next((trial for trial in finished if not trial.user_attrs["settings"]), best)),
        "trials": [_described(trial) for trial in finished],
        "resumed": earlier,
        "seconds": round(search.clock() - begun, 1),
        "study": str(search.study),
    }


class _GivenUp(Exception):
    """The search is over and the trial under way is not."""


class _Progress:
    """Whether the search is over, asked between any two batches of a fit."""

    def __init__(self, search: Search, report: Report, study: optuna.Study, until: float) -> None:
        self._search, self._report, self._study, self._until = search, report, study, until
        self._asked = False

    @property
    def over(self) -> bool:
        return self._asked or (self._search.clock() >= self._until and bool(_finished(self._study)))

    def tell(self, number: int, share: float, note: str) -> bool:
        best = max((trial.value or 0.0 for trial in _finished(self._study)), default=None)
        self._asked = bool(self._report(number, share, best, note)) or self._asked
        return self.over


def _tried(
    data: Dataset, split: Split, search: Search, trial: Trial, settings: dict[str, Any], state: _Progress
) -> float:
    """NDCG@10 of the validation events after a fit with these settings."""
    trial.set_user_attr("settings", settings)
    number = trial.number

    def progress(share: float, note: str) -> bool:
        return state.tell(number, 0.9 * share, note)

    model = build(search.model, data.items, settings)
    model.fit(replace(lesson_of(data, split, search.seed, search.effort, progress), device=search.device))
    if state.over:
        raise _GivenUp
    judged = thinned(data.source, split.validation, VALIDATED)
    ranks = judge(model, data.source, judged).unmasked.ranks
    state.tell(number, 1.0, "ranking")
    return float(gains(ranks, 10)["ndcg"].mean())


def _study(data: Dataset, search: Search) -> optuna.Study:
    """The study of the file, new or of an earlier search of the same."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    search.study.parent.mkdir(parents=True, exist_ok=True)
    storage = JournalStorage(JournalFileBackend(str(search.study)))
    subject = {
        "model": search.model,
        "protocol": search.protocol,
        "events": len(data.source),
        "items": data.items,
        "effort": search.effort,
        "seed": search.seed,
    }
    try:
        study = optuna.create_study(storage=storage, study_name="recstream", direction="maximize", load_if_exists=True)
        earlier = study.user_attrs
    except (ValueError, KeyError, OSError) as error:
        what = f"{search.study} cannot be read as a study"
        raise RecstreamError(what, str(error), "Name another file with --study") from error
    differing = [name for name, value in subject.items() if earlier.get(name, value) != value]
    if differing:
        why = ", ".join(f"{name} was {earlier[name]}, not {subject[name]}" for name in differing)
        what = f"{search.study} is of another search"
        raise RecstreamError(what, why, "Name another file with --study")
    for name, value in subject.items():
        study.set_user_attr(name, value)
    # Another draw for every continuation: the same seed again would try the same settings again.
    drawn = len(study.trials)
    study.sampler = optuna.samplers.TPESampler(seed=search.seed + drawn, n_startup_trials=STARTUP)
    return study


def _finished(study: optuna.Study) -> list[FrozenTrial]:
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE]


def _described(trial: FrozenTrial) -> dict[str, Any]:
    return {"trial": trial.number, "settings": trial.user_attrs["settings"], GOAL: round(trial.value or 0.0, 6)}
