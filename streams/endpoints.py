"""The HTTP endpoints that workers and trainers share: `/metrics`, `/health/live`, `/health/ready`."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from streams.errors import BrokerError

Handler = Callable[[web.Request], Awaitable[web.Response]]


class Endpoints:
    """Serves metrics and health on the running event loop.

    Args:
        host: address to listen on.
        port: TCP port.
        registry: what `/metrics` shows.
        live: answers `/health/live`.
        ready: answers `/health/ready`.
        fix: what to do when the port is taken.
        more: other routes.
    """

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        live: Handler,
        ready: Handler,
        fix: str,
        more: Sequence[web.RouteDef] = (),
    ) -> None:
        self._host, self._port, self._registry, self._fix = host, port, registry, fix
        app = web.Application()
        app.add_routes(
            [
                web.get("/metrics", self._show_metrics),
                web.get("/health/live", live),
                web.get("/health/ready", ready),
                *more,
            ]
        )
        self._runner = web.AppRunner(app, access_log=None)

    async def start(self) -> None:
        """Listen.

        Raises:
            BrokerError: the port is taken.
        """
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._port).start()
        except OSError as error:
            msg = f"cannot listen on {self._host}:{self._port}"
            raise BrokerError(msg, str(error), self._fix) from error

    async def stop(self) -> None:
        """Stop listening."""
        await self._runner.cleanup()

    async def _show_metrics(self, _request: web.Request) -> web.Response:
        text = await asyncio.get_running_loop().run_in_executor(None, generate_latest, self._registry)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})


def port_problem(host: str, port: int) -> str:
    """Why nobody can listen there, empty when one can."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror or str(error)
    return ""
