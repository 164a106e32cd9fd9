"""SIGTERM while the broker is gone or does not answer: a worker that finished what it took ends well, no other does."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from streams.broker import EmbeddedBroker
from tests.streams.event_log import event_log
from tests.streams.worker_cluster import Cluster, publish_model
from tests.streams.worker_process import Worker, wait_for

pytestmark = [pytest.mark.broker, pytest.mark.slow]
EVENTS = 300


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as broker:
        yield broker


@pytest.fixture
def cluster(broker: EmbeddedBroker, tmp_path: Path) -> Iterator[Cluster]:
    publish_model(tmp_path / "registry", items=50, seed=1)
    cluster = Cluster(broker.bootstrap, tmp_path, "stop", tmp_path / "registry")
    cluster.make_topics()
    yield cluster
    cluster.close()


def ready(cluster: Cluster, **settings: str) -> Worker:
    """A ready worker with events to read."""
    worker = cluster.worker(rebalance_timeout_seconds="3", **settings).wait_ready()
    cluster.produce(event_log(EVENTS, users=60, items=50, seed=7))
    return worker


def test_a_worker_that_has_committed_everything_needs_no_broker_to_stop(broker, cluster):
    """Its fetches fail every 0.1 s, and so does leaving the group."""
    worker = ready(cluster)
    cluster.wait_committed()
    broker.stop()
    wait_for(lambda: "Failed fetch messages" in worker.output(), 10, worker.output)
    started = time.monotonic()
    assert worker.stop() == 0, worker.output()
    assert time.monotonic() - started < 10
    assert "Traceback" not in worker.output()


def test_a_broker_that_does_not_answer_makes_no_failure_of_a_stop(broker, cluster):
    first = ready(cluster)
    second = cluster.worker(rebalance_timeout_seconds="3").wait_ready()  # aiokafka leaves from the second generation on
    wait_for(lambda: first.held() and second.held(), 20, cluster.output)
    cluster.wait_committed()
    assert broker.pid is not None
    os.kill(broker.pid, signal.SIGSTOP)
    try:
        assert cluster.stop() == [0, 0], cluster.output()
    finally:
        os.kill(broker.pid, signal.SIGCONT)
    assert cluster.output().count("with all that it took finished") == 2


def test_a_stop_that_cannot_make_durable_what_was_taken_is_a_failure(broker, cluster):
    worker = ready(cluster, commit_interval_seconds="60")
    wait_for(lambda: len(cluster.recommendations()) == EVENTS, 40, worker.output)
    broker.stop()
    assert worker.stop() == 1, worker.output()
    assert "could not finish" in worker.log.read_text()
