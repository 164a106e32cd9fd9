"""The consumer's own thread, which talks to Kafka: heartbeats and fetches go on while the main loop computes."""

import asyncio
import time
from typing import Any, Final

from aiokafka.errors import ConsumerStoppedError, KafkaError
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from streams.fetch import RecordBatch, fetch_batches

# A fetch costs about as much for one event as for fifty: without a rest, rounds of three events keep a core busy at
# 1,000 events/s. With one it is 51% instead of 92% busy there, 72% instead of 96% at 5,000 events/s; the median latency
# is 10.6 instead of 7.6 ms and 10.9 instead of 10.2 ms. Shorter rests save little (2 ms: 68%, 1 ms: nothing).
_REST_SECONDS: Final = 0.003
_FEW_EVENTS: Final = 256  # a fetch of more is followed by the next at once


class BatchConsumerThread(driver.AIOKafkaConsumerThread):  # type: ignore[misc]
    """Fetches column batches for a `streams.consumer.BatchConsumer`, and notes when the group last knew it."""

    accepted_at = float("-inf")  # when the last heartbeat that the group accepted was sent
    _rest_until = 0.0  # no fetch before, on the monotonic clock

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._isolation_level = transport.isolation_level  # both are read when the consumer starts
        consumer._fetch_max_wait_ms = transport.fetch_max_wait_ms
        return consumer

    async def on_start(self) -> None:
        """Connect, and note when heartbeats are accepted."""
        await super().on_start()
        coordinator = self._ensure_consumer()._coordinator
        send_heartbeat = coordinator._do_heartbeat

        async def heartbeat() -> bool:
            sent_at = time.monotonic()
            accepted = bool(await send_heartbeat())
            if accepted:
                self.accepted_at = sent_at
            return accepted

        coordinator._do_heartbeat = heartbeat

    async def on_thread_stop(self) -> None:
        """Leave the group and disconnect, as far as the connection allows: whatever was taken is committed by now.

        aiokafka waits 0.1 s after a fetch that failed; closed within that time, it lets the `CancelledError` of the
        wait out. It would end this thread without a word to the main loop, which then waited until its time was over.
        """
        try:
            await super().on_thread_stop()
        except (KafkaError, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # it is this thread that is cancelled, not a fetch
                raise
            self.log.warning("The connection to Kafka was gone when the consumer closed: %r", error)
            await self._ensure_consumer()._client.close()

    async def _fetch_records(
        self,
        consumer: Any,
        active_partitions: set[TP] | None,
        timeout: float | None = None,
        max_records: int | None = None,
    ) -> dict[TP, list[Any]]:
        delegate = self.consumer
        if not delegate.flow_active:
            return {}
        fetcher = consumer._fetcher
        if consumer._closed or fetcher._closed:
            raise ConsumerStoppedError
        await asyncio.sleep(max(0.0, min(self._rest_until - time.monotonic(), timeout or 0.0)))
        with fetcher._subscriptions.fetch_context():
            records = await fetch_batches(
                fetcher,
                active_partitions,
                may_take=lambda: bool(delegate.flow_active),
                in_batches=self.transport.batch_topics.__contains__,
                timeout_seconds=timeout or 0.0,
                max_events=self.transport.max_batch_events,
            )
        batched = self.transport.batch_topics
        events = sum(sum(map(len, found)) if tp.topic in batched else len(found) for tp, found in records.items())
        self._rest_until = time.monotonic() + _REST_SECONDS if events <= _FEW_EVENTS else 0.0
        return _together(records, self.transport.batch_topics, self.transport.lone_topics)


def _together(records: dict[TP, list[Any]], batch_topics: set[str], lone_topics: set[str]) -> dict[TP, list[Any]]:
    """All record batches of a fetch as one tuple under the first partition that has records; others as they are.

    Batches of lone topics are a tuple each.
    """
    together = batch_topics - lone_topics
    batches = [batch for tp, found in records.items() if tp.topic in together for batch in found]
    rest = {
        tp: [(batch,) for batch in found] if tp.topic in lone_topics else found
        for tp, found in records.items()
        if tp.topic not in together
    }
    if not batches:
        return rest
    batches.sort(key=_is_empty)  # stable
    return {TP(batches[0].topic, batches[0].partition): [tuple(batches)], **rest}


def _is_empty(batch: RecordBatch) -> bool:
    return not batch.offsets
