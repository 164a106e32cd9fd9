"""Whole workers whose disk is slow: nobody waits for it, and a kill while snapshots are written loses nothing."""

import signal
import time

import pytest

from tests.streams.event_log import PARTITIONS
from tests.streams.worker_cluster import ONE_BROKER, Cluster, Reference, assert_nothing_lost
from tests.streams.worker_process import wait_for

pytestmark = [pytest.mark.broker, pytest.mark.slow]
_LATE = 1_000  # events, sent when every worker holds partitions

_SLOW = """
import os, time
from streams.settings import load_settings
from streams.worker import run_worker

fsync = os.fsync

def slow(file):
    time.sleep({seconds})
    fsync(file)

os.fsync = slow
run_worker(load_settings())
"""


def slow(seconds: float) -> list[str]:
    return ["-c", _SLOW.format(seconds=seconds)]


@pytest.mark.parametrize("cluster", ["embedded"], indirect=True)
def test_no_commit_waits_for_a_slow_disk(cluster: Cluster, reference: Reference) -> None:
    worker = cluster.worker(command=slow(5.0), snapshot_interval_seconds="1").wait_ready()
    begun = time.monotonic()
    for burst in range(6):
        cluster.produce(reference.records[1000 * burst : 1000 * (burst + 1)])
        cluster.wait_committed()
        time.sleep(0.7)
    assert time.monotonic() - begun < 5 * PARTITIONS, "as long as all snapshots take"
    started = time.monotonic()
    assert worker.stop() == 0, worker.output()
    assert time.monotonic() - started < 15
    assert "did not take all snapshots" in worker.output()


@pytest.mark.parametrize("cluster", ONE_BROKER, indirect=True)  # what is tried is the disk; 45 s on each broker
def test_workers_killed_while_they_write_snapshots(cluster: Cluster, reference: Reference) -> None:
    """On one host: they share a directory, and what one was writing another begins anew."""
    often = {"snapshot_interval_seconds": "0.3"}
    command = slow(0.4)
    workers = [cluster.worker(command=command, **often) for _ in range(2)]
    wait_for(lambda: all(worker.held() for worker in workers), 60, cluster.output)
    first, last = reference.records[:-_LATE], reference.records[-_LATE:]
    load = cluster.load(first, rate=1_200)
    for kill in range(1, 4):
        wait_for(lambda kill=kill: load.sent > kill * len(first) // 5, 60, cluster.output)
        victim = workers.pop(0)
        victim.kill()
        workers.append(cluster.worker(command=command, **often))
    load.finish()
    wait_for(lambda: all(worker.held() for worker in workers), 60, cluster.output)
    cluster.produce(last)  # so that the last one to join has something to write, however late it came
    cluster.wait_committed()
    assert_nothing_lost(cluster, reference)
    written = "recstream_snapshots_total{result=written}"
    wait_for(lambda: all(worker.metrics().get(written, 0) for worker in workers), 60, cluster.output)
    assert sum(worker.metrics().get("recstream_restore_users{source=snapshot}", 0) for worker in workers)
    assert cluster.stop()[-2:] == [0, 0], cluster.output()
    assert [worker.poll() for worker in cluster.workers].count(-signal.SIGKILL) == 3
    worker = cluster.worker().wait_ready()
    assert worker.metrics()["recstream_users{tier=resident}"] == len(reference.states)
    if not any("did not take all snapshots" in one.log.read_text() for one in cluster.workers):  # a busy machine
        assert worker.metrics()["recstream_restore_users{source=snapshot}"] == len(reference.states)
        assert worker.metrics()["recstream_restore_records_total{source=changelog}"] == 0
    assert worker.stop() == 0, worker.output()
