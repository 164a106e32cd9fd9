"""The worker's HTTP endpoints: `/metrics`, `/health/live`, `/health/ready`, and those of its page."""

import time
from collections.abc import Sequence
from typing import Any, Final

from aiohttp import web
from mode import Service

from streams.endpoints import Endpoints
from streams.metrics import Metrics
from streams.pipeline import READY, Pipeline

STUCK_SECONDS: Final = 120.0  # events waiting and none processed for so long: the process should be restarted


class HttpServer(Service):  # type: ignore[misc]
    """Serves metrics and health on the worker's event loop.

    Args:
        host: address to listen on.
        port: TCP port.
        metrics: what `/metrics` shows.
        pipeline: whose health is told.
        more: other routes.
    """

    def __init__(
        self,
        host: str,
        port: int,
        metrics: Metrics,
        pipeline: Pipeline,
        more: Sequence[web.RouteDef] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._pipeline = pipeline
        fix = "set RECSTREAM_HTTP_PORT (or --http-port) to a free port; worker i uses port + i"
        self._endpoints = Endpoints(host, port, metrics.registry, self._live, self._ready, fix, more)

    async def on_start(self) -> None:
        """Listen.

        Raises:
            BrokerError: the port is taken.
        """
        await self._endpoints.start()

    async def on_stop(self) -> None:
        """Stop listening."""
        await self._endpoints.stop()

    async def _live(self, _request: web.Request) -> web.Response:
        idle = time.monotonic() - self._pipeline.progressed_at
        if self._pipeline.waiting and idle > STUCK_SECONDS:
            return web.json_response({"status": "stuck", "seconds_without_progress": round(idle)}, status=503)
        return web.json_response({"status": "live"})

    async def _ready(self, _request: web.Request) -> web.Response:
        body = {
            "status": (status := self._pipeline.status),
            "partitions": sorted(self._pipeline.partitions),
            "model_version": self._pipeline.recommender.model_version,
        }
        return web.json_response(body, status=200 if status == READY else 503)
