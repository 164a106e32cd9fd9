import fcntl
import os
import pickle
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from aiokafka.record.memory_records import MemoryRecords
from torch import nn

from models.network import Network, NetworkConfig
from models.serving import ServingModel
from models.version import Version
from streams.broker import EmbeddedBroker
from streams.fetch import RecordBatch
from streams.kafka import admin
from streams.settings import Settings, load_settings
from streams.topics import create_topics, describe_topics
from tests.streams.event_log import PARTITIONS, event_log
from tests.streams.secure_kafka import SecureKafka
from tests.streams.snapshot_rig import Rig
from tests.streams.transport_harness import Harness
from tests.streams.worker_cluster import Cluster, Reference, decoded, open_cluster, publish_model


@pytest.fixture(scope="session")
def serving_model() -> Callable[..., ServingModel]:
    """A model of random weights over the items i0, i1, ..."""

    def build(
        cell: str = "gru", hidden: int = 8, items: int = 20, seed: int = 0, fingerprint: int = 77
    ) -> ServingModel:
        config = NetworkConfig(items=items + 1, cell="lstm" if cell == "lstm" else "gru", hidden=hidden, embedding=5)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = Network(config)
            for parameter in network.parameters():
                nn.init.normal_(parameter, std=0.5)
        version = Version(
            name=f"v0001-{fingerprint:08x}", number=1, fingerprint=fingerprint, config=config,
            vocabulary=["", *(f"i{n}" for n in range(items))], weights=network.state_dict(), metrics={}, lineage={},
        )  # fmt: skip
        return ServingModel.from_version(version)

    return build


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[Harness]:
    harness = Harness(tmp_path)
    await harness.start()
    yield harness
    await harness.stop()


Event = tuple[str, str, int, int]
"""User, item, offset, time in ms."""


@pytest.fixture(scope="session")
def record_batch() -> Callable[..., RecordBatch]:
    """What the transport hands over: (user, item, offset, time_ms) events of one topic as fetched records."""

    def build(topic: str, events: Sequence[Event], partition: int = 3) -> RecordBatch:
        values = [
            orjson.dumps({"user_id": user, "item_id": item, "timestamp": time_ms}) for user, item, _, time_ms in events
        ]
        offsets = [offset for _, _, offset, _ in events]
        timestamps = [time_ms + 11 for *_, time_ms in events]
        keys = [user.encode() for user, *_ in events]
        return RecordBatch(topic, partition, offsets, timestamps, keys, values, offsets[-1] + 1 if offsets else 0)

    return build


@pytest.fixture(scope="session")
def read_records() -> Callable[[bytes], list[Any]]:
    """The records of encoded batches as aiokafka's own reader sees them, checksums verified."""

    def read(data: bytes) -> list[Any]:
        records, found = MemoryRecords(bytes(data)), []
        while records.has_next():
            batch = records.next_batch()
            assert batch is not None
            assert batch.validate_crc()
            found += list(batch)
        return found

    return read


@pytest.fixture
def contract_settings(broker: str) -> Iterator[Settings]:
    """Settings of a broker (each there is) on which every topic of the contract is new and empty.

    Their names cannot be made unique, so they are deleted before and after.
    """
    settings = load_settings(brokers=broker, partitions=4)
    _delete_topics(settings)
    create_topics(settings)
    yield settings
    _delete_topics(settings)


def _delete_topics(settings: Settings) -> None:
    names = [state.spec.name for state in describe_topics(settings) if state.partitions]
    if names:
        with admin(settings) as client:
            client.delete_topics(names)
        while any(state.partitions for state in describe_topics(settings)):
            time.sleep(0.05)


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """Made by the first test process that needs it; the others wait for it and read it."""
    common = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        common = common.parent
    made = common / "reference.pickle"
    with (common / "reference.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            made.write_bytes(pickle.dumps(_reference(tmp_path_factory.mktemp("reference"))))
    found = pickle.loads(made.read_bytes())
    assert isinstance(found, Reference)
    return found


def _reference(directory: Path) -> Reference:
    """24,000 events of 1,500 users over 400 items, and what one undisturbed worker makes of them."""
    registry = directory / "registry"
    publish_model(registry, items=400, seed=1)
    records = event_log(24_000, users=1_500, items=400, seed=7)
    with EmbeddedBroker() as embedded, open_cluster(embedded.bootstrap, directory, "reference", registry) as cluster:
        worker = cluster.worker()
        cluster.produce(records)
        cluster.wait_committed(120)
        assert worker.stop() == 0, worker.output()
        states = cluster.state_records()
    assert sum(row["count"] for row in decoded(states).values()) == len(records)
    return Reference(records, registry, states)


@pytest.fixture(params=["embedded", "kafka"])
def cluster(
    request: pytest.FixtureRequest, tmp_path: Path, reference: Reference, unique: Callable[[str], str]
) -> Iterator[Cluster]:
    """Empty topics on an embedded broker of the test's own, or on the session's Kafka."""
    with ExitStack() as stack:
        if request.param == "embedded":
            bootstrap = stack.enter_context(EmbeddedBroker()).bootstrap
        else:
            bootstrap = request.getfixturevalue("kafka_broker")
        yield stack.enter_context(open_cluster(bootstrap, tmp_path, unique("app"), reference.registry))


@pytest.fixture(params=["embedded", "kafka"])
def small(request: pytest.FixtureRequest, tmp_path: Path, unique: Callable[[str], str]) -> Iterator[Cluster]:
    """Empty topics, and a model of 50 items."""
    publish_model(tmp_path / "registry", items=50, seed=1)
    with ExitStack() as stack:
        if request.param == "embedded":
            bootstrap = stack.enter_context(EmbeddedBroker()).bootstrap
        else:
            bootstrap = request.getfixturevalue("kafka_broker")
        yield stack.enter_context(open_cluster(bootstrap, tmp_path, unique("app"), tmp_path / "registry"))


@pytest.fixture(scope="session")
def secure_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureKafka]:
    """A Kafka with TLS that asks for passwords, client certificates or tokens, with all topics."""
    node = SecureKafka(tmp_path_factory.mktemp("secure-kafka"))
    try:
        settings = load_settings(brokers=f"127.0.0.1:{node.ports['internal']}", partitions=PARTITIONS)
        with admin(settings, timeout_seconds=60):
            pass
        create_topics(settings)
        yield node
    finally:
        node.stop()


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[..., Rig]]:
    """Flushes and snapshots, by their settings."""
    made: list[Rig] = []

    def make(**settings: Any) -> Rig:
        made.append(Rig(tmp_path, monkeypatch, **settings))
        return made[-1]

    yield make
    for one in made:
        one.disk.free.set()
        await one.snapshots.stop()
