import asyncio

import pytest
from aiokafka import AIOKafkaProducer

from streams.broker import EmbeddedBroker
from streams.errors import BrokerError
from streams.kafka import admin
from streams.settings import load_settings
from streams.topics import (
    CHANGELOG,
    ITEMS,
    MODEL_VERSIONS,
    TRANSITIONS,
    TopicState,
    count_records,
    create_topics,
    describe_topics,
    require_topics,
    topic_specs,
)


@pytest.fixture
def fresh():
    with EmbeddedBroker() as broker:
        yield broker.bootstrap


def test_the_contract():
    specs = {spec.name: spec for spec in topic_specs(load_settings(partitions=12, replication=3))}
    assert sorted(specs) == [
        "clicks", "forget-users", "forgotten-users", "invalid-events", "item-transitions", "items", "model-versions",
        "purchases", "recommendations", "user-state-changelog", "views",
    ]  # fmt: skip
    assert {name for name, spec in specs.items() if spec.compacted} == {ITEMS, CHANGELOG, MODEL_VERSIONS}
    assert {spec.partitions for name, spec in specs.items() if name not in (MODEL_VERSIONS, TRANSITIONS)} == {12}
    assert specs[MODEL_VERSIONS].partitions == specs[TRANSITIONS].partitions == 1
    assert {spec.config["min.insync.replicas"] for spec in specs.values()} == {"2"}
    assert all("min.insync.replicas" not in spec.config for spec in topic_specs(load_settings(replication=1)))


def test_create_is_idempotent_and_describe_agrees(fresh):
    settings = load_settings(brokers=fresh, partitions=4)
    assert all(state.problem == "does not exist" for state in describe_topics(settings))
    assert all(state.created for state in create_topics(settings))
    again = create_topics(settings)
    assert not any(state.created for state in again)
    assert [state.partitions for state in again] == [spec.partitions for spec in topic_specs(settings)]
    assert {state.spec.name for state in again if state.cleanup == "compact"} == {ITEMS, CHANGELOG, MODEL_VERSIONS}
    require_topics(settings)


def test_only_what_is_missing_is_created(fresh):
    settings = load_settings(brokers=fresh, partitions=2)
    with admin(settings) as client:
        client.create_topics({"views": {"num_partitions": 2, "replication_factor": 1}})
    assert [state.spec.name for state in create_topics(settings) if not state.created] == ["views"]


def test_another_partition_count_is_an_error_that_says_what_to_set(fresh):
    create_topics(load_settings(brokers=fresh, partitions=4))
    with pytest.raises(BrokerError, match="clicks has 4 partitions, settings say 8") as caught:
        create_topics(load_settings(brokers=fresh, partitions=8))
    assert "RECSTREAM_PARTITIONS=4" in caught.value.fix
    with pytest.raises(BrokerError, match="RECSTREAM_PARTITIONS=4"):
        require_topics(load_settings(brokers=fresh, partitions=8))


def test_a_changelog_that_is_not_compacted_is_an_error(fresh):
    settings = load_settings(brokers=fresh, partitions=1)
    with admin(settings) as client:
        options = {"num_partitions": 1, "replication_factor": 1, "configs": {"cleanup.policy": "delete"}}
        client.create_topics({CHANGELOG: options})
    with pytest.raises(BrokerError, match=r"cleanup\.policy=delete, must be compact") as caught:
        create_topics(settings)
    assert f"--entity-name {CHANGELOG} --add-config cleanup.policy=compact" in caught.value.fix


def test_required_topics_can_be_a_few(fresh):
    settings = load_settings(brokers=fresh, partitions=1)
    with admin(settings) as client:
        client.create_topics({ITEMS: {"num_partitions": 1, "replication_factor": 1}})
    require_topics(settings, [ITEMS])
    with pytest.raises(BrokerError, match="recstream topics create"):
        require_topics(settings, [ITEMS, "clicks"])


def test_a_compacted_input_would_lose_events():
    spec = topic_specs(load_settings(partitions=1))[0]
    assert TopicState(spec, partitions=1, cleanup="compact").problem
    assert not TopicState(spec, partitions=1, cleanup="delete").problem
    assert not TopicState(spec, partitions=1, cleanup="").problem  # the broker does not say


def test_records_are_counted(fresh):
    settings = load_settings(brokers=fresh, partitions=2)
    states = create_topics(settings)

    async def fill():
        async with AIOKafkaProducer(bootstrap_servers=fresh) as producer:
            for number in range(50):
                await producer.send("clicks", b"x", partition=number % 2)
            await producer.flush()

    asyncio.run(fill())
    counts = asyncio.run(count_records(settings, states))
    assert counts["clicks"] == 50
    assert sum(counts.values()) == 50
    assert asyncio.run(count_records(settings, [])) == {}


@pytest.mark.broker
def test_a_real_kafka_agrees(kafka_broker):
    settings = load_settings(brokers=kafka_broker, partitions=3)
    names = [spec.name for spec in topic_specs(settings)]
    with admin(settings) as client:
        if present := [name for name in client.list_topics() if name in names]:
            pytest.skip(f"another test uses {present[0]} on this broker")
        with pytest.raises(BrokerError, match="replication factor of 2 cannot be reached") as caught:
            create_topics(load_settings(brokers=kafka_broker, partitions=3, replication=2))
        assert "RECSTREAM_REPLICATION" in caught.value.fix
        try:
            assert all(state.created for state in create_topics(settings))
            states = {state.spec.name: state for state in create_topics(settings)}
            assert not any(state.created or state.problem for state in states.values())
            assert states[CHANGELOG].cleanup == "compact"
            assert states["clicks"].cleanup == "delete"
        finally:
            client.delete_topics(names)
