"""The trainer's HTTP server: metrics and health."""

from collections.abc import Callable

from aiohttp import web

from streams.endpoints import Endpoints
from streams.trainer_metrics import TrainerMetrics


class TrainerHttp(Endpoints):
    """Serves `/metrics`, `/health/live` and `/health/ready` on the running event loop.

    Args:
        host: Address to listen on.
        port: TCP port.
        metrics: What `/metrics` shows.
        ready: Whether the trainer has its partitions.
    """

    def __init__(self, host: str, port: int, metrics: TrainerMetrics, ready: Callable[[], bool]) -> None:
        self._joined = ready
        fix = "set RECSTREAM_TRAINER_HTTP_PORT (or --http-port) to a free port"
        super().__init__(host, port, metrics.registry, self._show_live, self._show_ready, fix)

    async def _show_live(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "live"})

    async def _show_ready(self, _request: web.Request) -> web.Response:
        ready = self._joined()
        return web.json_response({"status": "ready" if ready else "joining"}, status=200 if ready else 503)
