"""Workers tell each other what followed what: each writes its new transitions to an internal topic once a second.

A worker's own events count at once; those of the others within about `EXPORT_SECONDS` and one fetch. Each message holds
everything a worker learnt since its last one, as arrays (`streams.transition_record`); every worker reads all of them,
so the topic has one partition and a short retention: it is a broadcast, not a store. What a worker has learnt survives
a restart in a local file (`models.fusion.Fusion.to_arrays`), which names the offset to go on reading from and which of
the worker's own messages it holds: those sent after it are all that is left of what a killed worker learnt last.

A worker that is killed relearns at most the events since its last flush: those pairs may count twice.
"""

import asyncio
import logging
import threading
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
from state.snapshot import delete_unfinished, temporary_beside
from streams.kafka import client_options
from streams.pipeline import Pipeline
from streams.record_batch import blobs, encode_batches
from streams.settings import Settings
from streams.topics import TRANSITIONS
from streams.transition_record import decode_deltas, encode_deltas

EXPORT_SECONDS: Final = 1.0
_PREFIX: Final = "fusion."
_NAME_BYTES: Final = 16  # of a message's key; the number of the message follows
_NUMBER_BYTES: Final = 8
_LIVES_KEPT: Final = 8  # of a worker: those before are further back than where reading goes on

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
        self._name = uuid.uuid4().bytes  # of this life of the worker
        self._included = {self._name: 0}  # life of this worker -> number of its last message that was learnt
        self._position = -1  # next offset of the topic to read, -1: its end
        self._saved_at = time.monotonic()
        self._loaded = False
        self._saving = threading.Lock()

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
            if self.should_stop:  # what is not sent yet goes into the local copy, to be sent by the next life
                return
            messages = await self._pipeline.between_rounds(self._deltas)
            for key, message in messages:
                for batch in encode_batches(blobs([key]), blobs([message]), int(time.time() * 1000)):
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
                        if self._is_new(record.key):
                            await self._pipeline.between_rounds(self._merge, record.key, record.value)
                        self._position = record.offset + 1
        finally:
            await consumer.stop()

    def _is_new(self, key: bytes | None) -> bool:
        """Whether a message holds what is not learnt yet: it is another worker's, or came after the copy begun from."""
        name, number = _life_and_number(key)
        return number > self._included.get(name, -1)

    def _deltas(self) -> list[tuple[bytes, bytes]]:
        """Messages to send, with their keys."""
        made = []
        for message in encode_deltas(self._fusion.transitions.export(), self._pipeline.recommender.items):
            self._included[self._name] += 1
            made.append((self._name + self._included[self._name].to_bytes(_NUMBER_BYTES), message))
        return made

    def _merge(self, key: bytes | None, message: bytes | None) -> None:
        name, number = _life_and_number(key)
        if name in self._included:
            self._included[name] = number
        try:
            deltas = decode_deltas(message or b"", self._pipeline.recommender.items)
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
        lives = list(self._included.items())[-_LIVES_KEPT:]
        arrays["lives"] = np.frombuffer(b"".join(name for name, _ in lives), np.uint8).reshape(-1, _NAME_BYTES)
        arrays["messages"] = np.array([number for _, number in lives], np.int64)
        return arrays

    def _save(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Workers started one by one on a host may all be number 0: each reads whatever copy was written last."""
        temporary = temporary_beside(self._path, self._name.hex())
        with self._saving:  # a stop may find the last regular one under way
            try:
                delete_unfinished(self._path)
                with temporary.open("wb") as file:
                    np.savez(file, **arrays)  # type: ignore[arg-type]
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
            if "lives" in arrays:  # earlier releases did not number messages
                lives = zip(map(bytes, arrays["lives"]), arrays["messages"].tolist(), strict=True)
                self._included = {**dict(lives), self._name: 0}
        except (OSError, EOFError, ValueError, KeyError, NotImplementedError, zipfile.BadZipFile, StateError) as error:
            log.warning("Cannot use the transitions kept in %s, starting without: %s", self._path, error)
            _set_aside(self._path)


def _life_and_number(key: bytes | None) -> tuple[bytes, int]:
    """Who sent a message, and which of its messages it is; 0 from earlier releases, which did not number them."""
    return (key or b"")[:_NAME_BYTES], int.from_bytes((key or b"")[_NAME_BYTES:])


def _set_aside(path: Path) -> None:
    path.replace(path.with_suffix(".bad"))
