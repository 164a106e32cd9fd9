"""Workers tell each other what followed what: each writes its new transitions to an internal topic once a second.

A worker's own events count at once; those of the others within about `EXPORT_SECONDS` and one fetch. Each message holds
everything a worker learnt since its last one, as arrays (`streams.transition_record`); every worker reads all of them,
so the topic has one partition and a short retention: it is a broadcast, not a store. What a worker has learnt survives
a restart in a local file (`models.fusion.Fusion.to_arrays`), which names the offset to go on reading from.

A worker that is killed relearns at most the events since its last flush: those pairs may count twice.
"""

import asyncio
import logging
import time
import uuid
import zipfile
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
from aiokafka import AIOKafkaConsumer, TopicPartition
from mode import Service
from numpy.typing import NDArray

from models.fusion import Fusion
from state.errors import StateError
from streams.kafka import client_options
from streams.pipeline import Pipeline
from streams.record_batch import blobs, encode_batches
from streams.settings import Settings
from streams.topics import TRANSITIONS
from streams.transition_record import decode_deltas, encode_deltas

EXPORT_SECONDS: Final = 1.0
_PREFIX: Final = "fusion."

log = logging.getLogger(__name__)


class TransitionExchange(Service):  # type: ignore[misc]
    """Exports this worker's transitions, merges the others', keeps a local copy.

    Args:
        settings: brokers, directories.
        pipeline: whose compute thread all changes run in, between rounds.
        fusion: what learns.
        index: number of this worker on its host.
    """

    def __init__(self, settings: Settings, pipeline: Pipeline, fusion: Fusion, index: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._settings, self._pipeline, self._fusion = settings, pipeline, fusion
        self._path = settings.state_dir / settings.app_id / f"transitions-{index}.npz"
        self._name = uuid.uuid4().bytes
        self._position = -1  # next offset of the topic to read, -1: its end
        self._saved_at = time.monotonic()
        self._loaded = False

    async def on_first_start(self) -> None:
        """Continue from the local copy, where there is one."""
        await self._pipeline.between_rounds(self._load)
        self._loaded = True

    async def on_stop(self) -> None:
        """Keep what was learnt; a start that failed before it was read leaves the copy as it is."""
        if self._loaded:
            await asyncio.to_thread(self._save, self._capture())

    @Service.task  # type: ignore[untyped-decorator]
    async def _export(self) -> None:
        while not self.should_stop:
            await self.sleep(EXPORT_SECONDS)
            messages = await self._pipeline.between_rounds(self._deltas)
            for message in messages:
                for batch in encode_batches(blobs([self._name]), blobs([message]), int(time.time() * 1000)):
                    await self._pipeline.send(TRANSITIONS, 0, batch)
            interval = self._settings.snapshot_interval_seconds
            if interval and time.monotonic() > self._saved_at + interval:
                self._saved_at = time.monotonic()
                captured = await self._pipeline.between_rounds(self._capture)
                await asyncio.to_thread(self._save, captured)

    @Service.task  # type: ignore[untyped-decorator]
    async def _follow(self) -> None:
        consumer = AIOKafkaConsumer(
            **client_options(self._settings), group_id=None, enable_auto_commit=False, auto_offset_reset="latest"
        )
        await consumer.start()
        try:
            partition = TopicPartition(TRANSITIONS, 0)
            consumer.assign([partition])
            if self._position >= 0:
                consumer.seek(partition, self._position)
            while not self.should_stop:
                for records in (await consumer.getmany(timeout_ms=500)).values():
                    for record in records:
                        if record.key != self._name:
                            await self._pipeline.between_rounds(self._merge, record.value)
                        self._position = record.offset + 1
        finally:
            await consumer.stop()

    def _deltas(self) -> list[bytes]:
        return list(encode_deltas(self._fusion.transitions.export(), self._pipeline.recommender.items))

    def _merge(self, message: bytes) -> None:
        try:
            deltas = decode_deltas(message, self._pipeline.recommender.items)
        except StateError as error:
            log.warning("%s", error)
            return
        self._fusion.merge(deltas)

    def _capture(self) -> dict[str, NDArray[Any]]:
        items = self._pipeline.recommender.items
        arrays = {_PREFIX + name: value for name, value in self._fusion.to_arrays().items()}
        arrays["ids"] = np.frombuffer(orjson.dumps(items.ids[1:]), np.uint8)
        arrays["hashes"] = items.hashes.copy()
        arrays["position"] = np.array([self._position], np.int64)
        return arrays

    def _save(self, arrays: dict[str, NDArray[Any]]) -> None:
        temporary = self._path.with_suffix(".tmp.npz")
        try:
            np.savez(temporary, **arrays)  # type: ignore[arg-type]
            temporary.replace(self._path)
        except OSError as error:
            log.warning("Cannot keep the transitions in %s: %s", self._path, error)

    def _load(self) -> None:
        """Read the local copy into a worker that knows no item yet: numbers are given again in the same order."""
        items = self._pipeline.recommender.items
        if not self._path.exists() or len(items) > 1:
            return
        try:
            with np.load(self._path, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            items.learn(orjson.loads(arrays["ids"].tobytes()), arrays["hashes"][1:])
            self._fusion.load_arrays(
                {name[len(_PREFIX) :]: value for name, value in arrays.items() if name.startswith(_PREFIX)}
            )
            self._position = int(arrays["position"][0])
        except (OSError, EOFError, ValueError, KeyError, NotImplementedError, zipfile.BadZipFile, StateError) as error:
            log.warning("Cannot use the transitions kept in %s, starting without: %s", self._path, error)
            _set_aside(self._path)


def _set_aside(path: Path) -> None:
    path.replace(path.with_suffix(".bad"))
