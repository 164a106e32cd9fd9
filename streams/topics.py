"""The topics this program uses: what they must look like, creating them, and saying what is wrong with them."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from aiokafka.structs import TopicPartition
from kafka.admin import ConfigResource, KafkaAdminClient
from kafka.errors import KafkaError

from state.events import TOPICS
from streams.errors import BrokerError
from streams.kafka import admin, broker_errors
from streams.read_topic import end_offsets, reader
from streams.settings import Settings

RECOMMENDATIONS: Final = "recommendations"
CHANGELOG: Final = "user-state-changelog"
ITEMS: Final = "items"
INVALID_EVENTS: Final = "invalid-events"
FORGET_USERS: Final = "forget-users"
FORGOTTEN_USERS: Final = "forgotten-users"
MODEL_VERSIONS: Final = "model-versions"
TRANSITIONS: Final = "item-transitions"

_TOPIC_EXISTS = 36
_UNKNOWN_TOPIC = 3
# Kafka compacts closed segments only. Small ones bound what a worker has to read to restore: at most one
# segment of superseded records per partition, where the default (1 GiB) would hold hours of them.
_COMPACTED: Final = {"cleanup.policy": "compact", "segment.bytes": "67108864", "min.cleanable.dirty.ratio": "0.2"}


# Not compacted: they name people who asked to be forgotten. To be kept at least as long as events on the input topics:
# who begins anew from those reads the requests as well.
_MONTH: Final = {"retention.ms": str(30 * 24 * 3_600_000)}


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """What a topic must look like."""

    name: str
    partitions: int
    replication: int
    config: dict[str, str] = field(default_factory=dict)

    @property
    def compacted(self) -> bool:
        """Whether Kafka keeps the newest record of each key for ever."""
        return self.config.get("cleanup.policy") == "compact"


@dataclass(frozen=True, slots=True)
class TopicState:
    """What a topic looks like on the broker, against its specification."""

    spec: TopicSpec
    partitions: int = 0  # 0: it does not exist
    replication: int = 0
    cleanup: str = ""  # empty: the broker does not say
    created: bool = False

    @property
    def problem(self) -> str:
        """Why the topic cannot be used as it is; empty when it can."""
        if not self.partitions:
            return "does not exist"
        if self.partitions != self.spec.partitions:
            return f"has {self.partitions} partitions, settings say {self.spec.partitions}"
        if self.cleanup and self.spec.compacted != ("compact" in self.cleanup):
            return f"has cleanup.policy={self.cleanup}, must be {'compact' if self.spec.compacted else 'delete'}"
        return ""

    @property
    def fix(self) -> str:
        """The command that cures the problem; empty when there is none."""
        name = self.spec.name
        if not self.partitions:
            return "recstream topics create"
        if self.partitions != self.spec.partitions:
            if self.spec.partitions == 1:
                return f"delete the topic {name} and run `recstream topics create`"
            return (
                f"set RECSTREAM_PARTITIONS={self.partitions}, or delete the topics and run `recstream topics create` "
                "(adding partitions would move users away from their state)"
            )
        if self.problem:
            return (
                f"kafka-configs --alter --entity-type topics --entity-name {name} --add-config cleanup.policy=compact"
            )
        return ""


def topic_specs(settings: Settings) -> tuple[TopicSpec, ...]:
    """Every topic of the contract.

    All but `model-versions` and `item-transitions` share one partition count: a user's (and an item's) whole life is
    on one partition number.
    """
    extra: dict[str, str] = {"min.insync.replicas": "2"} if settings.replication >= 3 else {}
    many, replication = settings.partitions, settings.replication
    plain = (*TOPICS, RECOMMENDATIONS, INVALID_EVENTS)
    return (
        *(TopicSpec(name, many, replication, dict(extra)) for name in plain),
        *(TopicSpec(name, many, replication, {**_MONTH, **extra}) for name in (FORGET_USERS, FORGOTTEN_USERS)),
        *(TopicSpec(name, many, replication, {**_COMPACTED, **extra}) for name in (ITEMS, CHANGELOG)),
        TopicSpec(MODEL_VERSIONS, 1, replication, {**_COMPACTED, **extra}),
        TopicSpec(TRANSITIONS, 1, replication, {"retention.ms": "86400000", "segment.bytes": "67108864", **extra}),
    )


def describe_topics(settings: Settings) -> list[TopicState]:
    """The state of every topic, in the order of `topic_specs`.

    Raises:
        BrokerError: when Kafka cannot be reached.
    """
    with admin(settings) as client:
        return _states(client, topic_specs(settings))


def changelog_id(settings: Settings) -> str:
    """The broker's id of the changelog topic: another one means another log, whatever its offsets say.

    Raises:
        BrokerError: when Kafka cannot be reached.
    """
    with admin(settings) as client:
        found = {topic["name"]: topic for topic in client.describe_topics()}
    return str(found[CHANGELOG]["topic_id"]) if CHANGELOG in found else ""


def create_topics(settings: Settings) -> list[TopicState]:
    """Create what is missing; what is there already is left as it is.

    Raises:
        BrokerError: when Kafka cannot be reached or refuses, or a topic is there with another partition count or
            without compaction where the contract needs it.
    """
    specs = topic_specs(settings)
    with admin(settings) as client:
        missing = [state.spec for state in _states(client, specs) if not state.partitions]
        if missing:
            reply = client.create_topics(
                {
                    spec.name: {
                        "num_partitions": spec.partitions,
                        "replication_factor": spec.replication,
                        "configs": spec.config,
                    }
                    for spec in missing
                },
                raise_errors=False,
            )
            refused = [topic for topic in reply["topics"] if topic["error_code"] not in (0, _TOPIC_EXISTS)]
            if refused:
                raise BrokerError(
                    what=f"cannot create the topic {refused[0]['name']}",
                    why=str(refused[0]["error_message"] or f"Kafka error {refused[0]['error_code']}"),
                    fix="set RECSTREAM_REPLICATION to at most the number of brokers and check this user's rights",
                )
            client.wait_for_topics([spec.name for spec in missing], timeout_ms=15_000)
        created = {spec.name for spec in missing}
        states = _states(client, specs, created)
    for state in states:
        if state.problem:
            raise BrokerError(
                what=f"the topic {state.spec.name} {state.problem}",
                why="it was created by something else",
                fix=state.fix,
            )
    return states


def _states(
    client: KafkaAdminClient, specs: tuple[TopicSpec, ...], created: set[str] | None = None
) -> list[TopicState]:
    found = {topic["name"]: topic for topic in client.describe_topics() if topic["error_code"] != _UNKNOWN_TOPIC}
    present = [spec.name for spec in specs if spec.name in found]
    cleanup = _cleanup_policies(client, present)
    return [
        TopicState(
            spec,
            partitions=len(found[spec.name]["partitions"]),
            replication=min((len(p["replica_nodes"]) for p in found[spec.name]["partitions"]), default=0),
            cleanup=cleanup.get(spec.name, ""),
            created=spec.name in (created or ()),
        )
        if spec.name in found
        else TopicState(spec)
        for spec in specs
    ]


def _cleanup_policies(client: KafkaAdminClient, names: list[str]) -> dict[str, str]:
    if not names:
        return {}
    try:
        answer: dict[str, Any] = client.describe_configs(
            [ConfigResource("TOPIC", name) for name in names], config_filter="all"
        )
    except KafkaError:  # a user may be allowed to see topics but not their configuration
        return {}
    return {
        name: str(values["cleanup.policy"]["value"])
        for name, values in answer.get("topic", {}).items()
        if "cleanup.policy" in values
    }


async def count_records(settings: Settings, states: Iterable[TopicState]) -> dict[str, int]:
    """Records between the oldest and the newest offset of each topic that exists (compaction leaves holes).

    Raises:
        BrokerError: when Kafka cannot be reached.
    """
    partitions = [TopicPartition(state.spec.name, n) for state in states for n in range(state.partitions)]
    counts = {partition.topic: 0 for partition in partitions}
    if not partitions:
        return counts
    with broker_errors(settings, "read offsets"):
        async with reader(settings, partitions) as consumer:
            oldest = await consumer.beginning_offsets(partitions)
            for partition, end in (await end_offsets(consumer, partitions)).items():
                counts[partition.topic] += max(0, end - oldest[partition])
    return counts


def ensure_topic(settings: Settings, name: str) -> str:
    """Create one internal topic if it is missing; returns why it cannot be used, empty when it can."""
    spec = next(spec for spec in topic_specs(settings) if spec.name == name)
    with admin(settings) as client:
        if name in {topic["name"] for topic in client.describe_topics()}:
            return ""
        reply = client.create_topics(
            {name: {"num_partitions": spec.partitions, "replication_factor": spec.replication, "configs": spec.config}},
            raise_errors=False,
        )
        refused = [topic for topic in reply["topics"] if topic["error_code"] not in (0, _TOPIC_EXISTS)]
        return str(refused[0]["error_message"] or refused[0]["error_code"]) if refused else ""


def require_topics(settings: Settings, names: Iterable[str] = ()) -> None:
    """Check that topics are there and as the contract says, before a client waits for something that never comes.

    Args:
        settings: Brokers and partition count.
        names: Topics to check; all when empty.

    Raises:
        BrokerError: naming the first topic that is wrong, and the command that cures it.
    """
    wanted = set(names)
    for state in describe_topics(settings):
        if state.problem and (not wanted or state.spec.name in wanted):
            raise BrokerError(
                what=f"the topic {state.spec.name} {state.problem}",
                why=f"checked at {settings.brokers}",
                fix=state.fix,
            )
