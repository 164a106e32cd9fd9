import asyncio

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.structs import TopicPartition

from streams.read_topic import end_offsets, read_to_end, reader
from streams.settings import load_settings


async def _send(bootstrap, topic, batches):
    async with AIOKafkaProducer(bootstrap_servers=bootstrap) as producer:
        for partition, values in batches:
            batch = producer.create_batch()
            for value in values:
                batch.append(key=None, value=value, timestamp=None)
            await (await producer.send_batch(batch, topic, partition=partition))


@pytest.mark.broker
def test_reading_to_the_end_reads_all_and_ends(broker, unique, make_topics):
    topic, settings = unique("ends"), load_settings(brokers=broker)
    make_topics(broker, [topic], 3)
    partitions = [TopicPartition(topic, number) for number in range(3)]
    # Partition 0 has its records in one batch, where the embedded broker's offset lookup is furthest off; 2 has none.
    asyncio.run(_send(broker, topic, [(0, [b"%d" % n for n in range(226)]), (1, [b"x"]), (1, [b"y", b"z"])]))

    async def read():
        async with reader(settings, partitions) as consumer:
            records = [record async for batch in read_to_end(consumer, partitions, 20) for record in batch]
            return records, await end_offsets(consumer, partitions)

    records, ends = asyncio.run(read())
    assert [record.value for record in records if record.partition == 0] == [b"%d" % n for n in range(226)]
    assert [record.value for record in records if record.partition == 1] == [b"x", b"y", b"z"]
    assert [ends[partition] for partition in partitions] == [226, 3, 0]
