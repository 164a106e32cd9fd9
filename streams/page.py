"""The worker's live page at `/` and the JSON it reads, `/api/overview` and `/api/users/{id}`.

A browser is the one client that carries other people's code into a private network. So: no other site may read or frame
any of it, a name that was made to point here (DNS rebinding) is refused, and the page runs no script but its own.
"""

import ipaddress
import re
from base64 import b64encode
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from hashlib import sha256
from importlib.resources import files
from typing import Any, Final
from urllib.parse import urlsplit

import orjson
from aiohttp import web

from state.errors import RecstreamError
from streams.overview import EVERY_SECONDS, KEPT_SAMPLES, Overview
from streams.pipeline import Pipeline
from streams.settings import Settings
from streams.user_lookup import Busy, UserLookup

Handler = Callable[[web.Request], Awaitable[web.Response]]
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_API_POLICY: Final = "default-src 'none'; frame-ancestors 'none'"


class Page:
    """The page's routes.

    Args:
        settings: all settings.
        pipeline: whose health, model and partitions are told.
        overview: samples of its metrics.
        users: looks users up.
        index: number of this worker on its host.
    """

    def __init__(
        self, settings: Settings, pipeline: Pipeline, overview: Overview, users: UserLookup, index: int = 0
    ) -> None:
        self._settings, self._pipeline, self._overview, self._users = settings, pipeline, overview, users
        self._index = index
        self._html = files("streams").joinpath("page.html").read_bytes()
        self._policy = page_policy(self._html.decode())
        names = (settings.http_host, "localhost", *settings.page_hosts.split(","))
        self._hosts = {name.strip().lower() for name in names} - {""}
        self.shows_users = settings.page_users == "on" or (
            settings.page_users == "auto" and is_loopback(settings.http_host)
        )

    def routes(self) -> list[web.RouteDef]:
        """What to serve."""
        handlers: dict[str, Handler] = {
            "/": self._show_page,
            "/api/overview": self._show_overview,
            "/api/users/{id:(?s:.+)}": self._show_user,
        }
        return [web.get(path, self._guarded(handler)) for path, handler in handlers.items()]

    def _guarded(self, handler: Handler) -> Handler:
        """Refuse a name that is not ours, and forbid other sites to read or frame the answer."""

        async def guarded(request: web.Request) -> web.Response:
            if self._is_ours(request.host):
                response = await handler(request)
            else:
                name, port = request.host[:100], self._settings.http_port + self._index
                response = problem(
                    403,
                    f"{name} is not a name of this page.",
                    f"Open http://localhost:{port}/, or its address, or list the name in RECSTREAM_PAGE_HOSTS.",
                )
            response.headers.update({"Content-Security-Policy": _API_POLICY, **_HEADERS, **response.headers})
            return response

        return guarded

    def _is_ours(self, host: str) -> bool:
        """Whether a Host header is an address or a name of ours; a rebound name is neither."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        return name in self._hosts or _address(name) is not None

    async def _show_page(self, _request: web.Request) -> web.Response:
        return web.Response(
            body=self._html, content_type="text/html", charset="utf-8",
            headers={"Content-Security-Policy": self._policy},
        )  # fmt: skip

    async def _show_overview(self, request: web.Request) -> web.Response:
        after = request.query.get("after", "0")
        if not re.fullmatch(r"[0-9]{1,15}", after):
            return problem(400, "`after` is not the number of a sample.", "Leave it out to get all samples.")
        pipeline, overview = self._pipeline, self._overview
        return as_json(
            {
                "worker": self._index,
                "started_at": overview.started_at,
                "status": pipeline.status,
                "partitions": sorted(pipeline.partitions),
                "partition_count": self._settings.partitions,
                "top_k": self._settings.top_k,
                "user_lookup": self.shows_users,
                "model_version": pipeline.recommender.model_version,
                "served": [asdict(served) for served in overview.served],
                "totals": overview.totals(),
                "every_seconds": EVERY_SECONDS,
                "kept_samples": KEPT_SAMPLES,
                "samples": overview.after(int(after)),
            }
        )

    async def _show_user(self, request: web.Request) -> web.Response:
        if not self.shows_users:
            why = "This worker listens beyond its own host, and what users did is personal."
            return problem(403, f"Looking up users is turned off. {why}", "RECSTREAM_PAGE_USERS=on allows it.")
        user_id = request.match_info["id"]
        try:
            found = await self._users.find(user_id)
        except Busy:
            return problem(503, "The worker is restoring state or busy.", "Try again in a moment.")
        except RecstreamError as error:
            return problem(500, f"{error.what}: {error.why}", error.fix)
        return self._not_found(user_id) if found is None else as_json(found)

    def _not_found(self, user_id: str) -> web.Response:
        partition, held = self._users.partition_of(user_id), sorted(self._pipeline.partitions)
        where = {"partition": partition, "partitions": held}
        if partition in held:
            what = f"No event of this user has been seen: partition {partition}, which is held here, has no such user."
            return problem(404, what, "Check the id.", **where)
        ports = f"worker i of this host listens on port {self._settings.http_port} + i"
        return problem(
            404,
            f"This user belongs to partition {partition}, which this worker does not hold.",
            f"Another worker may hold it: {ports}.",
            **where,
        )


def page_policy(html: str) -> str:
    """The Content-Security-Policy under which the page runs its own inline script and style and nothing else."""
    script, style = (
        " ".join(f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" for text in found)
        for found in (re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL) for tag in ("script", "style"))
    )
    return (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`.

    >>> is_loopback("localhost"), is_loopback("::1"), is_loopback("0.0.0.0"), is_loopback("10.0.0.7")
    (True, True, False, False)
    """
    address = _address(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def as_json(body: dict[str, Any], status: int = 200) -> web.Response:
    """A JSON answer."""
    return web.Response(body=orjson.dumps(body), status=status, content_type="application/json")


def problem(status: int, what: str, fix: str, **more: Any) -> web.Response:
    """An answer that says what is wrong and what to do."""
    return as_json({"error": what, "fix": fix, **more}, status)
