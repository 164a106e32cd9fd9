"""Erasure end to end: a real worker and a real trainer, a request, kills, and not a byte of the user left."""

import asyncio
import signal
import sys
import time
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from state.pseudonyms import Pseudonyms
from streams.children import Child
from streams.errors import BrokerError
from streams.forget import Asked, forget
from streams.topics import CHANGELOG, FORGET_USERS, FORGOTTEN_USERS
from tests.streams.event_log import Record, event, event_log, partition_of
from tests.streams.worker_cluster import Cluster, decoded
from tests.streams.worker_process import free_port, wait_for

pytestmark = [pytest.mark.broker, pytest.mark.slow]

ANN = "ann-forget-me-not"
NOW_MS = int(time.time() * 1000)


class Trainer:
    """A trainer of a cluster, which only fills its buffer: it has too little to begin a pass."""

    def __init__(self, cluster: Cluster, pseudonym_key: str) -> None:
        self.port = free_port()
        self.log = cluster.directory / "trainer.log"
        self.home = cluster.directory / "trainer-state"
        with self.log.open("ab") as log:
            self._child = Child(
                [sys.executable, "-m", "streams.cli", "trainer", "--device", "cpu"],
                {
                    **cluster.environment(),
                    "RECSTREAM_STATE_DIR": str(self.home),
                    "RECSTREAM_PSEUDONYM_KEY": pseudonym_key,
                    "RECSTREAM_TRAINER_HTTP_PORT": str(self.port),
                    "RECSTREAM_TRAIN_EVERY_EVENTS": "100000",
                    "RECSTREAM_TRAIN_EVERY_MINUTES": "0",
                },
                log,
                grace_seconds=20,
            )

    def kill(self) -> None:
        self._child.kill()
        self._child.wait(10)


def anns(count: int) -> list[Record]:
    return [event("clicks" if n % 3 else "views", ANN, f"i{n % 50 + 1}", NOW_MS - 1000 + n) for n in range(count)]


def files_with(folder: Path, name: str) -> list[str]:
    """Files that hold a name, wherever in them."""
    found = []
    for path in folder.rglob("*"):
        try:
            if path.is_file() and name.encode() in path.read_bytes():
                found.append(path.name)
        except FileNotFoundError:  # replaced meanwhile
            continue
    return found


def states(cluster: Cluster) -> dict[str, dict[str, Any]]:
    return decoded(cluster.state_records())


def ask(cluster: Cluster, *wait_for_: str, timeout: float = 40) -> Asked:
    return asyncio.run(forget(cluster.settings, [ANN], wait_for_, timeout))[0]


def committed_request(cluster: Cluster, partition: int) -> int | None:
    """The workers' committed offset of a partition of `forget-users`."""

    async def look() -> int | None:
        consumer = AIOKafkaConsumer(
            bootstrap_servers=cluster.bootstrap, group_id=cluster.app_id, enable_auto_commit=False
        )
        try:
            await consumer.start()
            place = TopicPartition(FORGET_USERS, partition)
            consumer.assign([place])
            return await consumer.committed(place)
        finally:
            await consumer.stop()

    return asyncio.run(look())


def send_raw(cluster: Cluster, messages: list[tuple[bytes | None, bytes]]) -> None:
    async def send() -> None:
        async with AIOKafkaProducer(bootstrap_servers=cluster.bootstrap) as producer:
            for key, value in messages:
                await producer.send_and_wait(FORGET_USERS, value, key=key, partition=0)

    asyncio.run(send())


def test_a_user_is_erased_everywhere_and_stays_so_over_kills(small: Cluster, request: pytest.FixtureRequest) -> None:
    """On the embedded broker with pseudonyms, on Kafka without."""
    key = "a secret of this test, and long enough" if request.node.callspec.params["small"] == "embedded" else ""
    name = Pseudonyms(key).name
    quick = {
        "snapshot_interval_seconds": "1",
        "max_resident_users": "12",
        "fusion": "false",
        "exclude": "none",
        "pseudonym_key": key,
    }
    small.produce([*event_log(400, users=60, items=50, seed=3), *anns(30), *event_log(400, users=60, items=50, seed=4)])
    worker, trainer = small.worker(**quick), Trainer(small, key)
    small.wait_committed()
    state = small.directory / "state" / small.app_id
    wait_for(lambda: bool(files_with(state, name(ANN))), 20, small.output)
    wait_for(lambda: files_with(trainer.home, name(ANN)) == ["events.replay"], 20, trainer.log.read_text)
    others = {user: row for user, row in states(small).items() if user != name(ANN)}
    assert states(small)[name(ANN)]["count"] == 30

    asked = ask(small, "worker", "trainer")
    assert [(by, one["found"], one["events_removed"]) for by, one in sorted(asked.receipts.items())] == [
        ("trainer", True, 30), ("worker", True, 30),
    ]  # fmt: skip
    assert small.state_records()[name(ANN)] is None
    assert files_with(state, name(ANN)) == []
    assert files_with(trainer.home, name(ANN)) == []
    assert worker.metrics()["recstream_forgotten_users_total"] == 1

    # A kill before this would begin the erasure again, and take the event below too if that is read with it.
    wait_for(lambda: committed_request(small, asked.partition) == asked.offset + 1, 20, small.output)
    worker.kill()
    trainer.kill()
    worker, trainer = small.worker(**quick), Trainer(small, key)
    worker.wait_ready()
    small.produce([event("clicks", ANN, "i7", NOW_MS), event("clicks", "newcomer", "i7", NOW_MS)])
    small.wait_committed(alive=[worker])
    after = states(small)
    assert after[name(ANN)]["count"] == 1
    assert {user: row for user, row in after.items() if user in others} == others
    lists = {one["user_id"]: one["items"] for one in small.recommendations()}
    assert lists[ANN] == lists["newcomer"]
    wait_for(lambda: files_with(trainer.home, name("newcomer")) == ["events.replay"], 20, trainer.log.read_text)
    trainer.kill()
    assert worker.stop() == 0, worker.output()


