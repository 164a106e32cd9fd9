"""One benchmark run: a temporary directory, a broker, its topics and a published model, all gone at the end."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from benchmarks.harness import contenders, processes
from benchmarks.harness.broker import Broker, running_broker
from benchmarks.harness.contenders import Contender, Place
from benchmarks.harness.counting import counting
from benchmarks.harness.measure import Speed, middle_speed, watch
from benchmarks.harness.model import publish
from benchmarks.harness.processes import Cores, Measured
from benchmarks.harness.topics import Topics
from streams.topics import RECOMMENDATIONS

PARTITIONS = 8


@dataclass(frozen=True, slots=True)
class Bench:
    """What a benchmark works with."""

    broker: Broker
    cores: Cores
    topics: Topics
    place: Place

    @contextmanager
    def started(self, contender: Contender) -> Iterator[Measured]:
        """Run a contender on its core with an empty output topic."""
        if contender.output == RECOMMENDATIONS:
            self.topics.reset_outputs()
        else:
            self.topics.create(contender.output)
        with self.resumed(contender) as process:
            yield process

    @contextmanager
    def resumed(self, contender: Contender) -> Iterator[Measured]:
        """Run a contender on its core, topics as they are."""
        log = self.place.directory / f"{contender.name}.log"
        with processes.running(
            contender.name, contender.argv, cores=self.cores.measured, log=log, env=contender.env
        ) as process:
            yield process

    def speed(self, contender: Contender, target: int) -> Speed:
        """Run a contender over the log that is in the input topics until it has answered `target` events."""
        with self.started(contender) as process:
            with counting(self.broker, contender.output, self.place.partitions) as counter:
                growth = watch(counter.count, process, target)
            resident = process.resident_bytes()
        if contender.output != RECOMMENDATIONS:
            self.topics.delete([contender.output])
        return middle_speed(growth, target, resident)

    def wait_ready(self, contender: Contender, process: Measured, timeout_seconds: float = 120) -> None:
        """Wait until a worker's /health/ready says yes."""
        processes.wait_until(
            lambda: http_get(contender.http_port, "/health/ready")[0] == 200, process, timeout_seconds, "ready"
        )


def http_get(port: int, path: str) -> tuple[int, str]:
    """Status and body of a GET on this machine; status 0 when nobody answers."""
    try:
        with urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return int(answer.status), answer.read().decode()
    except URLError as exc:
        return int(getattr(exc, "code", 0)), ""
    except OSError:
        return 0, ""


@contextmanager
def bench() -> Iterator[Bench]:
    """Set a run up and take it down, also on Ctrl-C or TERM."""
    cores = processes.split_cores()
    available = os.sched_getaffinity(0)
    directory = Path(tempfile.mkdtemp(prefix="recstream-bench-"))
    with ExitStack() as stack:
        stack.enter_context(processes.unwinding_on_term())
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        stack.callback(os.sched_setaffinity, 0, available)
        version = publish(directory / "registry")
        broker = stack.enter_context(running_broker(directory / "broker", cores.others))
        os.sched_setaffinity(0, cores.others)
        topics = Topics(broker.address, PARTITIONS)
        stack.callback(topics.close)
        topics.create_contract()
        yield Bench(broker, cores, topics, Place(broker.address, PARTITIONS, version, directory))


ContenderOf = Callable[[Place, str], Contender]
CONTENDERS: dict[str, ContenderOf] = {
    "recstream": contenders.recstream_neural,
    "recstream_fused": contenders.recstream_fused,
    "bare_loop": contenders.bare_loop,
    "quix": contenders.quix_app,
    "plain_faust": contenders.plain_faust,
}
