"""A broker with the contract's topics, the workers a test runs on it, and what its topics hold."""

import asyncio
import os
import signal
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from aiokafka import AIOKafkaConsumer, TopicPartition

from models.network import Network, NetworkConfig
from models.registry import Registry
from state.events import TOPICS
from state.record import decode
from streams.kafka import admin
from streams.read_topic import read_to_end, reader
from streams.settings import Settings, load_settings
from streams.topics import CHANGELOG, INVALID_EVENTS, RECOMMENDATIONS, create_topics, topic_specs
from tests.streams.event_log import PARTITIONS, Load, Record, Source, sources
from tests.streams.worker_process import Worker, wait_for

with warnings.catch_warnings():  # kafka-python 3.0.12 reads its schemas with importlib.resources.read_text
    warnings.simplefilter("ignore", DeprecationWarning)
    from kafka.errors import UnknownTopicOrPartitionError

ROOT = Path(__file__).parents[2]
HIDDEN = 32
SESSION_SECONDS = 4.0
# For long tests that ask the same of both brokers: the real one where there is one.
ONE_BROKER = ["kafka" if os.environ.get("KAFKA_HOME") else "embedded"]


@dataclass(slots=True)
class Cluster:
    """A broker with the contract's topics, a directory, and the workers a test started on them."""

    bootstrap: str
    directory: Path
    app_id: str
    registry: Path
    workers: list[Worker] = field(default_factory=list)
    produced: list[Record] = field(default_factory=list)

    @property
    def settings(self) -> Settings:
        """Settings of a client of this cluster."""
        return load_settings(brokers=self.bootstrap, partitions=PARTITIONS, app_id=self.app_id)

    def environment(self) -> dict[str, str]:
        """What every worker of this cluster has in its environment."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RECSTREAM_")}
        return {
            **inherited,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "RECSTREAM_BROKERS": self.bootstrap,
            "RECSTREAM_APP_ID": self.app_id,
            "RECSTREAM_PARTITIONS": str(PARTITIONS),
            "RECSTREAM_REGISTRY": str(self.registry),
            "RECSTREAM_STATE_DIR": str(self.directory / "state"),
            "RECSTREAM_SESSION_TIMEOUT_SECONDS": str(SESSION_SECONDS),
            "RECSTREAM_REBALANCE_TIMEOUT_SECONDS": "6",
            "RECSTREAM_COMMIT_INTERVAL_SECONDS": "0.5",
            "RECSTREAM_MODEL_POLL_SECONDS": "0.5",
        }

    def make_topics(self) -> None:
        """The contract's topics, empty."""
        self.drop_topics()
        deadline = time.monotonic() + 30
        while True:  # a topic just deleted may still be there for a moment
            create_topics(self.settings)
            if not any(self._ends().values()) or time.monotonic() > deadline:
                return
            time.sleep(0.3)

    def drop_topics(self) -> None:
        """Delete the contract's topics."""
        with admin(self.settings, timeout_seconds=20) as client:
            there = {topic["name"] for topic in client.describe_topics()}
            names = [spec.name for spec in topic_specs(self.settings) if spec.name in there]
            with suppress(UnknownTopicOrPartitionError):
                if names:
                    client.delete_topics(names)
            deadline = time.monotonic() + 15
            while names and time.monotonic() < deadline:
                left = {topic["name"] for topic in client.describe_topics() if not topic["error_code"]}
                names = [name for name in names if name in left]
                time.sleep(0.1)

    def worker(self, command: Sequence[str] = ("-m", "streams.cli", "worker"), **settings: str) -> Worker:
        """Start a worker; keyword arguments are settings (`top_k="3"`)."""
        values = {f"RECSTREAM_{key.upper()}": value for key, value in settings.items()}
        log = self.directory / f"worker{len(self.workers)}.log"
        worker = Worker(log, command, {**self.environment(), **values})
        self.workers.append(worker)
        return worker

    def stop(self) -> list[int]:
        """SIGTERM to all workers at once; returns their exit statuses."""
        for worker in self.workers:
            worker.terminate()
        return [worker.ended(30) for worker in self.workers]

    def load(self, records: Sequence[Record], rate: float | None = None) -> Load:
        """Start producing records behind those before."""
        self.produced += records
        return Load(self.bootstrap, records, rate).start()

    def produce(self, records: Sequence[Record]) -> None:
        """Produce records and wait until they are in the log."""
        self.load(records).finish()

    def log_end(self) -> dict[TopicPartition, int]:
        """The end of each input partition: counted, since the embedded broker reports it wrongly."""
        ends: Counter[TopicPartition] = Counter()
        for record in self.produced:
            ends[TopicPartition(record.topic, record.partition)] += 1
        return dict(ends)

    def committed(self) -> dict[TopicPartition, int]:
        """Offsets the group has committed, of partitions that have any."""
        partitions = [TopicPartition(topic, number) for topic in TOPICS for number in range(PARTITIONS)]

        async def ask() -> dict[TopicPartition, int]:
            consumer = AIOKafkaConsumer(
                bootstrap_servers=self.bootstrap, group_id=self.app_id, enable_auto_commit=False
            )
            try:
                await consumer.start()
                consumer.assign(partitions)
                return {tp: offset for tp in partitions if (offset := await consumer.committed(tp) or 0)}
            finally:
                await consumer.stop()

        return asyncio.run(ask())

    def wait_committed(self, seconds: float = 120, alive: Sequence[Worker] | None = None) -> None:
        """Wait until everything produced is committed; fails early when one of `alive` ends."""
        expected = self.log_end()
        watched = self.workers if alive is None else alive
        seen: dict[TopicPartition, int] = {}

        def done() -> bool:
            seen.clear()
            seen.update(self.committed())
            dead = [worker for worker in watched if worker.poll() not in (None, -signal.SIGKILL, 0)]
            if dead:
                pytest.fail(f"worker {dead[0].pid} ended with {dead[0].poll()}\n{dead[0].output()}")
            return seen == expected

        wait_for(done, seconds, lambda: f"committed {seen}\nlog end {expected}\n{self.output()}", every=0.3)

    def read(self, topic: str) -> list[Any]:
        """Every record of a topic, each partition's in order."""
        settings = self.settings
        partitions = [TopicPartition(topic, number) for number in range(PARTITIONS)]

        async def collect() -> list[Any]:
            async with reader(settings, partitions) as consumer:
                return [record async for records in read_to_end(consumer, partitions) for record in records]

        return asyncio.run(collect())

    def recommendations(self) -> list[dict[str, Any]]:
        """Every recommendation, decoded."""
        return [orjson.loads(record.value) for record in self.read(RECOMMENDATIONS)]

    def answered(self) -> Counter[Source]:
        """Source event -> its recommendations."""
        events = (message["event"] for message in self.recommendations())
        return Counter((one["topic"], one["partition"], one["offset"]) for one in events)

    def dead_letters(self) -> dict[Source, dict[str, Any]]:
        """Source event -> headers and value of its dead letter."""
        letters = {}
        for record in self.read(INVALID_EVENTS):
            headers = {name: value.decode() for name, value in record.headers}
            source = (headers["source-topic"], int(headers["source-partition"]), int(headers["source-offset"]))
            letters[source] = {**headers, "value": record.value, "key": record.key, "partition": record.partition}
        return letters

    def state_records(self) -> dict[str, bytes | None]:
        """User -> the newest record of the changelog, as a compacted log would keep it; None is a tombstone."""
        return {record.key.decode(): record.value for record in self.read(CHANGELOG)}

    def output(self) -> str:
        """The end of what each worker printed."""
        return "\n".join(f"--- {worker.log.name} ({worker.poll()})\n{worker.output()}" for worker in self.workers)

    def close(self) -> None:
        """End every worker."""
        for worker in self.workers:
            worker.close()

    def _ends(self) -> dict[str, int]:
        return {topic: len(self.read(topic)) for topic in (CHANGELOG, RECOMMENDATIONS)}


