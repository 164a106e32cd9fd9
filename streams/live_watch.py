"""The trainer's own test of the serving version: it follows the registry's pointer and asks it for the newest events.

The alarm for drift comes from here and not from the workers' live hit rate. What workers show learns from every event
at once, so its hit rate recovers by itself while the network beneath has gone stale; and asking needs no worker to be
up, no topic between them, and gives the same alarms for the same log.
"""

import asyncio
import logging
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Final

import numpy as np

from models.drift import Alarm, DriftWatch
from models.live_test import LiveTest
from models.registry import Registry, StorageRefused
from state.errors import RecstreamError
from state.replay_buffer import ReplayBuffer
from state.replay_sample import Sample
from streams.trainer_metrics import TrainerMetrics

_LOOK_SECONDS: Final = 2.0  # between two looks at the registry's pointer
_RETRY_SECONDS: Final = 60.0  # before a version that was refused is read again: the whole of it
_TEST_EVENTS: Final = 1_000  # most events of one live test: more is a sample of a busy stream
_TEST_LEAST: Final = 100  # fewer wait for company, but not for longer than
_TEST_SECONDS: Final = 5.0
_TEST_PAUSE_SECONDS: Final = 1.0  # between two tests at least: one takes 0.1 to 0.3 s of the core that training needs
_TEST_SHARE: Final = 0.1  # of the time at most: where the machine is busy they take longer, and training must get on

_REMEMBERED: Final = 10_000  # tests: hours of a busy stream

log = logging.getLogger(__name__)


class LiveWatch:
    """Tests the serving version on events that have just come in, and watches its hit rate for an abrupt fall.

    Args:
        registry: Whose pointer to follow.
        buffer: Where the events are; only those that come in from now on are tested.
        metrics: Where to count.

    Attributes:
        serving: The version that serves, None before there is one or while it cannot be loaded.
    """

    def __init__(self, registry: Registry, buffer: ReplayBuffer, metrics: TrainerMetrics) -> None:
        self._registry, self._buffer, self._metrics = registry, buffer, metrics
        self._drift = DriftWatch()
        self._live: LiveTest | None = None
        self._tested = buffer.seen  # events seen at the last test
        self._tests = deque([(0, buffer.seen)], _REMEMBERED)  # events tested and seen after each test
        self._tested_at = self._looked_at = time.monotonic()
        self._pause = _TEST_PAUSE_SECONDS
        self._refused, self._retry_at = "", 0.0
        self._thread = ThreadPoolExecutor(1, "live-test")
        self._task: asyncio.Task[Alarm | None] | None = None
        self.serving: str | None = None

    @property
    def rate(self) -> float:
        """HR@10 of the serving network since its last change."""
        return self._drift.rate

    @property
    def width(self) -> int:
        """Events tested since then."""
        return self._drift.width

    async def look(self, *, now: bool = False) -> None:
        """Follow the registry's pointer, every two seconds or at once: an operator may have rolled back."""
        if not now and time.monotonic() - self._looked_at < _LOOK_SECONDS:
            return
        self._looked_at = time.monotonic()
        name = None
        try:
            name = await asyncio.to_thread(self._registry.current)
            if name == self.serving or (name == self._refused and self._looked_at < self._retry_at):
                return
            version = None if name is None else await asyncio.to_thread(self._registry.load, name)
            live = None if version is None else LiveTest(version)
        except RecstreamError as error:
            log.error("%s", error)
            if not isinstance(error, StorageRefused):
                self._refused, self._retry_at = name or "", time.monotonic() + _RETRY_SECONDS
            return
        self.serving, self._live = name, live
        if version is not None:
            # After a restart too: what was spent before it counts.
            self._metrics.epsilon.set(version.metrics.get("epsilon", 0.0))
            self._metrics.model.info({"version": version.name})
            log.info("%s serves", version.name)

    def test(self, now: float) -> None:
        """Ask the serving version for the newest events, in a thread, when enough of them have come in."""
        new = self._buffer.seen - self._tested
        if self._live is None or self._task is not None or not new:
            return
        if now - self._tested_at < (self._pause if new >= _TEST_LEAST else max(self._pause, _TEST_SECONDS)):
            return
        self._tested, self._tested_at = self._buffer.seen, now
        self._task = asyncio.create_task(self._judge(self._live, self._buffer.sample(min(new, _TEST_EVENTS), 0, 0)))

    def collect(self) -> tuple[bool, Alarm | None]:
        """Whether a test has ended since the last call, and its alarm, if there was one, its width in events seen."""
        if self._task is None or not self._task.done():
            return False, None
        task, self._task = self._task, None
        alarm = task.result()
        if alarm is not None:
            # It counts what was tested, and not everything is: a busy stream's sample, no user's first event.
            changed_at = np.interp(alarm.position - alarm.width, *np.array(self._tests).T)
            alarm = replace(alarm, width=self._buffer.seen - int(changed_at))
            log.warning("Drift: HR@10 fell from %.4f to %.4f, %d events ago", alarm.before, alarm.after, alarm.width)
        return True, alarm

    async def stop(self) -> None:
        """Wait for the test under way."""
        if self._task is not None:
            await asyncio.wait([self._task])
        self._thread.shutdown()

    async def _judge(self, live: LiveTest, sample: Sample) -> Alarm | None:
        began = time.monotonic()
        hits, users = await asyncio.get_running_loop().run_in_executor(self._thread, live.hits, sample)
        self._pause = max(_TEST_PAUSE_SECONDS, (time.monotonic() - began) / _TEST_SHARE)
        alarm = self._drift.watch(hits, users)
        self._tests.append((self._drift.position, sample.seen))
        self._metrics.hit_rate.set(self._drift.rate)
        if alarm is not None:
            self._metrics.alarms.inc()
        return alarm
