"""Whole workers as processes: one is killed, suspended, slow, cut off or restarted, and nothing is lost.

State is compared record by record with what one worker that nothing happened to made of the same input, all fields, bit
by bit: a step's arithmetic does not depend on how the stream is cut into batches.
"""

import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from state.events import TOPICS
from streams.broker import EmbeddedBroker
from streams.topics import CHANGELOG
from tests.streams.event_log import PARTITIONS, Load, Record, event
from tests.streams.worker_cluster import (
    ONE_BROKER,
    SESSION_SECONDS,
    Cluster,
    Reference,
    assert_nothing_lost,
    open_cluster,
)
from tests.streams.worker_process import wait_for

if TYPE_CHECKING:
    from tests.conftest import KafkaNode

pytestmark = [pytest.mark.broker, pytest.mark.slow]


def test_one_of_three_workers_is_killed_under_load_and_a_new_one_joins(cluster: Cluster, reference: Reference) -> None:
    workers = [cluster.worker() for _ in range(3)]
    wait_for(lambda: all(worker.held() for worker in workers), 60, cluster.output)
    load = cluster.load(reference.records, rate=3_000)
    wait_for(lambda: load.sent > len(reference.records) // 4, 30, cluster.output)
    assert workers[1].applied() > 0
    workers[1].kill()
    assert load.sent < len(reference.records) // 2, "the load was over before the kill"
    newcomer = cluster.worker()
    load.finish()
    cluster.wait_committed()
    newcomer.wait_ready()

    assert_nothing_lost(cluster, reference)
    assert cluster.stop() == [0, -signal.SIGKILL, 0, 0], cluster.output()


@pytest.mark.parametrize("cluster", ONE_BROKER, indirect=True)
def test_a_suspended_worker_comes_back(cluster: Cluster, reference: Reference) -> None:
    """Stopped for longer than its session: the other takes over, and what it held must not be written over."""
    suspended, other = cluster.worker(), cluster.worker()
    wait_for(lambda: bool(suspended.held() and other.held()), 60, cluster.output)
    load = cluster.load(reference.records, rate=2_500)
    wait_for(lambda: suspended.applied() > 500, 20, cluster.output)
    suspended.signal(signal.SIGSTOP)
    time.sleep(SESSION_SECONDS + 3)
    suspended.signal(signal.SIGCONT)
    load.finish()
    cluster.wait_committed()
    wait_for(lambda: suspended.ready() and bool(suspended.held()), 30, cluster.output)

    assert_nothing_lost(cluster, reference)
    late = [event("clicks", f"late{n}", "i1", reference.records[-1].timestamp_ms) for n in range(60)]
    before = suspended.applied()
    cluster.produce(late)
    cluster.wait_committed()
    assert suspended.applied() > before
    assert cluster.stop() == [0, 0], cluster.output()


@pytest.mark.parametrize("cluster", ONE_BROKER, indirect=True)
def test_what_a_worker_wrote_too_late_is_written_over(cluster: Cluster, reference: Reference) -> None:
    """As by one suspended between its look at the group and its write: old records appear behind newer ones."""
    worker = cluster.worker().wait_ready()
    half = len(reference.records) // 2
    cluster.load(reference.records[:half]).finish()
    cluster.wait_committed()
    first: dict[int, Record] = {}
    for one in cluster.read(CHANGELOG):
        late = Record(CHANGELOG, one.partition, one.key, one.value, one.timestamp)
        first.setdefault(one.partition, late)
    assert len(first) == PARTITIONS
    Load(cluster.bootstrap, list(first.values())).start().finish()
    cluster.load(reference.records[half:]).finish()
    cluster.wait_committed()
    assert_nothing_lost(cluster, reference)
    assert "writing it again" in worker.log.read_text()
    assert cluster.stop() == [0], cluster.output()


@pytest.mark.parametrize("cluster", ["embedded"], indirect=True)
def test_a_worker_whose_batch_takes_longer_than_its_session_goes_on(cluster: Cluster, reference: Reference) -> None:
    """Nothing is polled meanwhile, which must not count as dead: aiokafka would leave the group and not join again."""
    worker = cluster.worker(command=["-c", _STALLING.format(seconds=SESSION_SECONDS + 3)]).wait_ready()
    cluster.load(reference.records, rate=6_000).finish()
    cluster.wait_committed()
    assert "the stalled batch goes on" in worker.log.read_text()
    assert worker.ready()
    assert_nothing_lost(cluster, reference)
    assert worker.stop() == 0, worker.output()


_STALLING = """
import time
from streams.compute import Compute
from streams.settings import load_settings
from streams.worker import run_worker

step, stalled = Compute.round, []

def stalling(self, work):
    if sum(len(partition.store) for partition, _ in work) > 50 and not stalled:  # the warm-up has three users
        stalled.append(True)
        time.sleep({seconds})
        print("the stalled batch goes on", flush=True)
    return step(self, work)

Compute.round = stalling
run_worker(load_settings())
"""


def test_a_broker_that_dies_and_comes_back(tmp_path: Path, reference: Reference, kafka_node: "KafkaNode") -> None:
    third = len(reference.records) // 3
    with open_cluster(kafka_node.bootstrap, tmp_path, "app", reference.registry) as cluster:
        worker = cluster.worker().wait_ready()
        cluster.produce(reference.records[:third])
        cluster.wait_committed()
        cluster.produce(reference.records[third : 2 * third])
        kafka_node.kill()
        time.sleep(1)
        kafka_node.start()
        cluster.produce(reference.records[2 * third :])
        cluster.wait_committed(90)
        assert worker.poll() is None
        assert_nothing_lost(cluster, reference)
        assert worker.stop() == 0, worker.output()


def test_a_worker_without_its_broker_can_be_stopped(tmp_path: Path, reference: Reference) -> None:
    with EmbeddedBroker() as broker:
        cluster = Cluster(broker.bootstrap, tmp_path, "app", reference.registry)
        cluster.make_topics()
        worker = cluster.worker().wait_ready()
        cluster.produce(reference.records)
        wait_for(lambda: worker.applied() > 0, 20, cluster.output)
    try:
        worker.terminate()
        assert worker.ended(40) in (0, 1)
    finally:
        cluster.close()


@pytest.mark.parametrize("cluster", ONE_BROKER, indirect=True)
def test_restarts_from_the_snapshot_and_from_the_changelog(cluster: Cluster, reference: Reference) -> None:
    """Stop, start from snapshots, stop, start without them, each time going on with the log; then read it all again.

    The second and the third worker keep 60 users in memory and the others on disk.
    """
    third = len(reference.records) // 3
    cluster.produce(reference.records[:third])
    first = cluster.worker()
    cluster.wait_committed()
    assert first.stop() == 0, first.output()
    assert cluster.committed() == cluster.log_end()
    snapshots = sorted((cluster.directory / "state" / cluster.app_id).glob("users-*.snapshot"))
    assert len(snapshots) == PARTITIONS

    users = len(cluster.state_records())
    second = cluster.worker(max_resident_users="60").wait_ready()
    metrics = second.metrics()
    assert metrics["recstream_restore_users{source=snapshot}"] == users
    assert metrics["recstream_restore_records_total{source=changelog}"] == 0
    assert metrics["recstream_users{tier=resident}"] <= 60
    assert metrics["recstream_users{tier=cold}"] >= users - 60
    cluster.produce(reference.records[third : 2 * third])
    cluster.wait_committed()
    assert second.stop() == 0, second.output()

    for number, snapshot in enumerate(snapshots):  # half are gone, half are damaged
        if number % 2:
            snapshot.unlink()
        else:
            snapshot.write_bytes(snapshot.read_bytes()[:-300] + bytes(300))
    records = len(cluster.read(CHANGELOG))
    last = cluster.worker(max_resident_users="60").wait_ready()
    metrics = last.metrics()
    assert metrics.get("recstream_restore_users{source=snapshot}", 0) == 0
    assert metrics["recstream_restore_records_total{source=changelog}"] == records
    assert metrics["recstream_restore_bad_records_total"] == 0
    cluster.produce(reference.records[2 * third :])
    cluster.wait_committed()
    metrics = last.metrics()
    assert metrics["recstream_users{tier=resident}"] + metrics["recstream_users{tier=cold}"] == len(reference.states)
    assert last.stop() == 0, last.output()
    assert_nothing_lost(cluster, reference)
    assert max(cluster.answered().values()) == 1, "a clean stop repeats nothing"

    # A group that never committed reads the log again: every event is known, and nothing is written twice.
    records, sent = len(cluster.read(CHANGELOG)), len(cluster.recommendations())
    cluster.app_id += "-again"
    again = cluster.worker()
    cluster.wait_committed()
    metrics = again.metrics()
    assert sum(metrics[f"recstream_events_total{{outcome=duplicate,topic={topic}}}"] for topic in TOPICS) == len(
        reference.records
    )
    assert again.stop() == 0, again.output()
    assert (len(cluster.read(CHANGELOG)), len(cluster.recommendations())) == (records, sent)
