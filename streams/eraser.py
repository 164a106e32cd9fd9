"""Brings a worker's erasures to their end: looks up how far the input topics reach, sends receipts, tidies the disk."""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from aiokafka.errors import KafkaError
from mode import Service

from state.errors import RecstreamError
from streams.erasures import Erased, input_ends
from streams.forget_requests import receipt
from streams.kafka import describe
from streams.metrics import Metrics
from streams.partition import Partition
from streams.pipeline import Pipeline
from streams.record_batch import blobs, encode_batches
from streams.restore import CLOCK_SKEW_MS, MAX_SNAPSHOT_AGE_MS
from streams.settings import Settings
from streams.topics import FORGOTTEN_USERS

_EVERY_SECONDS: Final = 0.25
_RETRY_SECONDS: Final = 5.0
_SWEEP_SECONDS: Final = 3600.0
_UNFINISHED_SECONDS: Final = 3600.0  # a snapshot takes seconds to write: an older unfinished one was left by a kill

log = logging.getLogger(__name__)


class Eraser(Service):  # type: ignore[misc]
    """Answers requests to be forgotten once nothing of their users is left; what that means is in `streams.erasures`.

    Args:
        settings: all settings.
        pipeline: whose partitions' erasures to follow.
        consumed: offset up to which the group has committed an input topic's partition.
        metrics: where to count.
    """

    def __init__(
        self,
        settings: Settings,
        pipeline: Pipeline,
        consumed: Callable[[str, int], int],
        metrics: Metrics,
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)
        self._settings, self._pipeline, self._consumed, self._metrics = settings, pipeline, consumed, metrics

    @Service.task  # type: ignore[untyped-decorator]
    async def _follow(self) -> None:
        while not self.should_stop:
            await self.sleep(_EVERY_SECONDS)
            partitions = [partition for partition in self._pipeline.partitions.values() if len(partition.erasures)]
            self._metrics.forget_pending.set(sum(len(partition.erasures) for partition in partitions))
            if not partitions or not self._pipeline.ready:
                continue
            try:
                await self._look_up(partitions)
            except (RecstreamError, KafkaError, OSError) as error:
                log.warning("Erasures wait: how far the input topics reach cannot be looked up. %s", describe(error))
                await self.sleep(_RETRY_SECONDS)
                continue
            for partition in partitions:
                await self._answer(partition)

    @Service.task  # type: ignore[untyped-decorator]
    async def _sweep(self) -> None:
        directory = self._settings.state_dir / self._settings.app_id
        while not self.should_stop:
            await asyncio.get_running_loop().run_in_executor(None, sweep, directory, time.time())
            await self.sleep(_SWEEP_SECONDS)

    async def _look_up(self, partitions: list[Partition]) -> None:
        asked = {
            partition.number: (partition, [one for one in partition.erasures.open() if one.ends is None])
            for partition in partitions
        }
        asked = {number: (partition, erased) for number, (partition, erased) in asked.items() if erased}
        for number, ends in (await input_ends(self._settings, asked)).items():
            partition, erased = asked[number]
            partition.erasures.found_ends(erased, ends)

    async def _answer(self, partition: Partition) -> None:
        erasures, number = partition.erasures, partition.number
        ready = erasures.ready(self._consumed, number)
        if not ready or self._pipeline.partitions.get(number) is not partition:
            return
        await self._send(number, ready)
        for event in erasures.answered(ready):
            event.ack()
        self._metrics.forgotten.inc(len(ready))

    async def _send(self, number: int, erased: list[Erased]) -> None:
        now_ms = time.time_ns() // 1_000_000
        keys = blobs([one.request.key for one in erased])
        values = blobs([receipt(one.request, "worker", one.events, now_ms) for one in erased])
        for batch in encode_batches(keys, values, now_ms):
            await (await self._pipeline.send(FORGOTTEN_USERS, number, batch))


def sweep(directory: Path, now_seconds: float) -> list[Path]:
    """Delete snapshots too old or from too far ahead to be loaded again, and unfinished ones that a kill has left.

    A partition that has moved to another host leaves its snapshot here, and whoever is erased there is still in it.

    Returns:
        What was deleted.
    """
    gone: list[Path] = []
    for pattern, seconds in (("users-*.snapshot", MAX_SNAPSHOT_AGE_MS / 1000), (".users-*.tmp", _UNFINISHED_SECONDS)):
        for path in directory.glob(pattern):
            with suppress(OSError):
                if not -CLOCK_SKEW_MS / 1000 <= now_seconds - path.stat().st_mtime <= seconds:
                    path.unlink()
                    gone.append(path)
    return gone
