"""Input topics under a worker's feet on a real Kafka: made anew, emptied by retention, given more partitions."""

import time

import pytest
from aiokafka import TopicPartition
from kafka.admin import KafkaAdminClient

from streams.kafka import admin
from streams.topics import create_topics
from tests.streams.event_log import PARTITIONS, Record, event
from tests.streams.worker_cluster import Cluster, decoded
from tests.streams.worker_process import Worker, wait_for

pytestmark = [pytest.mark.broker, pytest.mark.slow]

NOW_MS = int(time.time() * 1000)


def clicks(count: int) -> list[Record]:
    """Of twenty users in turn."""
    return [event("clicks", f"u{n % 20}", f"i{n % 50 + 1}", NOW_MS + n) for n in range(count)]


def make_anew(cluster: Cluster, topic: str) -> None:
    with admin(cluster.settings) as client:
        client.delete_topics([topic])
        wait_for(lambda: not there(client, topic), 60, cluster.output)
    create_topics(cluster.settings)
    cluster.produced.clear()


def there(client: KafkaAdminClient, topic: str) -> bool:
    return any(found["name"] == topic and not found["error_code"] for found in client.describe_topics())


def counted(cluster: Cluster) -> int:
    return sum(row["count"] for row in decoded(cluster.state_records()).values())


def logged(worker: Worker, text: str) -> bool:
    return text in worker.log.read_text()


@pytest.mark.parametrize("small", ["kafka"], indirect=True)
@pytest.mark.parametrize("running", [False, True])
def test_events_of_a_topic_made_anew_are_answered_though_their_offsets_were_there_before(
    small: Cluster, running: bool
) -> None:
    """And after another start, from snapshots or not, none of the old offsets is in the way."""
    worker = small.worker().wait_ready()
    small.produce(clicks(600))
    small.wait_committed()
    if not running:
        assert worker.stop() == 0, worker.output()
    make_anew(small, "clicks")
    if not running:
        worker = small.worker().wait_ready()
    wait_for(lambda: logged(worker, "the topic was made anew"), 90, small.output)
    small.produce(clicks(40))
    wait_for(lambda: len(small.recommendations()) == 640, 90, small.output)
    assert worker.stop() == 0, worker.output()
    assert counted(small) == 640

    for snapshot in (small.directory / "state" / small.app_id).glob("users-*.snapshot"):
        snapshot.unlink()
    worker = small.worker(max_resident_users="6").wait_ready()
    small.produce(clicks(40))
    wait_for(lambda: len(small.recommendations()) == 680, 90, small.output)
    assert worker.stop() == 0, worker.output()
    assert counted(small) == 680


@pytest.mark.parametrize("small", ["kafka"], indirect=True)
def test_events_that_retention_took_before_they_were_read_are_told(small: Cluster) -> None:
    worker = small.worker().wait_ready()
    small.produce(clicks(600))
    small.wait_committed()
    assert worker.stop() == 0, worker.output()
    small.produce(clicks(600))
    with admin(small.settings) as client:
        client.delete_records({TopicPartition("clicks", number): end for number, end in ends(small).items()})
    small.produce(clicks(40))
    worker = small.worker()
    small.wait_committed()
    assert worker.stop() == 0, worker.output()
    assert len(small.recommendations()) == 640
    for number, end in ends(small, 1200).items():
        assert logged(worker, f"clicks/{number} is read on from {end}, not from {end // 2}: Kafka deleted")


def ends(cluster: Cluster, count: int | None = None) -> dict[int, int]:
    """Partition -> its end after the first so many records."""
    places = [record.partition for record in cluster.produced[:count]]
    return {number: places.count(number) for number in range(PARTITIONS) if number in places}
