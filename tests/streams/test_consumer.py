"""Delivery to agents, manual acknowledgements and back-pressure, inside a real Faust app without a broker.

The Python and the Cython streams of Faust are both covered: `test_transport` runs this file with NO_CYTHON=1 too.
"""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from faust.types import TP

from streams.fetch import RecordBatch
from streams.transport import take
from tests.streams.transport_harness import CLICKS, GENERATION, VIEWS, Harness, nothing

# -- delivery


async def test_a_batch_is_one_event(harness: Harness) -> None:
    message = await harness.deliver(count=3, gap=2)
    event = await harness.event()
    assert event.message is message
    assert (message.offset, message.timestamp, message.tp) == (0, 1_700_000_000.0, CLICKS)
    (batch,) = take(event)
    assert (batch.offsets, batch.next_offset) == ([0, 1, 2], 5)
    assert event.value is None and message.value is None  # nothing holds the records any more
    event.ack()
    assert harness.committable() == 5


async def test_topics_declared_together_keep_the_order_of_fetches(tmp_path: Path) -> None:
    harness = Harness(tmp_path, together=True)
    await harness.start()
    sent = [await harness.deliver(tp) for tp in (CLICKS, VIEWS, VIEWS, CLICKS, VIEWS)]
    assert [(await harness.event()).message for _ in sent] == sent
    await harness.stop()


async def test_acknowledged_out_of_order_only_the_prefix_is_committed(harness: Harness) -> None:
    first, second, third = await harness.take(3)
    assert third.ack()
    assert harness.committable() is None
    assert first.ack()
    assert harness.committable() == 10
    assert second.ack()
    assert harness.committable() == 30
    assert not second.ack()  # twice is once


async def test_commit_sends_the_prefix_of_each_topic_once(harness: Harness) -> None:
    (click,) = await harness.take(1)
    views = await harness.take(2, VIEWS)
    views[1].ack()
    click.ack()
    await harness.consumer.commit()
    assert harness.consumer.log_of_calls == [{CLICKS: 10}]
    await harness.consumer.commit()
    assert harness.consumer.log_of_calls == [{CLICKS: 10}]
    views[0].ack()
    await harness.consumer.commit({"views"})
    assert harness.consumer.log_of_calls[1:] == [{VIEWS: 20}]
    assert harness.committable(CLICKS) == 10
    assert not harness.consumer._acked[CLICKS] and not harness.consumer._acked_index[CLICKS]


async def test_stock_bug_500_in_flight_501_acknowledged(harness: Harness) -> None:
    harness.consumer._committed_offset[CLICKS] = 500
    harness._next[CLICKS] = 500
    await harness.deliver(count=1)
    in_flight = await harness.event()
    await harness.deliver(count=1)
    acknowledged = await harness.event()
    acknowledged.ack()
    await harness.consumer._add_gap(CLICKS, 500, 500)  # the drain loop reports the one in flight as a gap
    await harness.consumer.commit()
    assert harness.consumer.log_of_calls == []
    in_flight.ack()
    await harness.consumer.commit()
    assert harness.consumer.log_of_calls == [{CLICKS: 502}]


async def test_stock_bug_fresh_group_with_the_first_in_flight(harness: Harness) -> None:
    events = []
    for _ in range(6):
        await harness.deliver(count=1)
        events.append(await harness.event())
    events[5].ack()
    await harness.consumer._add_gap(CLICKS, 0, 4)
    await harness.consumer.commit()
    assert harness.consumer.log_of_calls == []


async def test_transaction_markers_alone_advance_the_offset_without_an_event(harness: Harness) -> None:
    empty = RecordBatch("clicks", 0, [], [], [], [], 41)
    message = harness.consumer._to_message(CLICKS, (empty,))
    assert message.offset == 40
    await harness.consumer.callback(message)
    assert harness.committable() == 41
    assert harness.consumer.tracker.in_flight(CLICKS) == 0


def from_place(batch: RecordBatch, start: int) -> RecordBatch:
    return replace(batch, start=start)