@pytest.mark.parametrize("small", ["embedded"], indirect=True)
def test_events_that_waited_before_the_request_never_count(small: Cluster) -> None:
    """The worker was down when the user's events and then the request came: whichever it reads first."""
    small.produce([event("clicks", "other", "i1", NOW_MS), *anns(30)])
    asked = ask(small)
    worker = small.worker()
    small.wait_committed()
    answers = lambda: [orjson.loads(record.value) for record in small.read(FORGOTTEN_USERS)]  # noqa: E731
    wait_for(lambda: bool(answers()), 30, small.output)
    assert answers()[0]["request"] == {"topic": FORGET_USERS, "partition": asked.partition, "offset": asked.offset}
    assert list(states(small)) == ["other"]
    small.produce([event("purchases", ANN, "i3", NOW_MS)])
    small.wait_committed()
    assert states(small)[ANN]["kind_counts"] == [0, 0, 1]
    assert worker.stop() == 0, worker.output()


@pytest.mark.parametrize("small", ["embedded"], indirect=True)
def test_a_worker_killed_before_the_receipt_erases_again(small: Cluster) -> None:
    """A lookup that never ends stands for a kill between the tombstone and the receipt."""
    stuck = small.worker(command=["-c", _NO_LOOKUP])
    small.produce(anns(10))
    small.wait_committed()
    assert states(small)[ANN]["count"] == 10
    asked = ask(small)
    wait_for(lambda: small.state_records()[ANN] is None, 20, small.output)
    wait_for(lambda: stuck.metrics()["recstream_forget_pending"] == 1, 10, small.output)  # told by a later flush
    small.produce(anns(5))  # before the erasure is complete: hers no more
    small.wait_committed()
    forgotten = "recstream_events_total{outcome=forgotten,topic=clicks}"
    wait_for(lambda: stuck.metrics().get(forgotten, 0) > 0, 10, small.output)
    assert small.state_records()[ANN] is None
    stuck.kill()
    worker = small.worker().wait_ready()
    wait_for(lambda: bool(small.read(FORGOTTEN_USERS)), 30, small.output)
    (answer,) = small.read(FORGOTTEN_USERS)
    assert orjson.loads(answer.value)["request"]["offset"] == asked.offset
    assert (answer.key, answer.partition) == (ANN.encode(), partition_of(ANN.encode()))
    assert small.state_records()[ANN] is None
    assert [worker.stop(), stuck.poll()] == [0, -signal.SIGKILL]


_NO_LOOKUP = """
import asyncio
import streams.eraser
from streams.settings import load_settings
from streams.worker import run_worker

async def never(settings, partitions):
    await asyncio.sleep(3600)

streams.eraser.input_ends = never
run_worker(load_settings())
"""


@pytest.mark.parametrize("small", ["embedded"], indirect=True)
def test_requests_that_name_nobody_are_dead_lettered_and_hold_nothing_up(small: Cluster) -> None:
    send_raw(small, [(None, b""), (b"", b""), (b"x" * 257, b""), (b"\xff", b""), (b"nobody", b'{"why": "asked"}')])
    worker = small.worker()
    wait_for(lambda: bool(small.read(FORGOTTEN_USERS)), 30, small.output)
    errors = [letter["error"].split(":")[0] for _, letter in sorted(small.dead_letters().items())]
    assert errors == ["missing-id", "missing-id", "oversized-id", "bad-id"]
    (answer,) = [orjson.loads(record.value) for record in small.read(FORGOTTEN_USERS)]
    assert (answer["user_id"], answer["found"], answer["request"]["offset"]) == ("nobody", False, 4)
    assert [record.value for record in small.read(CHANGELOG)] == [None]
    assert worker.stop() == 0, worker.output()
    again = small.worker().wait_ready()  # answered requests are not read again
    time.sleep(1)
    assert again.stop() == 0, again.output()
    assert len(small.read(FORGOTTEN_USERS)) == 1
    assert len(small.dead_letters()) == 4


@pytest.mark.parametrize("small", ["embedded"], indirect=True)
def test_whoever_waits_without_a_worker_is_told(small: Cluster) -> None:
    with pytest.raises(BrokerError, match="1 of 1 from the worker"):
        ask(small, "worker", timeout=0.5)
