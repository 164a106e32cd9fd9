"""The trainer's HTTP server: metrics and health."""

import asyncio
from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from streams.errors import BrokerError
from streams.trainer_metrics import TrainerMetrics


class TrainerHttp:
    """Serves `/metrics`, `/health/live` and `/health/ready` on the running event loop.

    Args:
        host: Address to listen on.
        port: TCP port.
        metrics: What `/metrics` shows.
        ready: Whether the trainer has its partitions.
    """

    def __init__(self, host: str, port: int, metrics: TrainerMetrics, ready: Callable[[], bool]) -> None:
        self._host, self._port, self._metrics, self._ready = host, port, metrics, ready
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen.

        Raises:
            BrokerError: the port is taken.
        """
        app = web.Application()
        app.add_routes(
            [
                web.get("/metrics", self._show_metrics),
                web.get("/health/live", self._show_live),
                web.get("/health/ready", self._show_ready),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._port).start()
        except OSError as error:
            what = f"cannot listen on {self._host}:{self._port}"
            fix = "set RECSTREAM_TRAINER_HTTP_PORT (or --http-port) to a free port"
            raise BrokerError(what, str(error), fix) from error

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _show_metrics(self, _request: web.Request) -> web.Response:
        text = await asyncio.get_running_loop().run_in_executor(None, generate_latest, self._metrics.registry)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _show_live(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "live"})

    async def _show_ready(self, _request: web.Request) -> web.Response:
        ready = self._ready()
        return web.json_response({"status": "ready" if ready else "joining"}, status=200 if ready else 503)