async def test_a_batch_that_does_not_go_on_where_the_last_one_ended_is_told(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Behind it: Kafka has deleted what was between. Before it: the log is another one, and nothing is taken of it."""
    consumer, crashes, taken = harness.consumer, list[BaseException](), list[int]()

    async def crash(error: BaseException) -> None:
        crashes.append(error)

    async def conduct(message: Any) -> None:
        taken.append(message.offset)

    monkeypatch.setattr(harness.app, "crash", crash)
    monkeypatch.setattr(consumer, "_conduct", conduct)
    consumer._committed_offset[CLICKS] = 20

    async def deliver(start: int, offset: int, tp: TP = CLICKS) -> None:
        harness._next[tp] = offset
        await consumer.callback(consumer._to_message(tp, (from_place(harness.batch(tp), start),)))

    await deliver(20, 22)  # markers stood before it
    assert not caplog.text
    await deliver(50, 50)
    assert "clicks/0 is read on from 50, not from 32: Kafka deleted" in caplog.text
    await deliver(0, 0, VIEWS)  # nothing was committed of it
    assert (taken, crashes) == ([22, 50, 0], [])
    await deliver(0, 0)
    assert taken == [22, 50, 0]
    assert "clicks/0 goes on at 0, not at 60" in str(crashes)
    await consumer.perform_seek()
    consumer._committed_offset.pop(CLICKS)  # a new log
    await deliver(0, 0)
    await deliver(10, 10)
    assert (taken, len(crashes)) == ([22, 50, 0, 0, 10], 1)


async def test_a_batch_of_an_older_generation_is_not_delivered(harness: Harness) -> None:
    message = harness.consumer._to_message(CLICKS, (harness.batch(),))
    harness.app.consumer_generation_id = GENERATION + 1
    await harness.consumer.callback(message)
    assert (message.refcount, harness.consumer.tracker.in_flight(CLICKS)) == (0, 0)


async def test_nothing_is_delivered_while_the_flow_is_stopped(harness: Harness) -> None:
    harness.consumer.stop_flow()
    message = await harness.deliver()
    assert (message.refcount, harness.consumer.tracker.in_flight(CLICKS)) == (0, 0)


async def test_a_topic_that_begins_again_takes_no_other_topics_batches_with_it(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer, delivered = harness.consumer, list[int]()
    harness.batch(gap=500)
    fetches = [harness.batch(gap=-515), harness.batch()]  # from offset 510, then from 5

    async def getmany(timeout: float) -> Any:
        del timeout
        if fetches:
            yield CLICKS, consumer._to_message(CLICKS, (fetches.pop(0), harness.batch(VIEWS)))
        else:
            consumer._stopped.set()

    async def take(message: Any) -> None:
        delivered.append(message.offset)

    monkeypatch.setattr(consumer, "getmany", getmany)
    monkeypatch.setattr(consumer, "callback", take)
    await consumer._drain_messages(consumer)
    assert delivered == [510, 5]


async def test_records_fetched_while_the_flow_stopped_are_dropped_without_a_seek(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = {CLICKS: [harness.batch()]}

    async def getmany(_active: Any, _timeout: float) -> Any:
        harness.consumer.stop_flow()
        return fetched

    monkeypatch.setattr(harness.consumer._thread, "getmany", getmany)
    assert [item async for item in harness.consumer.getmany(0.1)] == []
    assert harness.consumer.log_of_calls == []


# -- back-pressure


async def test_a_full_channel_blocks_delivery_until_the_agent_takes_a_batch(harness: Harness) -> None:
    await harness.take(1)
    await harness.deliver()
    await harness.deliver()
    third = asyncio.ensure_future(harness.deliver())
    await asyncio.sleep(0.05)
    assert not third.done()
    await harness.event()
    await asyncio.wait_for(third, 5)


async def test_a_delivery_waiting_for_a_full_channel_ends_with_the_rebalance(harness: Harness) -> None:
    await harness.take(1)
    await harness.deliver()
    await harness.deliver()
    waiting = asyncio.ensure_future(harness.deliver())
    await asyncio.sleep(0.01)
    harness.transport.before_revoke = nothing
    await harness.consumer.on_partitions_revoked({CLICKS, VIEWS})
    await asyncio.wait_for(waiting, 5)
    harness.resume()
    (event,) = await harness.take(1)
    assert event.message.offset == 40, "none of the batches from before"


async def test_a_full_channel_never_takes_its_partition_out_of_the_fetch(harness: Harness) -> None:
    """Stock Faust sleeps a second once every partition is out."""
    await harness.take(1)
    await harness.deliver()
    await harness.deliver()
    harness.consumer.on_buffer_full(CLICKS)
    assert harness.consumer._get_active_partitions() == {CLICKS, VIEWS}


async def test_other_topics_keep_stock_buffering(harness: Harness) -> None:
    other = TP("other", 0)
    harness.consumer._set_active_tps({CLICKS, other})
    harness.consumer.on_buffer_full(other)
    assert harness.consumer._get_active_partitions() == {CLICKS}
