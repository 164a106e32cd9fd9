"""A log through the stream's own code: recommenders, users' states and the learning path, micro-batch by micro-batch.

Letters: N events of the log, E events of a micro-batch, K = 10 recommendations.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.learning import LearningPath
from benchmarks.quality.log import Log
from benchmarks.quality.neural import NeuralTest
from benchmarks.quality.scores import K
from models.fusion import Fusion
from models.recommend import Recommender
from models.serving import ServingModel
from state.arena import Arena
from state.events import EventBatch
from state.items import ItemIndex
from state.store import UserStore
from streams.console import Bar
from streams.settings import Settings


class _Worker:
    """A recommender and its users."""

    def __init__(self, settings: Settings, fusion: Fusion | None) -> None:
        self.recommender = Recommender(
            ItemIndex(),
            K,
            exclude=settings.exclude,
            half_life_ms=settings.popularity_half_life_hours * 3_600_000,
            fusion=fusion,
        )
        self.recommender.test_all = True
        self.store = UserStore(Arena(0, K), self.recommender.items)


@dataclass(slots=True)
class Streamed:
    """Ranks of every event, by method, and which version was serving.

    Attributes:
        ranks: Ranks (N,) from 1, `inf` for a miss, of each method.
        versions: Events each version served.
        frozen: The version that `frozen` is, None when there was none yet.
    """

    ranks: dict[str, NDArray[np.float64]]
    versions: dict[str, int] = field(default_factory=dict)
    frozen: str | None = None


def stream(log: Log, settings: Settings, learning: LearningPath, batch: int, bar: Bar) -> Streamed:
    """Run a log through the stream, every event ranked right before it is learnt.

    Args:
        log: The log.
        settings: The product's settings.
        learning: The trainer's parts, with nothing learnt yet.
        batch: Events of a micro-batch.
        bar: Told how far it is.

    Returns:
        Ranks of `fused`, all experts and the serving version, and `served`, the place in the list that the user was
        shown last; `fine_tuned`, that version alone; `frozen`, the version that served at the half of the log alone,
        never replaced; `without_model`, all experts but the version; `transitions`, the transition memory alone.
    """
    fused, plain, memory = _Worker(settings, Fusion()), _Worker(settings, Fusion()), _Worker(settings, _memory_alone())
    frozen = _Worker(settings, None)
    fine_tuned, frozen_test = (NeuralTest(worker.recommender, worker.store) for worker in (fused, frozen))
    methods = ("transitions", "without_model", "frozen", "fine_tuned", "served", "fused")
    result = Streamed({method: np.full(len(log), np.inf) for method in methods})
    serving: ServingModel | None = None
    for start in range(0, len(log), batch):
        events = log.batch(start, start + batch)
        at = slice(start, start + len(events))
        seen = log.seen[at]
        first = log.items[at] == seen
        if start >= log.half and result.frozen is None and serving is not None:
            frozen.recommender.swap(serving)
            result.frozen = serving.name
        ranks = result.ranks
        ranks["fine_tuned"][at] = fine_tuned.ranks(events, seen, first)
        ranks["frozen"][at] = frozen_test.ranks(events, seen, first)
        ranks["fused"][at], ranks["served"][at] = _advance(fused, events)
        ranks["without_model"][at], _ = _advance(plain, events)
        ranks["transitions"][at], _ = _advance(memory, events)
        frozen.recommender.advance(frozen.store, events)
        name = fused.recommender.model_version
        result.versions[name] = result.versions.get(name, 0) + len(events)
        done = start + len(events)

        def note(text: str, done: int = done) -> None:
            bar.to(done, note=text)

        new = learning.take(events, note)
        if new is not None:
            serving = new
            fused.recommender.swap(new)
        bar.to(done, note=f"{len(learning.passes)} passes, {name}")
    return result


def _memory_alone() -> Fusion:
    """A fusion that ranks by the transition memory and its popularity back-off and never learns to trust anything else.

    Its weights begin that way.
    """
    fusion = Fusion()
    fusion.weights.freeze()
    return fusion


def _advance(worker: _Worker, events: EventBatch) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ranks (E,) before learning, and places (E,) in the lists shown before; `inf` for a miss."""
    done = worker.recommender.advance(worker.store, events)
    shown = done.ranks.astype(np.float64)
    return done.tested.astype(np.float64), np.where(shown > 0, shown, np.inf)
