"""The transport against running brokers: nothing is lost and offsets keep advancing through rebalances and a crash."""

import asyncio
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

pytestmark = [pytest.mark.broker, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
PARTITIONS = 4
Topics = Callable[[str, Iterable[str], int], None]


class Group:
    """What the broker knows about a consumer group, and the workers a test started in it."""

    def __init__(self, bootstrap: str, name: str, topics: list[str], directory: Path) -> None:
        self.bootstrap, self.name, self.topics, self.directory = bootstrap, name, topics, directory
        self.workers: list[subprocess.Popen[bytes]] = []
        # Counted here: the embedded broker reports the last batch's first offset + 1 as the end of the log.
        self.end = {TopicPartition(topic, number): 0 for topic in topics for number in range(PARTITIONS)}

    async def produce(self, count: int) -> None:
        """Spread `count` records evenly over all partitions of the topics."""
        producer = AIOKafkaProducer(bootstrap_servers=self.bootstrap)
        await producer.start()
        try:
            sends = []
            for partition in self.end:
                left = count // len(self.end)
                self.end[partition] += left
                while left:
                    batch = producer.create_batch()
                    for number in range(min(left, 250)):
                        batch.append(key=b"u%d" % number, value=b'{"item_id":"i1"}', timestamp=1_700_000_000_000)
                    left -= batch.record_count()
                    sends.append(await producer.send_batch(batch, partition.topic, partition=partition.partition))
            await asyncio.gather(*sends)
        finally:
            await producer.stop()

    def start_worker(
        self, delay_seconds: float = 0.0, isolation_level: str = "read_uncommitted"
    ) -> "subprocess.Popen[bytes]":
        """A worker process; `delay_seconds` is the work each batch costs."""
        log = self.directory / f"worker{len(self.workers)}.log"
        command = [
            sys.executable, str(ROOT / "tests/streams/transport_worker.py"),
            self.bootstrap, self.name, str(log), ",".join(self.topics), str(delay_seconds), isolation_level,
        ]  # fmt: skip
        with log.with_suffix(".out").open("wb") as output:
            worker = subprocess.Popen(command, cwd=ROOT, env=_environment(), stdout=output, stderr=output)
        self.workers.append(worker)
        return worker

    def seen(self, worker: int | None = None) -> Counter[tuple[str, int, int]]:
        """(topic, partition, offset) -> times acknowledged, by one worker or by all."""
        counts: Counter[tuple[str, int, int]] = Counter()
        for index in range(len(self.workers)) if worker is None else [worker]:
            log = self.directory / f"worker{index}.log"
            for line in log.read_text().splitlines() if log.exists() else []:
                topic, partition, offsets = line.split(" ")
                counts.update((topic, int(partition), int(offset)) for offset in offsets.split(","))
        return counts

    async def committed(self) -> dict[TopicPartition, int]:
        """Committed offset of each partition; 0: none."""
        consumer = AIOKafkaConsumer(bootstrap_servers=self.bootstrap, group_id=self.name, enable_auto_commit=False)
        await consumer.start()
        try:
            consumer.assign(list(self.end))
            return {partition: await consumer.committed(partition) or 0 for partition in self.end}
        finally:
            await consumer.stop()

    async def wait(self, until: Callable[[], bool], what: str, timeout_seconds: float = 45) -> None:
        """Wait for a condition; fails with the workers' output."""
        deadline = time.monotonic() + timeout_seconds
        while not until():
            if time.monotonic() > deadline or any((worker.poll() or 0) > 0 for worker in self.workers):
                pytest.fail(f"{what}: not within {timeout_seconds} s\n{self.output()}")
            await asyncio.sleep(0.1)

    async def wait_committed(self, timeout_seconds: float = 60) -> None:
        """Wait until every record in the log is committed."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            committed = await self.committed()
            if committed == self.end:
                return
            if time.monotonic() > deadline or any((worker.poll() or 0) > 0 for worker in self.workers):
                pytest.fail(f"committed {committed}, log end {self.end}\n{self.output()}")
            await asyncio.sleep(0.3)

    def output(self) -> str:
        """The end of each worker's output."""
        return "\n".join(path.read_text()[-3000:] for path in sorted(self.directory.glob("*.out")))


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def _group(
    bootstrap: str, make_topics: Topics, unique: Callable[[str], str], directory: Path, topics: list[str]
) -> Iterator[Group]:
    names = [unique(topic) for topic in topics]
    make_topics(bootstrap, names, PARTITIONS)
    group = Group(bootstrap, unique("group"), names, directory)
    yield group
    for worker in group.workers:
        if worker.poll() is None:
            worker.kill()
        worker.wait()


@pytest.fixture
def group(broker: str, make_topics: Topics, unique: Callable[[str], str], tmp_path: Path) -> Iterator[Group]:
    yield from _group(broker, make_topics, unique, tmp_path, ["clicks", "views"])


@pytest.fixture
def transactional(
    kafka_broker: str, make_topics: Topics, unique: Callable[[str], str], tmp_path: Path
) -> Iterator[Group]:
    yield from _group(kafka_broker, make_topics, unique, tmp_path, ["clicks"])


async def test_a_worker_joins_and_one_is_killed(group: Group) -> None:
    """50,000 records over 8 partitions; offsets reach the log end after each rebalance, nothing is missing."""
    await group.produce(16_000)
    first = group.start_worker(delay_seconds=0.02)
    await group.wait(lambda: len(group.seen()) > 2_000, "the first worker reads")

    group.start_worker(delay_seconds=0.02)
    await group.produce(4_000)
    for _ in range(25):  # something to read whenever the join is over
        if group.seen(1):
            break
        await group.produce(400)
        await asyncio.sleep(0.5)
    assert group.seen(1), f"the second worker got no partitions\n{group.output()}"
    await group.wait_committed()
    assert max(group.seen().values()) == 1, "a hand-over repeats nothing"

    await group.produce(50_000 - sum(group.end.values()))
    before = len(group.seen(0))
    await group.wait(lambda: len(group.seen(0)) > before, "the first worker goes on")
    first.send_signal(signal.SIGKILL)
    await group.wait_committed()

    assert sum(group.end.values()) == 50_000
    produced = {(*partition, offset) for partition, end in group.end.items() for offset in range(end)}
    missing = produced - group.seen().keys()
    assert not missing


async def test_a_stopped_worker_commits_what_it_acknowledged(group: Group) -> None:
    """SIGTERM in mid-stream: the committed offset is the end of what was acknowledged, no more and no less."""
    await group.produce(40_000)
    worker = group.start_worker(delay_seconds=0.05)
    await group.wait(lambda: len(group.seen()) > 4_000, "the worker reads")
    worker.send_signal(signal.SIGTERM)
    await group.wait(lambda: worker.poll() is not None, "the worker stops")
    assert worker.returncode == 0, group.output()

    acknowledged = dict.fromkeys(group.end, 0)
    for topic, number, offset in group.seen():
        partition = TopicPartition(topic, number)
        acknowledged[partition] = max(acknowledged[partition], offset + 1)
    committed = await group.committed()
    assert committed == acknowledged
    assert sum(committed.values()) < 40_000
    assert max(group.seen().values()) == 1


@pytest.mark.parametrize("isolation_level", ["read_committed", "read_uncommitted"])
async def test_transactions(transactional: Group, isolation_level: str) -> None:
    """Aborted records arrive only where they were asked for; offsets pass over the markers to the end of the log."""
    partition = TopicPartition(transactional.topics[0], 2)
    producer = AIOKafkaProducer(bootstrap_servers=transactional.bootstrap, transactional_id=transactional.name)
    await producer.start()
    for number in range(6):
        await producer.begin_transaction()
        for _ in range(10):
            await producer.send_and_wait(*partition[:1], b"{}", key=b"u", partition=partition.partition)
        if number % 2:
            await producer.abort_transaction()
        else:
            await producer.commit_transaction()
        transactional.end[partition] += 11  # the records and the marker
    await producer.stop()

    transactional.start_worker(isolation_level=isolation_level)
    await transactional.wait_committed()
    offsets = {offset for *_, offset in transactional.seen()}
    aborted = {number * 11 + index for number in (1, 3, 5) for index in range(10)}
    committed = {number * 11 + index for number in (0, 2, 4) for index in range(10)}
    assert offsets == (committed if isolation_level == "read_committed" else committed | aborted)
