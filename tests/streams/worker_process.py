"""End-to-end helpers: a cluster with the contract's topics, event logs of known offsets, and real worker processes."""

import asyncio
import os
import signal
import socket
import sys
import threading
import time
import urllib.request
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.partitioner import murmur2
from prometheus_client.parser import text_string_to_metric_families

from models.network import Network, NetworkConfig
from models.registry import Registry
from state.events import TOPICS
from state.record import decode
from streams.children import Child
from streams.kafka import admin, read_to_end, reader
from streams.settings import Settings, load_settings
from streams.topics import CHANGELOG, INVALID_EVENTS, RECOMMENDATIONS, create_topics, topic_specs

with warnings.catch_warnings():  # kafka-python 3.0.12 reads its schemas with importlib.resources.read_text
    warnings.simplefilter("ignore", DeprecationWarning)
    from kafka.errors import UnknownTopicOrPartitionError

ROOT = Path(__file__).parents[2]
PARTITIONS = 6
HIDDEN = 32
SESSION_SECONDS = 4.0
Source = tuple[str, int, int]  # topic, partition, offset


@dataclass(frozen=True, slots=True)
class Record:
    """One Kafka record to produce; its offset is its place among those of its partition."""

    topic: str
    partition: int
    key: bytes
    value: bytes
    timestamp_ms: int


def event(topic: str, user: str, item: str, time_ms: int, **more: Any) -> Record:
    """A valid event on the partition its user belongs to."""
    value = orjson.dumps({"user_id": user, "item_id": item, "timestamp": time_ms, **more})
    return Record(topic, partition_of(user.encode()), user.encode(), value, time_ms)


def partition_of(key: bytes) -> int:
    """The partition Kafka's default partitioner gives a key."""
    return (murmur2(key) & 0x7FFFFFFF) % PARTITIONS


def event_log(count: int, users: int, items: int, seed: int, start_ms: int | None = None) -> list[Record]:
    """Events of one hour, oldest first; all of one user's on one topic.

    Kafka orders records within a topic-partition only, so the order in which one user's events of two topics are
    applied may differ between two runs, and with it the state.
    """
    random = np.random.default_rng(seed)
    begin = int(time.time() * 1000) - 3_600_000 if start_ms is None else start_ms
    times = begin + np.sort(random.integers(0, 3_600_000, count))
    who = random.zipf(1.3, count) % users
    what = random.zipf(1.2, count) % items
    return [
        event(TOPICS[u % len(TOPICS)], f"u{u}", f"i{i + 1}", t)
        for u, i, t in zip(who.tolist(), what.tolist(), times.tolist(), strict=True)
    ]


def sources(records: Iterable[Record]) -> list[Source]:
    """Where each record stands once all are produced in this order to empty topics."""
    ends: Counter[tuple[str, int]] = Counter()
    places = []
    for record in records:
        at = (record.topic, record.partition)
        places.append((*at, ends[at]))
        ends[at] += 1
    return places


def publish_model(registry: Path, items: int, seed: int) -> str:
    """A random-initialised GRU over items i1..iN; returns the version's name."""
    torch.manual_seed(seed)
    network = Network(NetworkConfig(items=items + 1, cell="gru", hidden=HIDDEN, embedding=16))
    return Registry(registry).publish(network, ["", *(f"i{n + 1}" for n in range(items))], {}, {"seed": seed})


