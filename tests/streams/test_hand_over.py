"""Partitions that leave, and the shutdown: what was taken is finished and committed first."""

import asyncio
from collections.abc import Mapping

import pytest
from faust.types import TP

from tests.streams.transport_harness import CLICKS, VIEWS, Harness, nothing


async def test_revoked_the_pipeline_finishes_before_the_last_commit(harness: Harness) -> None:
    events = await harness.take(3)
    await harness.deliver()  # in the channel, taken by nobody
    steps = harness.consumer.log_of_calls

    async def finish(revoked: set[TP]) -> None:
        assert not harness.consumer.flow_active and not harness.app.flow_control.is_active()
        steps.append(("finish", revoked))
        for event in reversed(events):
            await asyncio.sleep(0.01)
            event.ack()

    harness.transport.before_revoke = finish
    await harness.consumer.on_partitions_revoked({CLICKS, VIEWS})
    assert steps[:2] == [("finish", {CLICKS, VIEWS}), {CLICKS: 30}]
    assert [step for step in steps if isinstance(step, tuple)] == [("finish", {CLICKS, VIEWS})]
    assert all(step == {CLICKS: 30} for step in steps[1:])
    assert list(harness.consumer.tracker.partitions()) == []
    assert harness.app.topics is not None and harness.consumer._acked == {}


async def test_revoked_with_batches_still_in_flight_only_the_prefix_is_committed(harness: Harness) -> None:
    first, _second, third = await harness.take(3)

    async def give_up(_revoked: set[TP]) -> None:
        first.ack()
        third.ack()

    harness.transport.before_revoke = give_up
    await harness.consumer.on_partitions_revoked({CLICKS, VIEWS})
    assert harness.consumer.committed == {CLICKS: 10}


async def test_a_batch_nobody_took_is_never_committed_whoever_acknowledges_it(harness: Harness) -> None:
    """The Python stream acknowledges what it throws away while the flow is stopped."""
    (taken,) = await harness.take(1)
    left = await harness.deliver()

    async def finish(_revoked: set[TP]) -> None:
        taken.ack()
        left.ack(harness.consumer)

    harness.transport.before_revoke = finish
    await harness.consumer.on_partitions_revoked({CLICKS, VIEWS})
    assert harness.consumer.committed == {CLICKS: 10}


async def test_a_late_acknowledgement_after_the_partitions_left_commits_nothing(harness: Harness) -> None:
    (event,) = await harness.take(1)
    harness.transport.before_revoke = nothing
    await harness.consumer.on_partitions_revoked({CLICKS, VIEWS})
    event.ack()
    harness.consumer.assigned = {CLICKS, VIEWS}
    await harness.consumer.commit()
    assert harness.consumer.committed == {}


async def test_after_a_rebalance_offsets_advance_again(harness: Harness) -> None:
    (event,) = await harness.take(1)

    async def finish(_revoked: set[TP]) -> None:
        event.ack()

    harness.transport.before_revoke = finish
    await harness.consumer.on_partitions_revoked({CLICKS, VIEWS})
    await harness.consumer.perform_seek()
    harness.resume()
    for event in await harness.take(2):
        event.ack()
    await harness.consumer.commit()
    assert harness.consumer.committed == {CLICKS: 30}


async def test_a_seek_forgets_what_is_in_flight(harness: Harness) -> None:
    (event,) = await harness.take(1)
    await harness.consumer.perform_seek()
    event.ack()
    assert harness.committable() is None


async def test_a_pipeline_that_cannot_finish_crashes_the_worker_after_committing_the_prefix(harness: Harness) -> None:
    first, _second = await harness.take(2)

    async def stuck(_revoked: set[TP]) -> None:
        first.ack()
        await asyncio.sleep(60)

    harness.transport.before_revoke = stuck
    await harness.consumer.on_partitions_revoked({CLICKS, VIEWS})
    assert harness.app.crashed
    assert harness.consumer.committed == {CLICKS: 10}


async def test_without_a_pipeline_the_streams_are_waited_for(harness: Harness) -> None:
    (event,) = await harness.take(1)
    asyncio.get_running_loop().call_later(0.05, event.ack)
    await harness.consumer.on_partitions_revoked({CLICKS, VIEWS})
    assert harness.consumer.committed == {CLICKS: 10}


async def test_the_first_join_has_nothing_to_hand_over(harness: Harness) -> None:
    called = []

    async def finish(revoked: set[TP]) -> None:
        called.append(revoked)

    harness.transport.before_revoke = finish
    harness.consumer.assigned = set()
    await harness.consumer.on_partitions_revoked(set())
    assert called == []


async def test_shutdown_lets_the_pipeline_finish_then_commits(harness: Harness) -> None:
    (event,) = await harness.take(1)

    async def finish(partitions: set[TP]) -> None:
        assert partitions == {CLICKS, VIEWS}
        await asyncio.sleep(0.01)
        event.ack()

    harness.transport.before_revoke = finish
    await harness.app._stop_consumer()
    assert harness.consumer.committed == {CLICKS: 10}


async def test_the_last_commit_is_not_lost_to_one_already_under_way(harness: Harness) -> None:
    (event,) = await harness.take(1)
    under_way = harness.consumer._commit_fut = asyncio.get_running_loop().create_future()

    def end() -> None:
        harness.consumer._commit_fut = None
        under_way.set_result(None)

    async def finish(_partitions: set[TP]) -> None:
        event.ack()
        asyncio.get_running_loop().call_later(0.02, end)

    harness.transport.before_revoke = finish
    await harness.app._stop_consumer()
    assert harness.consumer.committed == {CLICKS: 10}


async def test_a_broker_that_takes_no_commit_does_not_hold_up_the_shutdown(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (event,) = await harness.take(1)
    event.ack()

    async def never(_offsets: Mapping[TP, int]) -> bool:
        await asyncio.sleep(60)
        return True

    monkeypatch.setattr(harness.consumer, "_commit", never)
    harness.transport.before_revoke = nothing
    await asyncio.wait_for(harness.app._stop_consumer(), 5)
    assert "did not take the last offsets" in caplog.text
