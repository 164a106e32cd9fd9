"""Topics of a run: created, emptied by deleting and creating again, and counted from the outside by their end offsets."""

import time
from collections.abc import Iterable
from typing import Final

from kafka import KafkaConsumer, TopicPartition
from kafka.admin import KafkaAdminClient, NewTopic
from kafka.errors import KafkaError, TopicAlreadyExistsError, UnknownTopicOrPartitionError

from benchmarks.harness.processes import BenchmarkError

INPUTS: Final = ("clicks", "views", "purchases")
RECOMMENDATIONS: Final = "recommendations"
CHANGELOG: Final = "user-state-changelog"
_CONTRACT: Final = (RECOMMENDATIONS, CHANGELOG, "invalid-events", "items", "model-versions", "forget-users")
_COMPACTED: Final = frozenset({CHANGELOG, "items", "model-versions"})


class Topics:
    """The topics of one broker, all with the same number of partitions."""

    def __init__(self, address: str, partitions: int) -> None:
        self.partitions = partitions
        self._admin = KafkaAdminClient(bootstrap_servers=address, client_id="benchmark")
        self._consumer = KafkaConsumer(bootstrap_servers=address, client_id="benchmark-offsets")

    def close(self) -> None:
        """Close both clients."""
        self._consumer.close()
        self._admin.close()

    def create(self, names: Iterable[str], timeout_seconds: float = 60) -> None:
        """Create topics, waiting for a deletion of the same name to finish.

        Raises:
            BenchmarkError: The broker refuses for longer than the time-out.
        """
        deadline = time.monotonic() + timeout_seconds
        for name in names:
            config = {"cleanup.policy": "compact"} if name in _COMPACTED else {}
            topic = NewTopic(name, 1 if name == "model-versions" else self.partitions, 1, topic_configs=config)
            while True:
                try:
                    self._admin.create_topics([topic])
                    break
                except (TopicAlreadyExistsError, KafkaError) as exc:
                    if time.monotonic() > deadline:
                        raise BenchmarkError(f"Topic {name} could not be created", str(exc), "Read the broker's log") from exc
                    time.sleep(0.2)

    def create_inputs(self) -> None:
        """Create the three input topics."""
        self.create(INPUTS)

    def reset_outputs(self) -> None:
        """Empty every other topic of the contract: a worker that starts now knows no user."""
        self.delete(_CONTRACT)
        self.create(_CONTRACT)

    def delete(self, names: Iterable[str], timeout_seconds: float = 60) -> None:
        """Delete topics that exist and wait until they are gone."""
        present = set(self._admin.list_topics())
        doomed = [name for name in names if name in present]
        if not doomed:
            return
        try:
            self._admin.delete_topics(doomed)
        except UnknownTopicOrPartitionError:
            return
        deadline = time.monotonic() + timeout_seconds
        while set(self._admin.list_topics()) & set(doomed) and time.monotonic() < deadline:
            time.sleep(0.1)

    def ends(self, topic: str) -> dict[int, int]:
        """End offset of each partition of a topic."""
        wanted = [TopicPartition(topic, partition) for partition in range(self.partitions)]
        return {tp.partition: int(offset) for tp, offset in self._consumer.end_offsets(wanted).items()}

    def count(self, topic: str) -> int:
        """How many records a topic has received."""
        return sum(self.ends(topic).values())
