"""Faust transport that delivers everything one fetch brought, a batch of each topic-partition, as one event.

Stock Faust spends about 85 us per record before any work is done; here that cost is paid per fetch. Three parts
of Faust 0.15 are replaced, each by overriding what its `Transport` class names: the fetch (columns instead of an object
per record), the bookkeeping of acknowledged offsets (`streams.offsets`: stock Faust can commit past records in flight),
and the hand-over of partitions, which lets the pipeline finish before offsets are committed.

An event of a fetch travels on one of its topic-partitions, whichever came first. So topics whose records must stay in
order are declared together and read by one agent. With an agent for each, a fetch could overtake the one before it, and
records that came earlier in a partition would look like redelivered ones.

    app = faust.App("recstream", broker="kafka://127.0.0.1:9092")
    transport = install(app)
    events = batch_topic(app, "clicks", "views")

    @app.agent(events)
    async def read(stream):
        async for event in stream.noack().events():
            await queue.put(event)  # later, when its effects are durable: event.ack()
"""

from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, Literal, cast

from faust import Schema
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from state.errors import RecstreamError
from streams.consumer import BatchConsumer
from streams.fetch import RecordBatch

IsolationLevel = Literal["read_uncommitted", "read_committed"]
BeforeRevoke = Callable[[set[TP]], Awaitable[None]]
FirstOffsetsOf = Callable[[Collection[TP]], Awaitable[Mapping[TP, int]]]


class TransportError(RecstreamError):
    """The transport cannot be installed or used this way."""


class BatchSchema(Schema):  # type: ignore[misc]
    """Hands the batches through: decoding happens in the pipeline, a column at a time."""

    def compile(self, app: Any, **_handlers: Any) -> Callable[..., Awaitable[Any]]:
        """The decode function of a topic; it cannot fail, so no error handler is ever called."""
        create_event = app.create_event

        async def decode(message: Any, *, propagate: bool = False) -> Any:
            return create_event(None, message.value, None, message)

        return decode


async def _nothing() -> None:
    pass


class BatchTransport(driver.Transport):  # type: ignore[misc]
    """aiokafka transport for record batches; see the module's text.

    Attributes:
        batch_topics: Topics read as `RecordBatch`es; every other topic works as in stock Faust.
        lone_topics: Those of them whose batches come as events of their own, to be acknowledged apart from the others.
        max_batch_events: Most records of one fetch.
        fetch_max_wait_ms: How long the broker may hold a fetch that finds nothing; Faust always asks for 1500 ms. Kafka
            answers as soon as there is something, the embedded broker only when the time is over: with 1500 ms an event
            waits 0.4 s there, with 50 ms 30 ms.
        isolation_level: `read_committed` hides records of open and aborted transactions.
        before_revoke: Awaited, with the flow stopped, before offsets are committed for partitions about to leave
            (rebalance) and at shutdown. It returns when every event an agent took is acknowledged or given up; what is
            not acknowledged is delivered again, to the next owner. Given `broker_rebalance_timeout` at most.
        first_offsets: Asked by `BatchConsumer.begin` where assigned partitions begin that the group has not committed;
            those it leaves out begin as the app's `consumer_auto_offset_reset` says.
        on_lost: Awaited instead, with the flow stopped, when the group dropped this worker without asking: forget
            everything about its partitions.
        finished: Whether a shutdown let the pipeline finish: everything taken is durable, and committed if Kafka took
            the commit. What is left is closing the clients.
    """

    Consumer = BatchConsumer

    def __init__(
        self,
        url: Any,
        app: Any,
        *,
        max_batch_events: int = 4096,
        fetch_max_wait_ms: int = 500,
        isolation_level: IsolationLevel = "read_uncommitted",
        before_revoke: BeforeRevoke | None = None,
        first_offsets: FirstOffsetsOf | None = None,
        on_lost: Callable[[], Awaitable[None]] = _nothing,
        **kwargs: Any,
    ) -> None:
        super().__init__(url, app, **kwargs)
        self.batch_topics: set[str] = set()
        self.lone_topics: set[str] = set()
        self.max_batch_events = max_batch_events
        self.fetch_max_wait_ms = fetch_max_wait_ms
        self.isolation_level: IsolationLevel = isolation_level
        self.before_revoke = before_revoke
        self.first_offsets = first_offsets
        self.on_lost = on_lost
        self.finished = False


def install(
    app: Any,
    *,
    max_batch_events: int = 4096,
    fetch_max_wait_ms: int = 500,
    isolation_level: IsolationLevel = "read_uncommitted",
    before_revoke: BeforeRevoke | None = None,
    first_offsets: FirstOffsetsOf | None = None,
    on_lost: Callable[[], Awaitable[None]] = _nothing,
) -> BatchTransport:
    """Make `app` (a `faust.App`) use a `BatchTransport`. Call it before the first topic or agent is declared.

    Turns the app's `stream_wait_empty` on: the pipeline gets to finish at shutdown as well.

    Raises:
        TransportError: The app already built its consumer, producer or topics on another transport.
    """
    if app._transport is not None or app._consumer is not None or app._producer is not None:
        what, why = "the record-batch transport cannot be installed", "the app already uses its first transport"
        raise TransportError(what, why, "call install(app) right after the app is created")
    transport = BatchTransport(
        app.conf.broker_consumer,
        app,
        max_batch_events=max_batch_events,
        fetch_max_wait_ms=fetch_max_wait_ms,
        isolation_level=isolation_level,
        before_revoke=before_revoke,
        first_offsets=first_offsets,
        on_lost=on_lost,
    )
    app.transport = transport
    # The way to `before_revoke` at shutdown, while agents and pipeline still run: BatchConsumer.wait_empty, which is
    # bounded. Without it Faust goes straight to the last commit.
    app.conf.stream_wait_empty = True
    return transport


def batch_topic(app: Any, *names: str, partitions: int | None = None, max_batches: int = 2, alone: bool = False) -> Any:
    """Declare existing Kafka topics whose records arrive, in order, as events of tuples of `RecordBatch`.

    Such an event may hold batches of the other batch topics too.

    Args:
        app: The app `install` was called on.
        names: Topic names.
        partitions: Their partition count, where known.
        max_batches: Fetches buffered between the fetch loop and the topics' agent.
        alone: Each batch of theirs is an event of its own.

    Raises:
        TransportError: `install` was not called.
    """
    transport = app.transport
    if not isinstance(transport, BatchTransport):
        what, why = f"{', '.join(names)} cannot be read in batches", "the app has another transport"
        raise TransportError(what, why, "call streams.transport.install(app) first")
    transport.batch_topics.update(names)
    if alone:
        transport.lone_topics.update(names)
    # Not app.topic(): Faust 0.15.3 drops its `maxsize` argument.
    return app.conf.Topic(
        app, topics=names, schema=BatchSchema(), partitions=partitions, maxsize=max_batches, acks=True, internal=False
    )


def take(event: Any) -> tuple[RecordBatch, ...]:
    """The batches of an event, detached from it: their memory is free as soon as the caller drops them.

    Events wait for their acknowledgement until the next flush, far longer than their records are needed. Call it once
    per event.
    """
    batches = cast("tuple[RecordBatch, ...]", event.value)
    event.value = event.message.value = None
    return batches
