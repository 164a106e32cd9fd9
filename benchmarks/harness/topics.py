"""Topics of a run: created, and emptied by deleting and creating again."""

import time
from collections.abc import Iterable
from typing import Final

from kafka.admin import KafkaAdminClient, NewTopic
from kafka.errors import KafkaError, UnknownTopicOrPartitionError

from state.events import TOPICS
from streams.errors import BrokerError
from streams.settings import load_settings
from streams.topics import create_topics, topic_specs

_RETRY_SECONDS: Final = 0.2


class Topics:
    """The topics of one broker, all with the same number of partitions."""

    def __init__(self, address: str, partitions: int) -> None:
        self.partitions = partitions
        self._settings = load_settings(brokers=address, partitions=partitions)
        self._admin = KafkaAdminClient(bootstrap_servers=address, client_id="benchmark")

    def close(self) -> None:
        """Close the client."""
        self._admin.close()

    def create(self, name: str) -> None:
        """Create a plain topic."""
        self._admin.create_topics([NewTopic(name, self.partitions, 1)])

    def create_contract(self, timeout_seconds: float = 60) -> None:
        """Create what is missing of recstream's topics, as `recstream topics create` does.

        Raises:
            BrokerError: The broker refuses for longer than the time-out.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            try:
                create_topics(self._settings)
                return
            except (BrokerError, KafkaError):  # a deletion of the same name is not finished
                if time.monotonic() > deadline:
                    raise
                time.sleep(_RETRY_SECONDS)

    def reset_outputs(self) -> None:
        """Empty every topic of the contract but the inputs: a worker that starts now knows no user."""
        self.delete([spec.name for spec in topic_specs(self._settings) if spec.name not in TOPICS])
        self.create_contract()

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
            time.sleep(_RETRY_SECONDS)
