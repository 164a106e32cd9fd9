"""Fits of one evaluation: what a model is given to learn from, and fits that several models share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from models.evaluation.dataset import Dataset
from models.evaluation.splits import Split, subset
from models.family.compression import bytes_of, compress
from models.family.ensemble import Ensemble
from models.family.interface import Lesson, SequenceModel, Tasks
from models.family.neighbours import SessionKnn
from models.family.registry import build
from models.family.sessions import InSessions

# Nothing in these is drawn at random.
SEEDLESS: Final = ("popularity", "context-popularity", "markov", "skip-markov", "session-knn")


def lesson_of(
    data: Dataset, split: Split, seed: int, effort: float, report: Callable[[float, str], bool | None]
) -> Lesson:
    """What a model is fitted to under a split: the learnt events, with the validation events to choose by."""
    keep = split.learnt | split.validation
    return Lesson(
        past=split.past(data.source),
        source=subset(data.source, keep),
        judged=split.validation[keep],
        catalogue=data.catalogue,
        seed=seed,
        effort=effort,
        timed=data.timed,
        ratings=None if data.ratings is None else data.ratings[split.learnt],
        report=report,
    )


@dataclass(frozen=True, slots=True)
class Teaching:
    """What models are taught besides the order of items.

    Attributes:
        tasks: What neural models learn beside the next item.
        session_gap: Seconds of a break that parts sessions, 0 for none: sessions are then session-knn's units, and
            neural models are told when one opens.
        anew: Every model starts anew with each session.
        augment: How neural models' training histories are varied.
    """

    tasks: Tasks = Tasks()  # noqa: RUF009 (frozen)
    session_gap: float = 0.0
    anew: bool = False
    augment: tuple[str, ...] = ()

    def model(self, name: str, model: SequenceModel) -> SequenceModel:
        """The model, in sessions where it is to start anew with each."""
        parted = self.session_gap and (self.anew or name == SessionKnn.name)
        return InSessions(model, self.session_gap) if parted else model

    def lesson(self, lesson: Lesson) -> Lesson:
        """The lesson with all that."""
        gap = 0.0 if self.anew else self.session_gap
        return replace(lesson, tasks=self.tasks, session_gap=gap, augment=self.augment)


class Fits:
    """Fits models by name. A smaller copy (``gru:int8``) and an ensemble use what was fitted to the same events before.

    Args:
        data: What is evaluated on.
        settings: Settings of models by name, where they are not the defaults.
        clock: Seconds.
        teaching: What is taught besides.
        shared: Whether every lesson of a seed is the same, so that fits can be shared.
    """

    def __init__(
        self,
        data: Dataset,
        settings: Mapping[str, Mapping[str, Any]],
        clock: Callable[[], float],
        teaching: Teaching,
        shared: bool,
    ) -> None:
        self._teaching = teaching
        self._data, self._settings, self._clock, self._shared = data, settings, clock, shared
        self._fitted: dict[tuple[str, int], tuple[SequenceModel, float]] = {}
        self._stored: dict[str, int] = {}  # bytes of smaller copies, which compute with floats again

    def fit(self, name: str, lesson: Lesson) -> tuple[SequenceModel, float]:
        """A model fitted to a lesson, and the seconds that took, those of shared fits included."""
        base, _, kind = name.partition(":")
        found = self._known(base, lesson.seed) if kind else None
        if found is None:
            found = self._new(base, lesson)
            if self._shared:
                self._fitted[base, lesson.seed] = found
        model, seconds = found
        if not kind:
            return model, seconds
        small = compress(model, kind)  # type: ignore[arg-type]
        self._stored[name] = small.size
        return small.model, seconds

    def size(self, name: str, model: SequenceModel) -> int:
        """Bytes of a model that was fitted here, as it is stored."""
        return self._stored[name] if name in self._stored else bytes_of(model)

    def _new(self, base: str, lesson: Lesson) -> tuple[SequenceModel, float]:
        given = self._settings.get(base, {})
        if base == Ensemble.name:
            members = {name: self._settings[name] for name in Ensemble.known() if name in self._settings}
            given = {"member_settings": members, **given}
        model = build(base, self._data.items, given)
        seconds = 0.0
        if isinstance(model, Ensemble):
            names = [member.name for member in model.members]
            known = {name: found for name in names if (found := self._known(name, lesson.seed))}
            # Members of an ensemble see whole histories; where sessions part them, the ensemble as a whole is parted.
            known = {name: found for name, found in known.items() if not isinstance(found[0], InSessions)}
            model.adopt({name: member for name, (member, _) in known.items()})
            seconds = sum(spent for _, spent in known.values())
        begun = self._clock()
        model = self._teaching.model(base, model)
        model.fit(self._teaching.lesson(lesson))
        return model, seconds + self._clock() - begun

    def _known(self, base: str, seed: int) -> tuple[SequenceModel, float] | None:
        if base in SEEDLESS:
            return next((found for (name, _), found in self._fitted.items() if name == base), None)
        return self._fitted.get((base, seed))
