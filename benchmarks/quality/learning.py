"""The trainer's parts in this process: buffer, cadence, live test, drift watch, learner, registry.

They are put together as `streams.trainer` does it, with two differences that a replay needs: time is told by a rate
of events, and a pass, which runs here at once, becomes known only after as many more events as come while it trains:
its CPU seconds, as measured, at that rate.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from models.cadence import Cadence, CadenceSettings
from models.drift import DriftWatch
from models.finetune import Step
from models.job import Outcome
from models.learner import Learner
from models.live_test import LiveTest
from models.registry import Registry
from models.serving import ServingModel
from state.errors import RecstreamError
from state.events import TOPICS, EventBatch
from state.replay_buffer import ReplayBuffer, ReplaySettings
from streams.settings import Settings
from streams.trainer import learn_settings

_TEST_LEAST: Final = 100  # as in the trainer: fewer wait for company
_TEST_MOST: Final = 1_000


@dataclass(frozen=True, slots=True)
class PassDone:
    """What a pass came to.

    Attributes:
        seen: Events seen when it began.
        serves_from: Events seen when its version was taken up, None when it was not promoted or the log ended before.
        trigger: Why it began.
        origin: First fit, fitted anew or fine-tuned.
        events: Events it learnt from, older ones not in each epoch.
        cpu_seconds: What training, judging and publishing took of one core.
        candidate: Its NDCG@10 at the gate.
        rival: NDCG@10 of what it was compared with.
        version: Its name.
        reasons: The gate's.
    """

    seen: int
    serves_from: int | None
    trigger: str
    origin: str
    events: int
    cpu_seconds: float
    candidate: float
    rival: float
    version: str | None
    reasons: tuple[str, ...]


class LearningPath:
    """A trainer that is handed its events.

    Args:
        settings: The product's settings.
        directory: Where registry, buffer and passes go.
        delay: Events that come while a pass trains: its version serves from then on. None: as many as come in the CPU
            seconds that it took, which makes figures depend on the machine as they do in the running system.
        rate: Events per second, which tells the time.
        share: Of a core that training gets.
    """

    def __init__(self, settings: Settings, directory: Path, delay: int | None, rate: float, share: float = 1.0) -> None:
        self._delay, self._rate, self._share = delay, rate, share
        self._registry = Registry(directory / "registry")
        replay = ReplaySettings(capacity=settings.buffer_events, seed=settings.trainer_seed)
        self._buffer = ReplayBuffer(directory / "trainer", replay)
        self._learner = Learner(self._registry, directory / "trainer", learn_settings(settings))
        self.cadence = CadenceSettings(
            every_events=settings.train_every_events,
            every_seconds=settings.train_every_minutes * 60,
            cold_start_events=settings.cold_start_events,
        )
        self._cadence = Cadence(self.cadence, 0, 0.0)
        self._drift = DriftWatch()
        self._live: LiveTest | None = None
        self._tested = 0
        self._waiting: tuple[int, PassDone, Outcome] | None = None
        self.passes: list[PassDone] = []
        self.alarms: list[int] = []
        self.failed: list[str] = []

    def close(self) -> None:
        """Release the buffer, and list the pass whose version the log was too short for."""
        if self._waiting is not None:
            self.passes.append(self._waiting[1])
            self._waiting = None
        self._buffer.close()

    def take(self, batch: EventBatch, note: Callable[[str], None]) -> ServingModel | None:
        """Take in what the workers have just served.

        Args:
            batch: The events.
            note: Told how far a pass is.

        Returns:
            The version to serve from the next batch on, None while it stays as it is.
        """
        for kind, topic in enumerate(TOPICS):  # topic by topic, as a consumer reads them
            chosen = np.flatnonzero(batch.kinds == kind)
            if len(chosen):
                at = chosen.tolist()
                users, items = [batch.users[i] for i in at], [batch.items[i] for i in at]
                kinds, times = batch.kinds[chosen], batch.times_ms[chosen]
                self._buffer.append(topic, 0, users, items, kinds, times, batch.offsets[chosen])
        serving = self._publish()
        self._test()
        self._consider(note)
        return serving

    def _publish(self) -> ServingModel | None:
        """A pass's version, once the events that came while it trained are behind us."""
        if self._waiting is None or self._buffer.seen < self._waiting[0]:
            return None
        _, done, outcome = self._waiting
        self._waiting = None
        if not outcome.promoted or outcome.version is None:
            self.passes.append(done)
            self._cadence.rejected()
            return None
        version = self._registry.load(outcome.version)
        self.passes.append(PassDone(**{**asdict(done), "serves_from": self._buffer.seen}))
        self._live = LiveTest(version)
        return ServingModel.from_version(version)

    def _test(self) -> None:
        new = self._buffer.seen - self._tested
        if self._live is None or new < _TEST_LEAST:
            return
        self._tested = self._buffer.seen
        hits, users = self._live.hits(self._buffer.sample(min(new, _TEST_MOST), 0, 0))
        alarm = self._drift.watch(hits, users)
        self._cadence.observe(self._drift.rate, self._drift.width)
        if alarm is not None:
            self.alarms.append(self._buffer.seen)
            self._cadence.alarm(alarm, self._buffer.seen)

    def _consider(self, note: Callable[[str], None]) -> None:
        seen, now = self._buffer.seen, self._buffer.seen / self._rate
        trigger = None if self._waiting else self._cadence.due(seen, now, self._live is not None)
        if trigger is None:
            return
        started = time.process_time()
        job = self._learner.begin(self._buffer, trigger, self._cadence.changed_at)
        self._cadence.began(seen, now)
        if job is None:
            return
        number = len(self.passes) + 1

        def progress(step: Step) -> None:
            note(f"pass {number} ({trigger}), epoch {step.epoch}/{step.epochs}")

        try:
            outcome = self._learner.run(job, progress)
        except RecstreamError as error:  # too little to learn yet: the next pass has more
            self.failed.append(f"{error.what}: {error.why}")
            outcome = None
        self._learner.finish()
        if outcome is None:
            return
        self._learner.tidy()
        verdict: dict[str, Any] = outcome.metrics["gate"]
        cpu_seconds = time.process_time() - started
        done = PassDone(
            seen=seen,
            serves_from=None,
            trigger=trigger,
            origin=str(outcome.lineage["origin"]),
            events=int(outcome.lineage["events"]),
            cpu_seconds=round(cpu_seconds, 2),
            candidate=verdict["candidate"]["ndcg@10"],
            rival=verdict["rival_quality"]["ndcg@10"],
            version=outcome.version,
            reasons=tuple(verdict["reasons"]),
        )
        delay = math.ceil(cpu_seconds / self._share * self._rate) if self._delay is None else self._delay
        self._waiting = (seen + delay, done, outcome)
