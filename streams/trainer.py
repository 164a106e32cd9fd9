"""The trainer: reads what the workers read, and publishes a better model when there is one.

    input topics -> replay buffer -> trigger -> pass in a thread: train, judge, publish -> `model-versions`

Reading never waits for training. Everything that matters is on disk before it counts: events with their offsets, the
pass and its checkpoint, the version; a trainer that is killed at any point goes on where it was.
"""

import asyncio
import importlib.metadata
import logging
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from models.cadence import Cadence, CadenceSettings
from models.drift import DriftWatch
from models.finetune import FineTuneSettings, Step
from models.learner import Job, Learner, LearnSettings, Outcome
from models.live_test import LiveTest
from models.registry import Registry
from models.vocabulary import VocabularySettings
from state.errors import RecstreamError
from state.replay_buffer import ReplayBuffer, ReplaySettings
from state.replay_sample import Sample
from streams.announce import Announcement, announce
from streams.console import progress_bar, screen
from streams.event_feed import EventFeed
from streams.kafka import broker_errors
from streams.settings import Settings, SettingsError
from streams.topics import MODEL_VERSIONS, require_topics
from streams.trainer_metrics import Scalars, TrainerHttp, TrainerMetrics

_COMMIT_SECONDS: Final = 1.0
_LOOK_SECONDS: Final = 2.0  # between two looks at the registry's pointer
_TEST_EVENTS: Final = 1_000  # most events of one live test: more is a sample of a busy stream
_TEST_LEAST: Final = 100  # fewer wait for company, but not for longer than
_TEST_SECONDS: Final = 5.0
_TRIES_SECONDS: Final = (1.0, 2.0, 4.0, 8.0, 16.0)  # waits between tries to announce

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainerOptions:
    """What `recstream trainer` was asked for.

    Attributes:
        device: ``auto``, ``cpu`` or ``cuda``.
        once: Read to the end, train once, stop.
    """

    device: str = "auto"
    once: bool = False


def run_trainer(settings: Settings, options: TrainerOptions) -> dict[str, Any]:
    """Run the trainer until a signal, or through one pass.

    Returns:
        What came of the newest pass: `version`, `promoted`, `reasons`, `metrics`; of none when there was none.

    Raises:
        RecstreamError: the broker, a topic, the registry, the disk or the device is not as it must be.
    """
    device = choose_device(options.device)
    require_topics(settings)
    if device == "cpu":
        torch.set_num_threads(settings.trainer_threads)
    directory = settings.state_dir / settings.app_id / "trainer"
    registry = Registry(settings.registry)
    registry.versions()
    replay = ReplaySettings(capacity=settings.buffer_events, seed=settings.trainer_seed)
    with ReplayBuffer(directory, replay) as buffer:
        if buffer.truncated_bytes:
            log.warning("Cut %d bytes of an unfinished write off the replay buffer", buffer.truncated_bytes)
        origin = {"code": importlib.metadata.version("recstream"), "device": device}
        learner = Learner(registry, directory, learn_settings(settings), device, origin)
        return asyncio.run(Trainer(settings, options, buffer, learner, directory).run())


