"""One evaluation: fit each model, rank what came next in full, and put the figures side by side.

Letters: N events, K judged events, V item rows, B users.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from models.evaluation.cost import cost
from models.evaluation.dataset import Dataset
from models.evaluation.fitting import SEEDLESS, Fits, Teaching, lesson_of
from models.evaluation.intervals import intervals, segments
from models.evaluation.judging import Judgement, judge
from models.evaluation.metrics import Background, accuracy, beyond, rounded
from models.evaluation.prequential import prequential
from models.evaluation.ratings import rating_errors
from models.evaluation.splits import JUDGED, Protocol, Split, split_by, thinned
from models.evaluation.tasks import head_notes, mean_of, task_figures, teachable
from models.family.compression import KINDS, require_kind
from models.family.interface import Lesson, SequenceModel
from models.family.registry import MODELS
from state.errors import RecstreamError

Report = Callable[[str, float, str], object]
Keep = Callable[[str, int, Judgement], object]


@dataclass(frozen=True, slots=True)
class Settings:
    """How to evaluate.

    Attributes:
        protocol: How the log is split.
        seeds: Fits of every model that draws at random; figures are means over them.
        effort: Factor on training budgets.
        judged: Most judged events.
        first_seed: Seed of the first fit; the others count up from it.
        model_settings: Settings of models by name, where they are not the defaults.
        teaching: What models are taught besides the order of items; neural models are judged by its tasks, too.
        device: Where neural models are trained.
        clock: Seconds, for the time a model takes; the standard library's ``perf_counter`` outside of tests.
    """

    protocol: Protocol
    clock: Callable[[], float]
    seeds: int = 1
    effort: float = 1.0
    judged: int = JUDGED
    first_seed: int = 0
    model_settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    teaching: Teaching = Teaching()  # noqa: RUF009 (frozen)
    device: str = "cpu"


@dataclass(slots=True)
class Outcome:
    """What became of one model over all seeds."""

    judgements: list[Judgement] = field(default_factory=list)
    validations: list[Judgement] = field(default_factory=list)
    heads: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    model: SequenceModel | None = None


def evaluate(
    data: Dataset,
    names: list[str],
    settings: Settings,
    report: Report,
    keep: Keep | None = None,
    split: Split | None = None,
) -> dict[str, Any]:
    """Evaluate models by name on one data set.

    Args:
        data: From `models.evaluation.dataset.load`.
        names: Names of `models.family.registry.MODELS`; ``gru:int8`` is the fitted ``gru`` made smaller (`compress`).
        settings: How.
        report: Called with a model's name, the share of its work done, and a note.
        keep: Called with a model's name, a seed, and every event's ranks, for those who want more than means.
        split: Which events play which part; None splits by the protocol.

    Returns:
        ``{"models": {name: {"unmasked": {...}, "masked": {...}, "seconds": ...}}}`` with intervals, segments, cost and
        what was evaluated on beside them; everything is plain JSON. Ctrl-C ends it with the models that are done, and
        ``interrupted`` names the one that was not.

    Raises:
        RecstreamError: A model is unknown, or the log is too short for the protocol.
    """
    require_known(names)
    tasks = settings.teaching.tasks
    if tasks and settings.protocol == "prequential":
        what = "Heads beside the next item are not judged by test-then-learn"
        raise RecstreamError(what, "they are fitted, not learnt at once", "Use --protocol leave-one-out or time-split")
    notes = head_notes(tasks, data)
    teaching = replace(settings.teaching, tasks=teachable(tasks, data))
    if split is None:
        split, said = split_by(data, settings.protocol, settings.judged)
        notes += said
    background = Background.of(split.past(data.source), data.items)
    body: dict[str, Any] = {
        "data": {
            "name": data.name,
            "users": data.source.users,
            "items": data.items - 1,
            "events": len(data.source),
            "learnt_events": int(split.learnt.sum()),
            "judged_events": int(split.judged.sum()),
            "notes": [*data.notes, *notes],
        },
        "protocol": settings.protocol,
        "seeds": settings.seeds,
        "device": settings.device,
        "model_settings": {name: dict(given) for name, given in settings.model_settings.items()},
        "models": {},
    }
    fits = Fits(data, settings.model_settings, settings.clock, teaching, settings.protocol != "prequential")
    for name in dict.fromkeys(names):
        try:
            outcome = _run(data, name, split, settings, report, fits)
        except KeyboardInterrupt:
            if not body["models"]:
                raise
            body["interrupted"] = name
            break
        body["models"][name] = _figures(data, name, outcome, split, background, settings, fits)
        for number, judgement in enumerate(outcome.judgements):
            (keep or _forget)(name, settings.first_seed + number, judgement)
        report(name, 1.0, "")
    return body


def _forget(name: str, seed: int, judgement: Judgement) -> None:
    """Keep nothing but the means."""


def require_known(names: list[str]) -> None:
    """Check names of models.

    Raises:
        RecstreamError: One is unknown, or there is none.
    """
    parts = [name.partition(":") for name in names]
    unknown = [base for base, _, _ in parts if base not in MODELS]
    if unknown or not names:
        what = f"There is no model {unknown[0]!r}" if unknown else "No model was named"
        why = f"the models are {', '.join(MODELS)}; smaller ones end in :{', :'.join(KINDS)}"
        raise RecstreamError(what, why, "Choose among them: --models markov,gru,gru:int8")
    for base, mark, kind in parts:
        if mark:
            require_kind(base, kind)


def _run(data: Dataset, name: str, split: Split, settings: Settings, report: Report, fits: Fits) -> Outcome:
    outcome = Outcome()
    base = name.partition(":")[0]
    seeds = 1 if base in SEEDLESS else settings.seeds
    for number in range(seeds):
        seed, started, spent = settings.first_seed + number, settings.clock(), 0.0

        def progress(share: float, note: str, number: int = number) -> None:
            of = f"seed {number + 1} of {seeds}" if seeds > 1 else ""
            report(name, (number + share) / seeds, ", ".join(part for part in (of, note) if part))

        def fit(
            lesson: Lesson, begin: float, end: float, progress: Callable[[float, str], None] = progress
        ) -> SequenceModel:
            nonlocal spent

            def tell(share: float, note: str) -> None:
                progress(begin + (end - begin) * share, note)

            told = replace(lesson, device=settings.device, report=tell)
            before = settings.clock()
            model, seconds = fits.fit(name, told)
            # A fit that was shared counts for every model that has it.
            spent += max(seconds - (settings.clock() - before), 0.0)
            return model

        if settings.protocol == "prequential":
            online = bool(getattr(MODELS[base], "online", False))
            outcome.model, judgement = prequential(
                data, fit, online, seed, settings.effort, progress, judged=split.judged
            )
        else:
            lesson = lesson_of(data, split, seed, settings.effort, lambda share, note: None)
            outcome.model = fit(lesson, 0.0, 0.9)
            open_ = None if data.candidates is None else torch.from_numpy(data.candidates)
            judgement = judge(
                outcome.model, data.source, split.judged, lambda share: progress(0.9 + 0.1 * share, "ranking"), open_
            )
            if data.ratings is not None:
                read_by = thinned(data.source, split.validation, settings.judged)
                outcome.validations.append(judge(outcome.model, data.source, read_by))
            outcome.heads.append(task_figures(outcome.model, data, split))
        outcome.judgements.append(judgement)
        outcome.seconds += settings.clock() - started + spent
    return outcome


def _figures(
    data: Dataset,
    name: str,
    outcome: Outcome,
    split: Split,
    background: Background,
    settings: Settings,
    fits: Fits,
) -> dict[str, Any]:
    assert outcome.model is not None
    events = outcome.judgements[0].events
    users = np.searchsorted(data.source.starts, events, side="right") - 1
    competing = data.items - 1 if data.candidates is None else int(data.candidates.sum())
    figures: dict[str, Any] = {}
    spread: dict[str, Any] = {}
    between: dict[str, Any] = {}
    parts: dict[str, Any] = {}
    for side in ("unmasked", "masked"):
        rankings = [getattr(judgement, side) for judgement in outcome.judgements]
        found = [{**accuracy(ranking.ranks, competing), **beyond(ranking, users, background)} for ranking in rankings]
        figures[side] = rounded({key: float(np.mean([one[key] for one in found])) for key in found[0]})
        ranks = np.concatenate([ranking.ranks for ranking in rankings])
        between[side] = intervals(ranks, np.tile(users, len(rankings)))
        parts[side] = segments(ranks, np.tile(events, len(rankings)), data.source, background)
        if len(found) > 1:
            spread[side] = {
                metric: [round(one[metric], 6) for one in found]
                for metric in ("hr@10", "ndcg@10", "mrr@10")
                if metric in found[0]
            }
    figures["seconds"] = round(outcome.seconds / len(outcome.judgements), 2)
    figures["intervals"], figures["segments"] = between, parts
    if spread:
        figures["by_seed"] = spread
    if data.ratings is not None and outcome.validations:
        errors = [
            rating_errors(data.ratings, data.source, split, validation, judgement)
            for validation, judgement in zip(outcome.validations, outcome.judgements, strict=True)
        ]
        if all(errors):
            figures["ratings"] = {key: round(float(np.mean([one[key] for one in errors])), 6) for key in errors[0]}
    heads = mean_of(outcome.heads)
    if heads:
        figures["heads"] = heads
    figures["cost"] = {**cost(outcome.model, data, settings.clock), "model_bytes": fits.size(name, outcome.model)}
    source = getattr(outcome.model, "text_source", None)
    if source is not None:
        figures["text"] = source
    return figures
