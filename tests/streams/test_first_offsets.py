"""Where partitions begin that the group has never committed: looked up on each broker, committed by the consumer."""

import asyncio
from collections.abc import Callable, Collection, Mapping

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.structs import TopicPartition
from faust.types import TP

from state.events import TOPICS
from streams.first_offsets import FirstOffsets
from streams.kafka import client_options
from streams.settings import Settings
from streams.topics import FORGET_USERS
from tests.streams.transport_harness import CLICKS, VIEWS, Harness, nothing


@pytest.fixture
def settings(contract_settings: Settings, unique: Callable[[str], str]) -> Settings:
    return contract_settings.model_copy(update={"app_id": unique("first")})


async def send(settings: Settings, topic: str, partition: int, count: int) -> None:
    """All in one batch, where the embedded broker's own lookup of the end is furthest off."""
    async with AIOKafkaProducer(**client_options(settings)) as producer:
        batch = producer.create_batch()
        for _ in range(count):
            batch.append(key=None, value=b"{}", timestamp=None)
        await (await producer.send_batch(batch, topic, partition=partition))


async def commit(settings: Settings, offsets: dict[TopicPartition, int]) -> None:
    consumer = AIOKafkaConsumer(**client_options(settings), group_id=settings.app_id, enable_auto_commit=False)
    await consumer.start()
    try:
        consumer.assign(list(offsets))
        await consumer.commit(offsets)
    finally:
        await consumer.stop()


@pytest.mark.broker
async def test_topics_new_to_the_group_begin_at_their_end_and_partitions_added_later_at_their_beginning(
    settings: Settings,
) -> None:
    await send(settings, "clicks", 1, 226)
    await send(settings, "views", 2, 7)
    unread = [TP(topic, number) for topic in (*TOPICS, FORGET_USERS) for number in range(settings.partitions)]
    ends = {tp: {("clicks", 1): 226, ("views", 2): 7}.get(tp, 0) for tp in unread if tp.topic != FORGET_USERS}
    first = FirstOffsets(settings)
    await first.on_start()
    assert await first.of(unread) == ends
    assert await first.of([TP("clicks", settings.partitions)]) == {}  # added while the worker runs

    await commit(settings, {TopicPartition("clicks", 0): 0})
    assert await first.of([CLICKS, TP("clicks", 1)]) == {CLICKS: 0, TP("clicks", 1): 226}  # new when it started
    later = FirstOffsets(settings)
    await later.on_start()
    assert await later.of(unread) == {tp: end for tp, end in ends.items() if tp.topic != "clicks"}


def first_offsets(offsets: Mapping[TP, int]) -> Callable[[Collection[TP]], object]:
    async def of(unread: Collection[TP]) -> dict[TP, int]:
        return {tp: offset for tp, offset in offsets.items() if tp in unread}

    return of


async def test_what_has_no_commit_gets_one_and_nothing_else_does(harness: Harness) -> None:
    consumer = harness.consumer
    consumer.committed = {VIEWS: 20}
    harness.transport.first_offsets = first_offsets({CLICKS: 0, VIEWS: 50})  # type: ignore[assignment]
    await consumer.begin()
    assert consumer.log_of_calls == ["seek", ("seek", {CLICKS: 0}), {CLICKS: 0}]
    await consumer.perform_seek()
    await consumer.begin()
    assert consumer.committed == {CLICKS: 0, VIEWS: 20}
    assert consumer.log_of_calls[3:] == ["seek", "seek"]


async def test_what_begins_at_its_beginning_is_not_committed(harness: Harness) -> None:
    await harness.consumer.begin()
    assert harness.consumer.log_of_calls == []
    harness.transport.first_offsets = first_offsets({})  # type: ignore[assignment]
    await harness.consumer.begin()
    assert harness.consumer.log_of_calls == ["seek"]
    harness.consumer.assigned = set()
    await harness.consumer.begin()
    assert harness.consumer.log_of_calls == ["seek"]


@pytest.mark.parametrize("during", ["lookup", "seek"])
async def test_partitions_that_leave_meanwhile_are_not_committed(
    harness: Harness, during: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker may have had them by then, and come further."""
    consumer = harness.consumer
    harness.transport.before_revoke = nothing
    gone, go_on = asyncio.Event(), asyncio.Event()

    async def wait(*_args: object) -> None:
        gone.set()
        await go_on.wait()

    async def of(unread: Collection[TP]) -> dict[TP, int]:
        await wait() if during == "lookup" else None
        return dict.fromkeys(unread, 50)

    harness.transport.first_offsets = of
    if during == "seek":
        monkeypatch.setattr(consumer, "seek_wait", wait)
    beginning = asyncio.ensure_future(consumer.begin())
    await gone.wait()
    await consumer.on_partitions_revoked({CLICKS, VIEWS})
    go_on.set()
    await beginning
    assert consumer.committed == {}
    assert list(consumer.tracker.partitions()) == []