def choose_device(wanted: str) -> str:
    """`cuda` where it was asked for or is there, else `cpu`.

    Raises:
        SettingsError: CUDA was asked for and is not there.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise SettingsError(
            what="there is no CUDA device",
            why=f"torch {torch.__version__} sees none",
            fix="use --device cpu, or install a CUDA build of torch on a machine with a GPU",
        )
    return "cuda" if wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available()) else "cpu"


def learn_settings(settings: Settings) -> LearnSettings:
    """The learner's settings out of the operator's."""
    return LearnSettings(
        recent=settings.train_recent_events,
        reservoir=settings.train_reservoir_events,
        keep_versions=settings.keep_versions,
        seed=settings.trainer_seed,
        fine=FineTuneSettings(
            epochs=settings.train_epochs,
            vocabulary=VocabularySettings(idle_days=settings.item_idle_days, max_items=settings.max_items),
        ),
    )


class Trainer:
    """One trainer process.

    Args:
        settings: All settings.
        options: What the command was asked for.
        buffer: The replay buffer.
        learner: Makes versions.
        directory: Where TensorBoard's files go.
    """

    def __init__(
        self, settings: Settings, options: TrainerOptions, buffer: ReplayBuffer, learner: Learner, directory: Path
    ) -> None:
        self._settings, self._options, self._buffer, self._learner = settings, options, buffer, learner
        self.metrics = TrainerMetrics()
        self._scalars = Scalars(directory / "tensorboard")
        self._cadence = Cadence(
            CadenceSettings(
                every_events=settings.train_every_events,
                every_seconds=settings.train_every_minutes * 60,
                cold_start_events=settings.cold_start_events,
            ),
            self._seen_by_serving(),
            time.monotonic(),
        )
        self._drift = DriftWatch()
        self._live: LiveTest | None = None
        self._tested = buffer.seen  # events seen at the last live test
        self._tested_at = self._looked_at = self._committed_at = time.monotonic()
        self._serving: str | None = None
        self._stopping = False
        self._last: Outcome | None = None
        self._training: asyncio.Task[None] | None = None
        self._testing: asyncio.Task[None] | None = None
        self._trainer_thread = ThreadPoolExecutor(1, "training")
        self._test_thread = ThreadPoolExecutor(1, "live-test")

    async def run(self) -> dict[str, Any]:
        """Read and train until stopped."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        feed = EventFeed(self._settings, self._buffer)
        http = TrainerHttp(self._settings.http_host, self._settings.trainer_http_port, self.metrics, lambda: feed.ready)
        await http.start()
        try:
            with broker_errors(self._settings, "read events"):
                await feed.start()
                try:
                    await self._loop(feed)
                finally:
                    self._stopping = True
                    for task in (self._training, self._testing):
                        if task is not None:
                            await task
                    await feed.commit()
                    await feed.stop()
        finally:
            self._trainer_thread.shutdown()
            self._test_thread.shutdown()
            self._scalars.close()
            await http.stop()
        return self._summary()

    def _stop(self) -> None:
        log.info("Stopping")
        self._stopping = True

    async def _loop(self, feed: EventFeed) -> None:
        await self._look()
        if (job := await asyncio.to_thread(self._learner.pending)) is not None:
            log.info("Going on with the pass that was interrupted (%s, %d events)", job.trigger, len(job.sample))
            self._start(job)
        while not self._stopping:
            taken = await feed.take(wait_seconds=0.2)
            self.metrics.events.inc(taken.events)
            self.metrics.invalid.inc(taken.invalid)
            now = time.monotonic()
            if now - self._committed_at >= _COMMIT_SECONDS:
                await self._housekeeping(feed, now)
            if self._options.once:
                if self._training is None and await feed.caught_up():
                    await feed.commit()
                    await self._once()
                    return
            else:
                self._test(now)
                self._consider(now)
            if self._training is not None and self._training.done():
                self._training.result()
                self._training = None
            if self._testing is not None and self._testing.done():
                self._testing.result()
                self._testing = None

    async def _housekeeping(self, feed: EventFeed, now: float) -> None:
        await feed.commit()
        self._committed_at = now
        self.metrics.lag.set(await feed.lag())
        self.metrics.buffer_events.set(len(self._buffer))
        self.metrics.buffer_bytes.set(self._buffer.nbytes)
        self.metrics.buffer_items.set(self._buffer.items)
        if now - self._looked_at >= _LOOK_SECONDS:
            await self._look()

    async def _look(self) -> None:
        """Follow the registry's pointer: an operator may have rolled back."""
        self._looked_at = time.monotonic()
        registry = self._learner.registry
        try:
            name = await asyncio.to_thread(registry.current)
            if name == self._serving:
                return
            self._live = None if name is None else LiveTest(await asyncio.to_thread(registry.load, name))
        except RecstreamError as error:
            log.error("%s", error)
            return
        self._serving = name
        if name is not None:
            self.metrics.model.info({"version": name})
            log.info("%s serves", name)

    def _consider(self, now: float) -> None:
        """Begin a pass when one is due and none runs."""
        if self._training is not None:
            return
        seen = self._buffer.seen
        trigger = self._cadence.due(seen, now, self._serving is not None)
        if trigger is None:
            return
        self._begin(trigger, self._cadence.changed_at)
        self._cadence.began(seen, now)

    def _begin(self, trigger: str, changed_at: int | None = None) -> None:
        try:
            job = self._learner.begin(self._buffer, trigger, changed_at)
        except RecstreamError as error:
            log.error("No pass could begin. %s", error)
            self.metrics.versions.labels("failed").inc()
            return
        if job is not None:
            self._start(job)

    def _start(self, job: Job) -> None:
        self.metrics.passes.labels(job.trigger).inc()
        self._training = asyncio.create_task(self._pass(job))

    async def _once(self) -> None:
        self._begin("once")
        if self._training is None:
            log.warning("Nothing to learn: too few events are new to the serving version")
            return
        while not self._training.done():
            await asyncio.sleep(0.1)
        self._training.result()

    async def _pass(self, job: Job) -> None:
        """One pass in the training thread, then its announcement."""
        loop = asyncio.get_running_loop()
        started = time.monotonic()
        log.info("Pass begins: %s, %d events from %s", job.trigger, len(job.sample), job.parent or "nothing")
        self.metrics.training.set(1)
        try:
            outcome = await loop.run_in_executor(self._trainer_thread, self._work, job)
        except RecstreamError as error:
            log.error("The pass failed. %s", error)
            self.metrics.versions.labels("failed").inc()
            self._learner.finish()
            return
        finally:
            self.metrics.training.set(0)
        if outcome is None:
            log.info("The pass is interrupted; the next start goes on with it")
            return
        seconds = time.monotonic() - started
        self.metrics.finished(outcome, seconds)
        self._scalars.outcome(job.sample.seen, outcome)
        self._last = outcome
        if not outcome.promoted:
            self._cadence.rejected()
        reasons = "; ".join(outcome.metrics["gate"]["reasons"])
        log.info("%s %s in %.1f s: %s", outcome.version, "serves" if outcome.promoted else "rejected", seconds, reasons)
        if outcome.promoted and outcome.version is not None:
            await self._announce(outcome, outcome.version)
        await asyncio.to_thread(self._learner.finish)
        for gone in await asyncio.to_thread(self._learner.tidy):
            log.info("Deleted %s", gone)
        await self._look()

    def _work(self, job: Job) -> Outcome | None:
        """In the training thread."""
        started, last = time.monotonic(), 0.0
        with ExitStack() as stack:
            bar = (
                stack.enter_context(progress_bar(f"pass ({job.trigger})", total=1.0)) if screen().is_terminal else None
            )

            def progress(step: Step) -> bool:
                nonlocal last
                now = time.monotonic()
                self.metrics.progress.set(step.done)
                self.metrics.loss.set(step.loss)
                if step.learnt:
                    self.metrics.samples.set(step.learnt / max(now - started, 1e-9))
                if bar is not None:
                    bar.to(step.done, note=f"epoch {step.epoch}/{step.epochs}, loss {step.loss:.3f}")
                if now - last > 0.5:
                    last = now
                    self._scalars.step(job.sample.seen, step)
                return self._stopping

            return self._learner.run(job, progress, int(time.time() * 1000))

    async def _announce(self, outcome: Outcome, version: str) -> None:
        """Tell everybody; workers poll the registry too, so a broker that is away delays nothing but the word."""
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

    def _test(self, now: float) -> None:
        """Ask the serving version for the newest events, in a thread of its own."""
        new = self._buffer.seen - self._tested
        if self._live is None or self._testing is not None or not new:
            return
        if new < _TEST_LEAST and now - self._tested_at < _TEST_SECONDS:
            return
        self._tested, self._tested_at = self._buffer.seen, now
        sample = self._buffer.sample(min(new, _TEST_EVENTS), 0, 0)
        self._testing = asyncio.create_task(self._judge(self._live, sample))

    async def _judge(self, live: LiveTest, sample: Sample) -> None:
        hits, users = await asyncio.get_running_loop().run_in_executor(self._test_thread, live.hits, sample)
        alarm = self._drift.watch(hits, users)
        self.metrics.hit_rate.set(self._drift.rate)
        self._cadence.observe(self._drift.rate)
        if alarm is not None:
            self.metrics.alarms.inc()
            log.warning("Drift: HR@10 fell from %.4f to %.4f, %d events ago", alarm.before, alarm.after, alarm.width)
            self._cadence.alarm(alarm, self._buffer.seen)

    def _seen_by_serving(self) -> int:
        registry = self._learner.registry
        name = registry.current()
        return 0 if name is None else min(int(registry.describe(name).lineage.get("seen", 0)), self._buffer.seen)

    def _summary(self) -> dict[str, Any]:
        if self._last is None:
            return {"version": None, "promoted": False, "reasons": ["no pass was finished"], "metrics": {}}
        return {
            "version": self._last.version,
            "promoted": self._last.promoted,
            "reasons": self._last.metrics["gate"]["reasons"],
            "metrics": self._last.metrics,
        }
