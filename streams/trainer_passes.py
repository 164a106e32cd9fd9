"""Passes of the trainer: one at a time in a thread of their own, then the word about what came of them.

What a pass does on disk, and why it may be killed at any point, is told in `models.learner`.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from models.finetune import Step
from models.job import Job, Outcome
from models.learner import Learner
from state.errors import RecstreamError, StateError
from state.replay_buffer import ReplayBuffer
from streams.announce import Announcement, announce
from streams.console import progress_bar, screen
from streams.settings import Settings
from streams.topics import MODEL_VERSIONS
from streams.trainer_metrics import Scalars, TrainerMetrics

_TRIES_SECONDS: Final = (1.0, 2.0, 4.0, 8.0, 16.0)  # waits between tries to announce
_SCALAR_SECONDS: Final = 0.5  # between two points of the loss on TensorBoard

log = logging.getLogger(__name__)


class Passes:
    """Runs passes and announces the versions that they promote.

    Args:
        settings: Where to announce.
        learner: Makes versions.
        metrics: Where to count.
        directory: Where TensorBoard's files go.

    Attributes:
        begun: Passes begun or gone on with since the start.
        error: Why the newest pass could not begin or came to nothing, None when it could and did not.
        last: What came of the newest pass that was finished, None before there is one.
    """

    def __init__(self, settings: Settings, learner: Learner, metrics: TrainerMetrics, directory: Path) -> None:
        self._settings, self._learner, self._metrics = settings, learner, metrics
        self._scalars = Scalars(directory / "tensorboard")
        self._thread = ThreadPoolExecutor(1, "training")
        self._task: asyncio.Task[Outcome | None] | None = None
        self._stopping = self._idle = False
        self.error: Exception | None = None
        self.begun = 0
        self.last: Outcome | None = None

    @property
    def running(self) -> bool:
        """Whether a pass is under way, or its outcome was not collected yet."""
        return self._task is not None

    async def resume(self) -> bool:
        """Go on with the pass that was interrupted. Returns whether there was one."""
        try:
            job = await asyncio.to_thread(self._learner.pending)
        except StateError as error:
            log.error("No pass is gone on with. %s", error)
            self._count_failure(error)
            return False
        if job is None:
            return False
        log.info("Going on with the pass that was interrupted (%s, %d events)", job.trigger, len(job.sample))
        self._start(job)
        return True

    async def begin(self, buffer: ReplayBuffer, trigger: str, changed_at: int | None = None) -> bool:
        """Begin a pass. Returns whether there was enough to learn."""
        try:
            serving = await asyncio.to_thread(self._learner.serving)  # storage may be slow
            job = self._learner.draw(buffer, trigger, changed_at, serving)
        except RecstreamError as error:
            log.error("No pass could begin. %s", error)
            self._count_failure(error)
            return False
        self.error = None
        if job is not None:
            self._start(job, new=True)
        elif not self._idle:
            self._idle = True
            log.info("No pass begins (%s): too few events are new to the serving version", trigger)
        return job is not None

    def collect(self) -> Outcome | None:
        """What came of the pass that has ended meanwhile, once; None when none has, or it came to nothing."""
        if self._task is None or not self._task.done():
            return None
        task, self._task = self._task, None
        return task.result()

    async def finish(self) -> Outcome | None:
        """Wait for the pass under way."""
        if self._task is not None:
            await asyncio.wait([self._task])
        return self.collect()

    async def stop(self) -> None:
        """Interrupt the pass at its next batch, its place on disk; a version being judged is published yet."""
        self._stopping = True
        try:
            await self.finish()
        finally:
            self._thread.shutdown()
            self._scalars.close()

    def _count_failure(self, error: Exception) -> None:
        self.error = error
        self._metrics.versions.labels("failed").inc()

    def _start(self, job: Job, new: bool = False) -> None:
        """Run a pass in its thread, which writes a new one to disk first: events to come do not wait for the disk."""
        self.begun += 1
        self._idle = False
        self._metrics.passes.labels(job.trigger).inc()
        self._task = asyncio.create_task(self._pass(job, new))

    async def _pass(self, job: Job, new: bool) -> Outcome | None:
        started = time.monotonic()
        log.info("Pass begins: %s, %d events from %s", job.trigger, len(job.sample), job.parent or "nothing")
        self._metrics.training.set(1)
        self._metrics.progress.set(0)
        try:
            outcome = await asyncio.get_running_loop().run_in_executor(self._thread, self._work, job, new)
            if outcome is None:
                log.info("The pass is interrupted; the next start goes on with it")
                return None
            await self._tell(job, outcome, time.monotonic() - started)
        except Exception as error:  # what nobody had foreseen too: on disk, the pass would fail again at each start
            foreseen = isinstance(error, RecstreamError)
            log.error("The pass failed. %s", error, exc_info=None if foreseen else error)
            self._count_failure(error)
            await asyncio.to_thread(self._learner.finish)
            return None
        finally:
            self._metrics.training.set(0)
        self.last = outcome
        await self._tidy()
        return outcome

    async def _tidy(self) -> None:
        """Nothing depends on it: the pass is over, and the next one tidies too."""
        try:
            for gone in await asyncio.to_thread(self._learner.tidy):
                log.info("Deleted %s", gone)
        except Exception as error:
            log.warning("Older versions were not deleted. %s", error)

    def _work(self, job: Job, new: bool) -> Outcome | None:
        """In the training thread."""
        if new:
            self._learner.write(job)
        with ExitStack() as stack:
            show: Callable[[Step], None] | None = None
            if screen().is_terminal:
                bar = stack.enter_context(progress_bar(f"pass ({job.trigger})", total=1.0))

                def show(step: Step) -> None:
                    bar.to(step.done, note=f"epoch {step.epoch}/{step.epochs}, loss {step.loss:.3f}")

            progress = self._progress(job, show)
            return self._learner.run(job, progress, int(time.time() * 1000))

    def _progress(self, job: Job, show: Callable[[Step], None] | None) -> Callable[[Step], bool]:
        started, last = time.monotonic(), 0.0

        def progress(step: Step) -> bool:
            nonlocal last
            now = time.monotonic()
            self._metrics.progress.set(step.done)
            self._metrics.loss.set(step.loss)
            if step.learnt:
                self._metrics.samples.set(step.learnt / max(now - started, 1e-9))
            if show is not None:
                show(step)
            if now - last > _SCALAR_SECONDS:
                last = now
                self._scalars.step(job.sample.seen, step)
            return self._stopping

        return progress

    async def _tell(self, job: Job, outcome: Outcome, seconds: float) -> None:
        """Everybody hears of a version before its pass leaves the disk: a kill in between repeats the word."""
        reasons = "; ".join(outcome.metrics["gate"]["reasons"])
        log.info("%s %s in %.1f s: %s", outcome.version, "serves" if outcome.promoted else "rejected", seconds, reasons)
        if outcome.promoted and outcome.version is not None:
            await self._announce(outcome, outcome.version)
        await asyncio.to_thread(self._learner.finish)
        self._metrics.finished(outcome, seconds)
        self._scalars.outcome(job.sample.seen, outcome)

    async def _announce(self, outcome: Outcome, version: str) -> None:
        """Workers poll the registry too, so a broker that is away delays nothing but the word."""
        announcement = Announcement(version, outcome.lineage.get("parent"), outcome.metrics, int(time.time() * 1000))
        for wait in (*_TRIES_SECONDS, None):
            try:
                await announce(self._settings, announcement)
                return
            except RecstreamError as error:
                if wait is None or self._stopping:
                    log.error("%s was not announced on %s. %s", version, MODEL_VERSIONS, error)
                    return
                await asyncio.sleep(wait)


def summary_of(outcome: Outcome | None) -> dict[str, Any]:
    """What `recstream trainer --json` prints: `version`, `promoted`, `reasons`, `metrics` of the newest pass."""
    if outcome is None:
        return {"version": None, "promoted": False, "reasons": ["no pass was finished"], "metrics": {}}
    reasons = outcome.metrics["gate"]["reasons"]
    return {
        "version": outcome.version,
        "promoted": outcome.promoted,
        "reasons": reasons,
        "metrics": outcome.metrics,
    }
