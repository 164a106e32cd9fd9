"""The trainer: reads what the workers read, and publishes a better model when there is one.

    input topics -> replay buffer -> trigger -> pass in a thread: train, judge, publish -> `model-versions`

Reading never waits for training. Everything that matters is on disk before it counts: events with their offsets, the
pass and its checkpoint, the version; a trainer that is killed at any point goes on where it was.
"""

import asyncio
import importlib.metadata
import logging
import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from models.cadence import Cadence, CadenceSettings
from models.device import chosen_device
from models.finetune import FineTuneSettings
from models.job import LearnSettings, Outcome
from models.learner import Learner
from models.pass_events import lineage_in
from models.private import PrivacySettings, accountant
from models.registry import Registry
from models.training_settings import ONE_PASS, PASS_AFTER_PASS
from models.vocabulary import VocabularySettings
from state.pseudonyms import Pseudonyms
from state.replay_buffer import ReplayBuffer, ReplaySettings
from streams.event_feed import EventFeed
from streams.kafka import broker_errors
from streams.live_watch import LiveWatch
from streams.settings import Settings
from streams.topics import require_topics
from streams.trainer_eraser import TrainerEraser
from streams.trainer_http import TrainerHttp
from streams.trainer_metrics import TrainerMetrics
from streams.trainer_passes import Passes, summary_of

_COMMIT_SECONDS: Final = 1.0
_NICE: Final = 5  # a third of a worker's share of a core they fight for: it has no deadline, but must get on

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainerOptions:
    """What `recstream trainer` was asked for.

    Attributes:
        device: ``auto``, ``cpu`` or ``cuda``.
        once: Read to the end, train once, stop.
        privacy: Differential privacy of training, None without.
    """

    device: str = "auto"
    once: bool = False
    privacy: PrivacySettings | None = None


def run_trainer(settings: Settings, options: TrainerOptions) -> dict[str, Any]:
    """Run the trainer until a signal, or through one pass.

    Returns:
        What came of the newest pass: `version`, `promoted`, `reasons`, `metrics`; of none when there was none.

    Raises:
        RecstreamError: the broker, a topic, the registry, the disk or the device is not as it must be; with `once`
            also that the pass failed.
        KeyboardInterrupt: it was Ctrl-C that stopped it; everything is on disk by then.
    """
    device = chosen_device(options.device)
    if options.privacy is not None:
        accountant()  # missing, it is missed at the start
    require_topics(settings)
    if device == "cpu":
        torch.set_num_threads(settings.trainer_threads)
        with suppress(OSError):
            os.nice(_NICE)
    directory = settings.state_dir / settings.app_id / "trainer"
    registry = Registry(settings.registry)
    registry.require_writable()
    user_key = Pseudonyms(settings.pseudonym_key.get_secret_value()).fingerprint
    replay = ReplaySettings(capacity=settings.buffer_events, seed=settings.trainer_seed, user_key=user_key)
    with ReplayBuffer(directory, replay) as buffer:
        if buffer.truncated_bytes:
            log.warning("Cut %d bytes of an unfinished write off the replay buffer", buffer.truncated_bytes)
        origin = {"code": importlib.metadata.version("recstream"), "device": device}
        learner = Learner(registry, directory, learn_settings(settings, options.privacy), device, origin)
        return asyncio.run(Trainer(settings, options, buffer, learner, directory).run())


