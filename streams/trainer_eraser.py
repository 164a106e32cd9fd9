"""Brings the trainer's erasures to their end: nothing of a user in the buffer nor in a pass; then a receipt.

The buffer's file is rewritten as soon as a request is read. A pass under way keeps the sample it took, in which users
have no names, until it ends; the receipt waits for that. What the weights have learnt stays learnt.
"""

import asyncio
import logging
import time
from typing import Final

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from state.errors import RecstreamError
from state.replay_buffer import ReplayBuffer
from streams.erasures import Erased, Erasures, input_ends
from streams.event_feed import EventFeed
from streams.forget_requests import receipt
from streams.kafka import describe, producer_options
from streams.settings import Settings
from streams.topics import FORGET_USERS, FORGOTTEN_USERS
from streams.trainer_metrics import TrainerMetrics
from streams.trainer_passes import Passes

_RETRY_SECONDS: Final = 5.0

log = logging.getLogger(__name__)


class TrainerEraser:
    """Answers requests to be forgotten.

    Args:
        settings: Where the broker is.
        feed: Which requests there are.
        buffer: How far the input topics were read.
        passes: Whether a pass is under way.
        metrics: Where to count.
    """

    def __init__(
        self, settings: Settings, feed: EventFeed, buffer: ReplayBuffer, passes: Passes, metrics: TrainerMetrics
    ) -> None:
        self._settings, self._feed, self._buffer, self._passes, self._metrics = settings, feed, buffer, passes, metrics
        self._wait_until = 0.0
        self._task: asyncio.Task[None] | None = None

    def get_on(self) -> None:
        """Go through what is open, beside the reading of events, which must not rest; to be called now and then."""
        if self._task is not None:
            if not self._task.done():
                return
            self._task.result()  # raises what nobody had foreseen
        self._task = asyncio.create_task(self.step())

    async def stop(self) -> None:
        """Give up what is open: the next start reads the requests again."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def step(self) -> None:
        """Go through what is open once. What goes wrong is logged and tried again: learning does not wait for it."""
        self._metrics.forget_pending.set(sum(map(len, self._feed.erasures.values())))
        if not any(map(len, self._feed.erasures.values())) or time.monotonic() < self._wait_until:
            return
        try:
            await self._look_up()
            await self._answer()
        except (RecstreamError, KafkaError, OSError) as error:
            self._wait_until = time.monotonic() + _RETRY_SECONDS
            log.warning("Receipts of erasures wait: %s", describe(error))

    async def _look_up(self) -> None:
        asked = {
            number: (erasures, erased)
            for number, erasures in self._feed.erasures.items()
            if (erased := [one for one in erasures.open() if one.ends is None])
        }
        for number, ends in (await input_ends(self._settings, asked)).items():
            erasures, erased = asked[number]
            erasures.found_ends(erased, ends)

    async def _answer(self) -> None:
        ready: dict[int, tuple[Erasures, list[Erased]]] = {}
        for number, erasures in self._feed.erasures.items():
            for one in erasures.open():
                if one.after_pass is None:
                    one.after_pass = self._passes.begun if self._passes.running else 0
                one.durable = not self._passes.running or self._passes.begun > one.after_pass
            if found := erasures.ready(self._feed.consumed, number):
                ready[number] = erasures, found
        if not ready:
            return
        await self._send({number: erased for number, (_, erased) in ready.items()})
        for number, (erasures, erased) in ready.items():
            for next_offset in erasures.answered(erased):
                self._buffer.pass_over(FORGET_USERS, number, next_offset)
            self._metrics.forgotten.inc(len(erased))

    async def _send(self, ready: dict[int, list[Erased]]) -> None:
        now_ms = time.time_ns() // 1_000_000
        async with AIOKafkaProducer(**producer_options(self._settings, "recstream-trainer")) as producer:
            sent = [
                await producer.send(
                    FORGOTTEN_USERS,
                    receipt(one.request, "trainer", one.events, now_ms),
                    key=one.request.key,
                    partition=number,
                )
                for number, erased in ready.items()
                for one in erased
            ]
            for future in sent:
                await future
