import json

import pytest
from aiokafka.structs import TopicPartition

from streams.announce import Announcement, announce
from streams.errors import BrokerError
from streams.read_topic import read_to_end, reader
from streams.settings import Settings, load_settings
from streams.topics import MODEL_VERSIONS
from tests.streams.worker_process import free_port

FIRST = Announcement("v0001-0000000a", None, {"ndcg@10": 0.1, "gate": {"promoted": True}}, 1_700_000_000_000)


def test_key_and_value() -> None:
    key, value = FIRST.encode()
    assert key == b"v0001-0000000a"
    assert json.loads(value) == {
        "version": "v0001-0000000a", "parent": None, "metrics": {"ndcg@10": 0.1, "gate": {"promoted": True}},
        "created": 1_700_000_000_000,
    }  # fmt: skip


@pytest.mark.broker
async def test_announcements_stand_on_the_topic_in_order(contract_settings: Settings) -> None:
    second = Announcement("v0002-0000000b", FIRST.version, {}, FIRST.created_ms + 1)
    for announcement in (FIRST, second):
        await announce(contract_settings, announcement)
    partitions = [TopicPartition(MODEL_VERSIONS, 0)]
    async with reader(contract_settings, partitions) as consumer:
        found = [
            (record.key, record.value) async for records in read_to_end(consumer, partitions) for record in records
        ]
    assert found == [FIRST.encode(), second.encode()]


async def test_a_broker_that_is_away_is_said_so() -> None:
    settings = load_settings(brokers=f"127.0.0.1:{free_port()}")
    with pytest.raises(BrokerError, match="announce a model version"):
        await announce(settings, FIRST)
