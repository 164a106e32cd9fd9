"""Brokers for the tests marked `broker`: the embedded one always, a real Kafka where KAFKA_HOME names its jars.

KAFKA_HOME is the directory of a Kafka 4 release (its `libs/*.jar`), and `java` is on the path. Each broker starts once
per test session, so tests use topic and group names of their own: the fixture `unique` makes them.
"""

import os
import shutil
import socket
import subprocess
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import hypothesis
import pytest

from streams.broker import EmbeddedBroker, answers

with warnings.catch_warnings():  # kafka-python 3.0.12 reads its schemas with importlib.resources.read_text
    warnings.simplefilter("ignore", DeprecationWarning)
    from kafka.admin import KafkaAdminClient

# A kernel compiles in its first example, and a busy machine takes its time: no property is about that.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

_KAFKA_SETTINGS = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
log.dirs={data}
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
log.cleaner.backoff.ms=1000
log.retention.ms=-1
num.network.threads=2
num.io.threads=4
"""
_KAFKA_LOGGING = "Configuration: {status: warn, Loggers: {Root: {level: error}}}\n"
_CLUSTER_ID = "MkU3OEVBNTcwNTJENDM2Qk"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: begun last, they would keep one process busy while the others have nothing left."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def embedded_broker() -> Iterator[str]:
    """Bootstrap address of the embedded broker (in memory)."""
    with EmbeddedBroker() as broker:
        yield broker.bootstrap


class KafkaNode:
    """One Apache Kafka node (KRaft) from the jars of KAFKA_HOME, which may be killed and started again on its data."""

    def __init__(self, directory: Path) -> None:
        home = os.environ.get("KAFKA_HOME", "")
        if not home or not any(Path(home, "libs").glob("kafka*.jar")):
            pytest.skip("KAFKA_HOME does not name a Kafka release (a directory with libs/*.jar)")
        if shutil.which("java") is None:
            pytest.skip("a real Kafka needs java 17 or newer on the path")
        port, controller = _free_port(), _free_port()
        self.bootstrap = f"127.0.0.1:{port}"
        self._settings, self._output = directory / "server.properties", directory / "output.log"
        self._settings.write_text(_KAFKA_SETTINGS.format(port=port, controller=controller, data=directory / "data"))
        logging = directory / "log4j2.yaml"
        logging.write_text(_KAFKA_LOGGING)
        self._java = [  # without C2: compiling for a long life costs more than such short ones run
            "java", "-Xms64m", "-Xmx768m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
            f"-Dlog4j2.configurationFile={logging}", "-cp", f"{home}/libs/*",
        ]  # fmt: skip
        subprocess.run(
            [
                *self._java, "kafka.tools.StorageTool", "format", "--cluster-id", _CLUSTER_ID,
                "--config", str(self._settings),
            ],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start and wait until it answers."""
        with self._output.open("ab") as log:
            self._process = subprocess.Popen([*self._java, "kafka.Kafka", str(self._settings)], stdout=log, stderr=log)
        _wait_until_ready(self.bootstrap, self._process, self._output)

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """Stop it cleanly, or not when that takes long."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.kill()


@pytest.fixture(scope="session")
def kafka_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Bootstrap address of one Apache Kafka node."""
    node = KafkaNode(tmp_path_factory.mktemp("kafka"))
    try:
        node.start()
        yield node.bootstrap
    finally:
        node.stop()


@pytest.fixture
def kafka_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaNode]:
    """A running node of the test's own, to be killed."""
    node = KafkaNode(tmp_path_factory.mktemp("kafka-node"))
    try:
        node.start()
        yield node
    finally:
        node.stop()


def _host_port(bootstrap: str) -> tuple[str, int]:
    host, _, port = bootstrap.rpartition(":")
    return host, int(port)


def _wait_until_ready(bootstrap: str, process: "subprocess.Popen[bytes]", output: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"Kafka ended with status {process.returncode}:\n{output.read_text()[-3000:]}")
        if answers(*_host_port(bootstrap)):
            return
        time.sleep(0.3)
    pytest.fail(f"Kafka did not come up in 60 s:\n{output.read_text()[-3000:]}")


@pytest.fixture(params=["embedded", "kafka"])
def broker(request: pytest.FixtureRequest) -> str:
    """Bootstrap address `host:port`; a test using it runs on the embedded broker and on a real Kafka."""
    return str(request.getfixturevalue(f"{request.param}_broker"))


@pytest.fixture
def unique() -> Callable[[str], str]:
    """A name of this test's own, for topics and groups: brokers are shared by the whole session."""
    suffix = uuid.uuid4().hex[:8]
    return lambda name: f"{name}-{suffix}"


@pytest.fixture(scope="session")
def make_topics() -> Callable[[str, Iterable[str], int], None]:
    """`make_topics(bootstrap, names, partitions)` creates topics and waits until they have leaders."""

    def make(bootstrap: str, names: Iterable[str], partitions: int) -> None:
        wanted = list(names)
        admin = KafkaAdminClient(bootstrap_servers=bootstrap)
        try:
            admin.create_topics(
                {name: {"num_partitions": partitions, "replication_factor": 1} for name in wanted},
                wait_for_metadata=True,
            )
        finally:
            admin.close()

    return make
