"""Workers that are to start at the end: what is skipped is what stood there before the group's first start, no more."""

import time

import orjson
import pytest
from aiokafka import TopicPartition

from state.events import TOPICS
from streams.kafka import admin
from streams.topics import FORGET_USERS, FORGOTTEN_USERS, RECOMMENDATIONS, TRANSITIONS, topic_specs
from tests.streams.event_log import PARTITIONS, Load, Record, event, partition_of
from tests.streams.worker_cluster import ONE_BROKER, Cluster
from tests.streams.worker_process import Worker, wait_for

pytestmark = [pytest.mark.broker, pytest.mark.slow]

NOW_MS = int(time.time() * 1000)


def clicks(prefix: str, count: int = 60) -> list[Record]:
    return [event("clicks", f"{prefix}{n}", f"i{n % 50 + 1}", NOW_MS) for n in range(count)]


def ask(cluster: Cluster, user: bytes) -> None:
    Load(cluster.bootstrap, [Record(FORGET_USERS, partition_of(user), user, b"", NOW_MS)]).start().finish()


def answered(cluster: Cluster) -> set[str]:
    return {message["user_id"] for message in cluster.recommendations()}


def told(cluster: Cluster) -> set[str]:
    """Whose receipts there are; a kill before the request is committed repeats one."""
    return {orjson.loads(record.value)["user_id"] for record in cluster.read(FORGOTTEN_USERS)}


def lag(worker: Worker) -> dict[str, float]:
    return {name: value for name, value in worker.metrics().items() if name.startswith("recstream_consumer_lag")}


def names(prefix: str, count: int = 60) -> set[str]:
    return {f"{prefix}{n}" for n in range(count)}


@pytest.mark.parametrize("small", ONE_BROKER, indirect=True)
def test_nothing_sent_after_the_first_start_is_skipped(small: Cluster) -> None:
    """Killed before any event came, and again at the first ones; requests to be forgotten wait from before."""
    small.produce(clicks("old"))
    ask(small, b"early")
    worker = small.worker(start_from="latest").wait_ready()
    wait_for(lambda: told(small) == {"early"}, 20, small.output)
    wait_for(lambda: len(lag(worker)) == len(TOPICS) * PARTITIONS, 20, small.output)
    assert set(lag(worker).values()) == {0}
    worker.kill()

    small.produce(clicks("down"))
    ask(small, b"late")
    worker = small.worker(start_from="latest")
    small.wait_committed(alive=[worker])
    assert answered(small) == names("down")
    worker.kill()
    small.produce([event("views", f"views{n}", "i1", NOW_MS) for n in range(60)])
    worker = small.worker(start_from="latest")
    small.wait_committed(alive=[worker])
    wait_for(lambda: told(small) == {"early", "late"}, 20, small.output)
    assert answered(small) == names("down") | names("views")
    assert worker.stop() == 0, worker.output()


@pytest.mark.parametrize("small", ["kafka"], indirect=True)
def test_several_workers_that_start_at_once_skip_nothing_either(small: Cluster) -> None:
    small.produce(clicks("old"))
    workers = [small.worker(start_from="latest") for _ in range(2)]
    wait_for(lambda: all(worker.held() for worker in workers), 60, small.output)
    workers[0].kill()
    small.produce(clicks("new", 300))
    small.wait_committed(alive=workers[1:])
    assert answered(small) == names("new", 300)
    assert workers[1].stop() == 0, workers[1].output()


@pytest.mark.parametrize("small", ["kafka"], indirect=True)  # the embedded broker cannot add partitions
def test_partitions_added_to_the_topics_are_read_from_their_beginning(small: Cluster) -> None:
    small.produce(clicks("old"))
    worker = small.worker(start_from="latest").wait_ready()
    assert worker.stop() == 0, worker.output()
    more = PARTITIONS + 1
    with admin(small.settings) as client:
        wide = {spec.name: more for spec in topic_specs(small.settings) if spec.partitions == PARTITIONS}
        assert TRANSITIONS not in wide and RECOMMENDATIONS in wide
        client.create_partitions(wide)
    small.produce([Record("clicks", PARTITIONS, record.key, record.value, NOW_MS) for record in clicks("grown", 20)])
    worker = small.worker(start_from="latest", partitions=str(more)).wait_ready()
    wait_for(lambda: worker.applied() == 20, 30, small.output)
    small.produce(clicks("new"))
    wait_for(lambda: worker.applied() == 80, 30, small.output)
    assert small.committed()[TopicPartition("clicks", 0)] > 0
    assert worker.stop() == 0, worker.output()