@dataclass(slots=True)
class Load:
    """A thread that produces records in order, paced or as fast as they are taken."""

    bootstrap: str
    records: Sequence[Record]
    rate: float | None = None
    sent: int = 0
    error: BaseException | None = None
    _thread: threading.Thread | None = None

    def start(self) -> "Load":
        """Begin."""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def finish(self) -> None:
        """Wait until every record is acknowledged."""
        if self._thread is not None:
            self._thread.join(120)
        if self.error is not None:
            raise self.error
        assert self.sent == len(self.records)

    def _run(self) -> None:
        try:
            asyncio.run(self._produce())
        except BaseException as error:
            self.error = error

    async def _produce(self) -> None:
        producer = AIOKafkaProducer(bootstrap_servers=self.bootstrap, acks="all", request_timeout_ms=60_000)
        await producer.start()
        try:
            step = 1000 if self.rate is None else max(1, int(self.rate * 0.05))
            begin = time.monotonic()
            for start in range(0, len(self.records), step):
                await self._send(producer, self.records[start : start + step])
                self.sent = min(start + step, len(self.records))
                if self.rate is not None:
                    await asyncio.sleep(max(0.0, begin + self.sent / self.rate - time.monotonic()))
        finally:
            await producer.stop()

    @staticmethod
    async def _send(producer: AIOKafkaProducer, records: Sequence[Record]) -> None:
        batches: dict[tuple[str, int], list[Any]] = {}
        for record in records:
            queue = batches.setdefault((record.topic, record.partition), [producer.create_batch()])
            one = {"timestamp": record.timestamp_ms, "key": record.key, "value": record.value}
            if queue[-1].append(**one) is None:
                queue.append(producer.create_batch())
                assert queue[-1].append(**one) is not None
        pending = []
        for (topic, partition), queue in batches.items():
            for batch in queue:
                pending.append(await producer.send_batch(batch, topic, partition=partition))
        await asyncio.gather(*pending)


class Worker:
    """One `recstream worker` process."""

    def __init__(self, cluster: "Cluster", name: str, command: Sequence[str], env: dict[str, str]) -> None:
        self.port = free_port()
        self.log = cluster.directory / f"{name}.log"
        self._output = self.log.open("ab")
        self._child = Child(
            [sys.executable, *command],
            {**cluster.environment(), "RECSTREAM_HTTP_PORT": str(self.port), **env},
            self._output,
            grace_seconds=20,
        )

    @property
    def pid(self) -> int:
        """Process id."""
        return self._child.pid

    def poll(self) -> int | None:
        """Exit status, None while it runs."""
        return self._child.poll()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self._child.kill()
        self._child.wait(10)

    def terminate(self) -> None:
        """SIGTERM."""
        self._child.terminate()

    def stop(self, seconds: float = 30) -> int:
        """SIGTERM; returns the exit status."""
        self.terminate()
        return self.ended(seconds)

    def ended(self, seconds: float) -> int:
        """Wait for its end; returns the exit status."""
        status = self._child.wait(seconds)
        if status is None:
            pytest.fail(f"worker {self.pid} did not end in {seconds} s\n{self.output()}")
        return status

    def close(self) -> None:
        """End it, whatever state it is in."""
        if self._child.poll() is None:
            self._child.kill()
            with suppress(ProcessLookupError):
                self.signal(signal.SIGCONT)
        self._child.stop()
        self._output.close()

    def output(self) -> str:
        """The end of what it printed."""
        return self.log.read_text(errors="replace")[-6000:]

    def ready(self) -> bool:
        """Whether it says it is ready."""
        with (
            suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health/ready", timeout=2) as reply,
        ):
            return bool(reply.status == 200)
        return False

    def held(self) -> list[int]:
        """The partitions it holds, none while it is not ready."""
        with (
            suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health/ready", timeout=2) as reply,
        ):
            return list(orjson.loads(reply.read())["partitions"])
        return []

    def wait_ready(self, seconds: float = 60) -> "Worker":
        """Wait until it is ready."""
        wait_for(lambda: self.ready() or self.poll() is not None, seconds, lambda: f"not ready\n{self.output()}")
        assert self.poll() is None, self.output()
        return self

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics: `name` or `name{label=value,...}` -> value."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as reply:
            text = reply.read().decode()
        found = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
                found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
        return found


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
        worker = Worker(self, f"worker{len(self.workers)}", command, values)
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
            await consumer.start()
            try:
                consumer.assign(partitions)
                return {tp: offset for tp in partitions if (offset := await consumer.committed(tp) or 0)}
            finally:
                await consumer.stop()

        return asyncio.run(ask())

    def wait_committed(self, seconds: float = 60, alive: Sequence[Worker] | None = None) -> None:
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


def wait_for(condition: Callable[[], bool], seconds: float, what: Callable[[], str], every: float = 0.1) -> None:
    """Wait until a condition holds; fails with `what()`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds} s: {what()}")
        time.sleep(every)


def free_port() -> int:
    """A TCP port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
