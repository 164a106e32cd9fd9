"""The worker's HTTP endpoints: `/metrics`, `/health/live`, `/health/ready`."""

import asyncio
import time
from typing import Any, Final

from aiohttp import web
from mode import Service
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from streams.errors import BrokerError
from streams.metrics import Metrics
from streams.pipeline import Pipeline

STUCK_SECONDS: Final = 120.0  # events waiting and none processed for so long: the process should be restarted


class HttpServer(Service):  # type: ignore[misc]
    """Serves metrics and health on the worker's event loop.

    Args:
        host: address to listen on.
        port: TCP port.
        metrics: what `/metrics` shows.
        pipeline: whose health is told.
    """

    def __init__(self, host: str, port: int, metrics: Metrics, pipeline: Pipeline, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._host, self._port, self._metrics, self._pipeline = host, port, metrics, pipeline
        self._runner: web.AppRunner | None = None

    async def on_start(self) -> None:
        """Listen.

        Raises:
            BrokerError: the port is taken.
        """
        app = web.Application()
        app.add_routes(
            [
                web.get("/metrics", self._show_metrics),
                web.get("/health/live", self._live),
                web.get("/health/ready", self._ready),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._port).start()
        except OSError as error:
            what = f"cannot listen on {self._host}:{self._port}"
            fix = "set RECSTREAM_HTTP_PORT (or --http-port) to a free port; worker i uses port + i"
            raise BrokerError(what, str(error), fix) from error

    async def on_stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _show_metrics(self, _request: web.Request) -> web.Response:
        text = await asyncio.get_running_loop().run_in_executor(None, generate_latest, self._metrics.registry)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _live(self, _request: web.Request) -> web.Response:
        idle = time.monotonic() - self._pipeline.progressed_at
        if self._pipeline.waiting and idle > STUCK_SECONDS:
            return web.json_response({"status": "stuck", "seconds_without_progress": round(idle)}, status=503)
        return web.json_response({"status": "live"})

    async def _ready(self, _request: web.Request) -> web.Response:
        body = {
            "status": "ready" if self._pipeline.ready else "restoring or rebalancing",
            "partitions": sorted(self._pipeline.partitions),
            "model_version": self._pipeline.recommender.model_version,
        }
        return web.json_response(body, status=200 if self._pipeline.ready else 503)