def learn_settings(settings: Settings, privacy: PrivacySettings | None = None) -> LearnSettings:
    """The learner's settings out of the operator's."""
    return LearnSettings(
        recent=settings.train_recent_events,
        reservoir=settings.train_reservoir_events,
        keep_versions=settings.keep_versions,
        seed=settings.trainer_seed,
        fine=FineTuneSettings(
            epochs=settings.train_epochs,
            training=PASS_AFTER_PASS if privacy is None else ONE_PASS,
            cell=settings.model_cell,
            hidden=settings.model_hidden,
            embedding=settings.model_embedding,
            privacy=privacy,
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
        self._passes = Passes(settings, learner, self.metrics, directory)
        self._live = LiveWatch(learner.registry, buffer, self.metrics)
        self._cadence = Cadence(
            CadenceSettings(
                every_events=settings.train_every_events,
                every_seconds=settings.train_every_minutes * 60,
                cold_start_events=settings.cold_start_events,
            ),
            self._seen_by_serving(),
            time.monotonic(),
        )
        self._committed_at = time.monotonic()
        self._stopping = self._interrupted = False

    async def run(self) -> dict[str, Any]:
        """Read and train until stopped.

        Returns:
            What came of the newest pass.

        Raises:
            Exception: With `once`, what the pass failed for.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        feed = EventFeed(self._settings, self._buffer)
        http = TrainerHttp(self._settings.http_host, self._settings.trainer_http_port, self.metrics, lambda: feed.ready)
        await http.start()
        try:
            await self._live.look(now=True)
            await self._resume()  # needs no broker: does not wait for the group
            with broker_errors(self._settings, "read events"):
                try:
                    await feed.start()
                    eraser = TrainerEraser(self._settings, feed, self._buffer, self._passes, self.metrics)
                    try:
                        await self._loop(feed, eraser)
                    finally:
                        await eraser.stop()
                    await feed.commit()
                finally:
                    await feed.stop()
        finally:
            await self._passes.stop()
            await self._live.stop()
            await http.stop()
        if self._interrupted:
            raise KeyboardInterrupt
        if self._options.once and self._passes.error is not None:
            raise self._passes.error
        return summary_of(self._passes.last)

    async def _resume(self) -> None:
        await self._passes.resume()
        if self._passes.error is not None:  # dropped since it killed its process: as if it had begun and failed now
            self._cadence.began(self._buffer.seen, time.monotonic())

    def _stop(self, number: int) -> None:
        log.info("Stopping: what is under way is brought to disk")
        self._stopping = True
        self._interrupted = number == signal.SIGINT
        for again in (signal.SIGTERM, signal.SIGINT):  # whoever asks twice does not want to wait
            asyncio.get_running_loop().remove_signal_handler(again)

    async def _loop(self, feed: EventFeed, eraser: TrainerEraser) -> None:
        while not self._stopping:
            taken = await feed.take(wait_seconds=0.2)
            self.metrics.events.inc(taken.events)
            self.metrics.invalid.inc(taken.invalid)
            now = time.monotonic()
            if now - self._committed_at >= _COMMIT_SECONDS:
                await self._housekeeping(feed, now)
                eraser.get_on()
            await self._ended(self._passes.collect())
            if self._options.once:
                if not self._passes.running and await feed.caught_up():
                    await self._once(feed)
                    return
                continue
            self._watch(now)
            await self._consider(now)

    async def _housekeeping(self, feed: EventFeed, now: float) -> None:
        await feed.commit()
        self._committed_at = now
        self.metrics.lag.set(await feed.lag())
        self.metrics.buffer_events.set(len(self._buffer))
        self.metrics.buffer_bytes.set(self._buffer.nbytes)
        self.metrics.buffer_items.set(self._buffer.items)
        await self._live.look()

    def _watch(self, now: float) -> None:
        """Test the serving version on what has come in, and take in what the last test found."""
        self._live.test(now)
        tested, alarm = self._live.collect()
        if tested:
            self._cadence.observe(self._live.rate, self._live.width)
        if alarm is not None:
            self._cadence.alarm(alarm, self._buffer.seen)

    async def _consider(self, now: float) -> None:
        """Begin a pass when one is due and none runs."""
        if self._passes.running:
            return
        if self._passes.error is not None:
            self._cadence.failed()
        seen = self._buffer.seen
        trigger = self._cadence.due(seen, now, self._live.serving is not None)
        if trigger is not None:
            self._buffer.commit()  # a version never knows events that a crash could take back
            await self._passes.begin(self._buffer, trigger, self._cadence.changed_at)
            self._cadence.began(seen, now)

    async def _once(self, feed: EventFeed) -> None:
        await feed.commit()
        if not await self._passes.begin(self._buffer, "once") and self._passes.error is None:
            log.warning("Nothing to learn: too few events are new to the serving version")
        while self._passes.running and not self._stopping:
            await asyncio.sleep(0.05)
            await self._ended(self._passes.collect())

    async def _ended(self, outcome: Outcome | None) -> None:
        if outcome is None:
            return
        if not outcome.promoted:
            self._cadence.rejected()
        await self._live.look(now=True)

    def _seen_by_serving(self) -> int:
        lineage = lineage_in(self._buffer.log_id, self._buffer.seen, self._learner.serving().lineage)
        return min(int(lineage.get("seen", 0)), self._buffer.seen)
