"""The transport inside a real Faust app without a broker: the last step towards Kafka is recorded instead."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import faust
from faust.types import TP

from streams.consumer import BatchConsumer
from streams.fetch import RecordBatch
from streams.transport import batch_topic, install

CLICKS, VIEWS = TP("clicks", 0), TP("views", 0)
GENERATION = 1


async def nothing(_revoked: set[TP]) -> None:
    """A `before_revoke` of a pipeline that has nothing to finish."""


class RecordingConsumer(BatchConsumer):
    """Stops one step before Kafka: commits and seeks are recorded."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.log_of_calls: list[Any] = []
        self.assigned = {CLICKS, VIEWS}
        self.committed: dict[TP, int] = {}

    def assignment(self) -> set[TP]:
        return self.assigned

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        self.log_of_calls.append(dict(offsets))
        self.committed.update(offsets)
        return True

    async def seek_to_committed(self) -> Mapping[TP, int | None]:
        self.log_of_calls.append("seek")
        return {tp: self.committed.get(tp) for tp in self.assigned}

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        self.log_of_calls.append(("seek", dict(partitions)))


class Harness:
    """An app reading two topics in batches, as after its first rebalance."""

    def __init__(self, directory: Path, *, together: bool = False) -> None:
        self.app = faust.App(
            "transport-test",
            broker="kafka://127.0.0.1:1",
            datadir=str(directory),
            topic_disable_leader=True,
            broker_rebalance_timeout=1.0,
            stream_wait_empty=False,  # turned on by install()
        )
        self.transport = install(self.app)
        self.transport.Consumer = RecordingConsumer
        self.topics = (
            {CLICKS: batch_topic(self.app, CLICKS.topic, VIEWS.topic, max_batches=8)}
            if together
            else {tp: batch_topic(self.app, tp.topic, max_batches=2) for tp in (CLICKS, VIEWS)}
        )
        self.app.finalize()
        self.consumer: RecordingConsumer = self.app.consumer
        self.events: dict[TP, AsyncIterator[faust.Event]] = {}
        self._next = dict.fromkeys((CLICKS, VIEWS), 0)

    async def start(self) -> None:
        for tp, topic in self.topics.items():
            self.events[tp] = aiter(topic.stream().noack().events())
            # The channel registers once somebody reads it.
            reading = asyncio.ensure_future(anext(self.events[tp]))
            await asyncio.sleep(0.01)
            self._first_reads = {**getattr(self, "_first_reads", {}), tp: reading}
        await self.app.topics._update_indices()
        await self.app.topics.on_partitions_assigned({CLICKS, VIEWS})
        self.resume()

    def resume(self) -> None:
        self.app.consumer_generation_id = GENERATION
        self.consumer._set_active_tps({CLICKS, VIEWS})
        self.app.flow_control.resume()
        self.consumer.resume_flow()

    async def event(self, tp: TP = CLICKS) -> faust.Event:
        """The next event an agent of the topic gets."""
        first = self._first_reads.pop(tp, None)
        return await asyncio.wait_for(first if first is not None else anext(self.events[tp]), 5)

    def batch(self, tp: TP = CLICKS, count: int = 10, gap: int = 0) -> RecordBatch:
        start = self._next[tp]
        self._next[tp] = end = start + count
        self._next[tp] += gap
        offsets = list(range(start, end))
        return RecordBatch(
            tp.topic, tp.partition, offsets, [1_700_000_000_000] * count, [b"u"] * count, [b"{}"] * count, end + gap
        )

    async def deliver(self, tp: TP = CLICKS, count: int = 10, gap: int = 0) -> Any:
        """As the drain loop does with a fetched batch."""
        message = self.consumer._to_message(tp, (self.batch(tp, count, gap),))
        await self.consumer.callback(message)
        return message

    async def take(self, count: int, tp: TP = CLICKS) -> list[faust.Event]:
        """Deliver batches of 10 and let the agent take each."""
        events = []
        for _ in range(count):
            await self.deliver(tp)
            events.append(await self.event(tp))
        return events

    def committable(self, tp: TP = CLICKS) -> int | None:
        return self.consumer._new_offset(tp)

    async def stop(self) -> None:
        for reading in getattr(self, "_first_reads", {}).values():
            reading.cancel()
        for events in self.events.values():
            closing = asyncio.ensure_future(events.aclose())  # type: ignore[attr-defined]
            await asyncio.wait([closing], timeout=1)
        self.consumer._thread.thread_loop.close()  # made with the thread, which never starts here
