"""What a pass of learning is made of, what one is, and what came of it."""

from dataclasses import dataclass, field, replace
from typing import Any

from models.finetune import FineTuneSettings
from state.replay_sample import Sample


@dataclass(frozen=True, slots=True)
class LearnSettings:
    """What passes are made of.

    Attributes:
        recent: Most of the newest events of a pass, all learnt: four times as many as are new to the version that it
            starts from, so that each event is among them in four passes and a pass costs in proportion to what is new.
        reservoir: Most of the older events of an epoch, drawn at random: as many as newest ones, others in each.
        fine_least: Fewest events that growth is counted from.
        changed_least: The same since a change: until it has grown from there, the model is patched, not fitted anew.
        changed_epochs: Passes over what followed a change, while that fits into the recent window.
        changed_rate: Learning rate of those passes. What was true before must go: on 1,500 events after a change of all
            transitions 4 passes at 0.003 led to HR@10 .25, 9 from nothing to .40, 12 at 0.01 to .63.
        refit_growth: The model is fitted anew, from nothing, when the events seen (since a change, where there was one)
            have grown by this factor since the last time: a model begun on little data is not merely patched. 0 never.
        refit_most: Most events seen for such a fit; a longer history is fine-tuned only. A fit goes 9 times through
            everything: at 1,000 events a second the stream is 10,000 events further by then.
        first_most: Most events of a fit from nothing, the newest ones.
        keep_versions: Newest versions kept in the registry, beside the one that serves and a short way back.
        seed: Randomness of everything.
        fine: How candidates are made and judged.
    """

    recent: int = 10_000
    reservoir: int = 10_000
    fine_least: int = 1_000
    changed_least: int = 10_000
    changed_epochs: int = 12
    changed_rate: float = 0.01
    refit_growth: float = 2.0
    refit_most: int = 25_000
    first_most: int = 200_000
    keep_versions: int = 20
    seed: int = 0
    fine: FineTuneSettings = field(default_factory=FineTuneSettings)


@dataclass(frozen=True, slots=True)
class Job:
    """A pass that has begun.

    Attributes:
        id: Its name in the lineage of the version it makes.
        parent: The version it starts from and is judged against, None at a cold start.
        anew: Fit from nothing even though there is a parent.
        seed: Randomness of training.
        trigger: Why it began: ``events``, ``time``, ``drift``, ``cold-start``, ``once``.
        since: Events seen when the stream changed, 0 when it did not: only later ones are learnt.
        fitted_seen: Events seen when the line of versions was last fitted from nothing.
        sample: What it trains on.
        turn: Of the registry's pointer when it began: the version is promoted at this turn only, so that it is promoted
            once, and no more when somebody has rolled it back since. None: begun by a release that did not note it.
    """

    id: str
    parent: str | None
    anew: bool
    seed: int
    trigger: str
    since: int
    fitted_seen: int
    sample: Sample
    turn: int | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a pass came to.

    Attributes:
        version: The version it published, promoted or not; None when training diverged.
        promoted: Whether it serves now.
        metrics: As published beside it: loss, vocabulary, the gate's findings.
        lineage: As published beside it.
    """

    version: str | None
    promoted: bool
    metrics: dict[str, Any]
    lineage: dict[str, Any]


def fine_settings(settings: LearnSettings, job: Job) -> FineTuneSettings:
    """How a pass trains: harder on what followed a change."""
    fine = settings.fine
    if not job.since or job.anew or job.sample.seen - job.since > settings.recent:
        return fine
    # An average over earlier passes would hold on to what is true no more.
    training = replace(fine.training, learning_rate=settings.changed_rate, averaged=0.0)
    return replace(fine, epochs=settings.changed_epochs, training=training)
