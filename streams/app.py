"""The Faust app of a worker: topics, an agent for each that hands batches to one pipeline, and its services."""

import asyncio
import logging
from dataclasses import dataclass
from typing import Any, Final

import faust
from faust.types import TP

from models.fusion import Fusion
from models.recommend import Recommender
from state.events import TOPICS
from state.items import ItemIndex
from streams.catalogue import Catalogue
from streams.eraser import Eraser
from streams.exchange import TransitionExchange
from streams.first_offsets import FirstOffsets
from streams.http import HttpServer
from streams.kafka import faust_options
from streams.lag import LagWatch
from streams.metrics import Metrics
from streams.model_watch import ModelWatch
from streams.overview import Overview
from streams.page import Page
from streams.pipeline import Pipeline
from streams.settings import Settings
from streams.shortened import count_anew, shortened
from streams.titles import Titles
from streams.topics import FORGET_USERS, require_topics
from streams.transport import batch_topic, install
from streams.user_lookup import UserLookup

_HOUR_MS: Final = 3_600_000.0
# aiokafka leaves the group, and does not join again, while nothing was polled for so long. Here polling rests during
# restores, hand-overs and back-pressure, all of which end by themselves: after one longer than the limit the worker
# would stay outside the group for ever.
_MAX_POLL_SECONDS: Final = 7 * 24 * 3600.0
_METADATA_SECONDS: Final = 30.0  # a topic that was made anew, or has more partitions, is noticed within
_FETCH_MAX_WAIT_MS: Final = 50  # an idle worker asks 20 times a second

log = logging.getLogger(__name__)


class _App(faust.App):  # type: ignore[misc]
    """A Faust app whose services start before its consumer and stop after it."""

    services: list[Any]

    def on_init_dependencies(self) -> list[Any]:
        return [*self.services, *super().on_init_dependencies()]


@dataclass(frozen=True, slots=True)
class WorkerApp:
    """A Faust app and the parts tests and tools look at."""

    app: Any
    pipeline: Pipeline
    metrics: Metrics


def create_app(settings: Settings, index: int = 0, changelog_id: str = "", shared: bool = False) -> WorkerApp:
    """Build a worker's app; nothing connects before it is started.

    Args:
        settings: all settings.
        index: number of this worker on its host; its HTTP port is `http_port + index`.
        changelog_id: the broker's id of the changelog, which local snapshots must match.
        shared: exchange transitions with the other workers.
    """
    app = _App(
        settings.app_id,
        **faust_options(settings),
        datadir=str(settings.state_dir / settings.app_id / f"faust-{index}"),
        web_enabled=False,
        topic_disable_leader=True,
        stream_wait_empty=False,
        broker_commit_interval=settings.commit_interval_seconds,
        broker_session_timeout=settings.session_timeout_seconds,
        broker_heartbeat_interval=min(3.0, settings.session_timeout_seconds / 3),
        broker_rebalance_timeout=settings.rebalance_timeout_seconds,
        broker_max_poll_interval=_MAX_POLL_SECONDS,
        broker_request_timeout=max(60.0, settings.session_timeout_seconds + 10),
        broker_max_poll_records=settings.max_batch_events,
        consumer_max_fetch_size=1 << 20,
        consumer_metadata_max_age_ms=int(_METADATA_SECONDS * 1000),
        # Also where positions go that Kafka no longer keeps. `first_offsets` has the partitions that begin elsewhere.
        consumer_auto_offset_reset="earliest",
        producer_request_timeout=60.0,
    )
    # With standbys, which nothing here makes use of, Faust takes partitions from a worker only beyond the share rounded
    # up: a fifth worker beside four with two partitions each got none. The setting `table_standby_replicas=0` will not
    # do: its assignor gives the partitions of one number to several workers.
    app.assignor.replicas = 0
    metrics = Metrics()
    fusion = Fusion() if settings.fusion else None
    recommender = Recommender(
        ItemIndex(),
        settings.top_k,
        settings.exclude,
        settings.emit == "latest",
        settings.popularity_half_life_hours * _HOUR_MS,
        fusion,
    )
    pipeline = Pipeline(settings, recommender, metrics, changelog_id, index)
    first_offsets = FirstOffsets(settings) if settings.start_from == "latest" else None

    async def before_revoke(_partitions: set[TP]) -> None:
        await pipeline.drain(snapshot=app.should_stop)

    install(
        app,
        max_batch_events=settings.max_batch_events,
        fetch_max_wait_ms=_FETCH_MAX_WAIT_MS,
        isolation_level=settings.isolation,
        before_revoke=before_revoke,
        first_offsets=None if first_offsets is None else first_offsets.of,
        on_lost=pipeline.abandon,
    )
    pipeline.membership = lambda: app.consumer.membership

    async def read(stream: Any) -> None:
        async for event in stream.noack().events():
            await pipeline.put(event)

    app.agent(batch_topic(app, *TOPICS), name="recstream-events")(read)
    app.agent(batch_topic(app, FORGET_USERS, alone=True), name="recstream-forget-users")(read)

    titles = Titles() if settings.page else None
    catalogue = Catalogue(settings, pipeline, titles)

    @app.on_rebalance_complete.connect  # type: ignore[untyped-decorator]
    async def restore_state(*_args: Any, **_kwargs: Any) -> None:
        """Runs before Faust seeks and resumes the flow: no event comes before its user's state."""
        await app.consumer.begin()  # before the worker is ready: what is sent from then on counts
        numbers = {tp.partition for tp in app.consumer.assignment() if tp.topic in TOPICS}
        if max(numbers, default=0) >= settings.partitions:  # its other topics have no such partition
            await asyncio.to_thread(require_topics, settings)
        await catalogue.known()  # what is blocked is in no list, the first ones included
        restored = await pipeline.assign(numbers)
        consumer = app.consumer
        shorter = await shortened(
            pipeline.partitions.values(), consumer.assignment(), settings,
            lambda tps: consumer.highwaters(*tps), consumer.seek_to_committed,
        )  # fmt: skip
        if shorter:
            await pipeline.between_rounds(count_anew, pipeline.partitions, shorter)
            await consumer.begin_at({tp: one.resume for tp, one in shorter.items()})
        log.info(
            "Holding partitions %s: %d users from snapshots in %.2f s, %d changelog records in %.2f s",
            sorted(numbers), restored.snapshot_users, restored.snapshot_seconds, restored.records,
            restored.changelog_seconds,
        )  # fmt: skip

    overview = Overview(metrics, pipeline, 2 * settings.commit_interval_seconds)
    routes = []
    if titles is not None:
        users = UserLookup(pipeline, titles, overview.version_of)
        routes = Page(settings, pipeline, overview, users, index).routes()
    app.services = [
        pipeline,
        *([first_offsets] if first_offsets is not None else []),
        *([TransitionExchange(settings, pipeline, fusion, index)] if shared and fusion is not None else []),
        ModelWatch(settings, pipeline, metrics),
        catalogue,
        LagWatch(app, metrics),
        Eraser(settings, pipeline, lambda topic, number: app.consumer.consumed(TP(topic, number)), metrics),
        *([overview] if settings.page else []),
        HttpServer(settings.http_host, settings.http_port + index, metrics, pipeline, routes),
    ]
    return WorkerApp(app, pipeline, metrics)