@contextmanager
def open_cluster(bootstrap: str, directory: Path, app_id: str, registry: Path) -> Iterator[Cluster]:
    """A cluster with fresh topics; its workers are ended and its topics deleted afterwards."""
    cluster = Cluster(bootstrap, directory, app_id, registry)
    cluster.make_topics()
    try:
        yield cluster
    finally:
        cluster.close()
        with suppress(Exception):
            cluster.drop_topics()


def decoded(records: dict[str, bytes | None]) -> dict[str, dict[str, Any]]:
    """State records as plain values; fails on one that is corrupt."""
    users = [user for user, value in records.items() if value is not None]
    rows, bad = decode([value for value in records.values() if value is not None], HIDDEN)
    assert not bad.any()
    return {
        user: {name: np.asarray(row[name]).tolist() for name in rows.dtype.names}
        for user, row in zip(users, rows, strict=True)
    }


def differences(found: dict[str, bytes | None], expected: dict[str, bytes | None]) -> list[str]:
    """Every field in which a user's state differs from the expected one."""
    if found == expected:
        return []
    mine, theirs = decoded(found), decoded(expected)
    lines = [f"{user}: missing" for user in theirs.keys() - mine.keys()]
    lines += [f"{user}: not expected" for user in mine.keys() - theirs.keys()]
    for user in mine.keys() & theirs.keys():
        for name, value in theirs[user].items():
            if mine[user][name] != value:
                lines.append(f"{user}.{name}: {mine[user][name]} instead of {value}"[:300])
    return lines


def publish_model(registry: Path, items: int, seed: int) -> str:
    """A random-initialised GRU over items i1..iN; returns the version's name."""
    torch.manual_seed(seed)
    network = Network(NetworkConfig(items=items + 1, cell="gru", hidden=HIDDEN, embedding=16))
    return Registry(registry).publish(network, ["", *(f"i{n + 1}" for n in range(items))], {}, {"seed": seed})


@dataclass(frozen=True, slots=True)
class Reference:
    """An event log, a model, and the state one undisturbed worker makes of them."""

    records: list[Record]
    registry: Path
    states: dict[str, bytes | None]


def assert_nothing_lost(cluster: Cluster, reference: Reference) -> None:
    """Every event answered, every user's state that of the undisturbed worker."""
    answered = cluster.answered()
    missing = set(sources(cluster.produced)) - answered.keys()
    assert not missing, f"{len(missing)} events were not answered, such as {sorted(missing)[:5]}"
    different = differences(cluster.state_records(), reference.states)
    assert not different, f"{len(different)} fields differ, such as {different[:5]}"
