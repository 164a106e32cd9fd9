"""Headless Chromium over its DevTools protocol: opens a page, runs expressions in it, notes errors and requests."""

import asyncio
import itertools
import shutil
from base64 import b64decode
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from streams.children import Child

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NEEDS_CHROMIUM = pytest.mark.skipif(
    PROGRAM is None, reason="chromium is not installed (Debian: apt-get install chromium, or `make tools`)"
)
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-port=0",
)  # fmt: skip


class Tab:
    """One page.

    Attributes:
        errors: console errors, exceptions and what the browser itself complains about, such as a violated policy.
        requests: every URL asked for.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._socket = socket
        self._numbers = itertools.count(1)
        self._replies: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._reading = asyncio.create_task(self._read())

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol."""
        number = next(self._numbers)
        reply = self._replies[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        return await asyncio.wait_for(reply, 20)

    async def open(self, url: str, size: tuple[int, int] = (1280, 800)) -> None:
        """Go to a page."""
        for domain in ("Runtime", "Log", "Network", "Page"):
            await self.send(f"{domain}.enable")
        await self.look(*size)
        await self.send("Page.navigate", url=url)

    async def look(self, width: int, height: int, scheme: str = "light", scale: float = 1) -> None:
        """Set the viewport and the preferred colours."""
        await self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False
        )
        await self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    async def value(self, expression: str) -> Any:
        """The value of an expression, of a promise what it resolves to."""
        reply = await self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in reply, reply
        return reply["result"].get("value")

    async def text(self, selector: str) -> str:
        """What an element shows."""
        return str(await self.value(f"document.querySelector({selector!r})?.innerText ?? ''"))

    async def texts(self, selector: str) -> list[str]:
        """What each of the elements shows."""
        found = await self.value(f"[...document.querySelectorAll({selector!r})].map(one => one.innerText)")
        return [str(text) for text in found]

    async def until(self, expression: str, seconds: float = 20) -> None:
        """Wait until an expression is true."""
        deadline = asyncio.get_running_loop().time() + seconds
        while not await self.value(f"Boolean({expression})"):
            if asyncio.get_running_loop().time() > deadline:
                pytest.fail(f"not within {seconds} s: {expression}\n{await self.text('body')}\n{self.errors}")
            await asyncio.sleep(0.1)

    async def type(self, text: str) -> None:
        """Type into what has the focus, then press Enter."""
        await self.send("Input.insertText", text=text)
        for kind in ("keyDown", "keyUp"):
            await self.send("Input.dispatchKeyEvent", type=kind, key="Enter", text="\r", windowsVirtualKeyCode=13)

    async def screenshot(self, path: Path) -> None:
        """Write a PNG of the viewport."""
        path.write_bytes(b64decode((await self.send("Page.captureScreenshot", format="png"))["data"]))

    async def close(self) -> None:
        """Stop listening."""
        self._reading.cancel()
        with suppress(asyncio.CancelledError):
            await self._reading

    async def _read(self) -> None:
        async for frame in self._socket:
            message = frame.json()
            if "id" in message:
                reply = self._replies.pop(message["id"])
                if not reply.done():
                    reply.set_result(message.get("result", {"exceptionDetails": message.get("error")}))
            else:
                self._note(message["method"], message["params"])

    def _note(self, method: str, parameters: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
            self.errors.append(" ".join(str(one.get("value")) for one in parameters["args"]))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            entry = parameters["entry"]
            self.errors.append(f"{entry['text']} {entry.get('url', '')}".strip())


@asynccontextmanager
async def open_tab(profile: Path, flags: Sequence[str] = ()) -> AsyncIterator[Tab]:
    """A browser with a fresh profile, ended at the end, and its one tab.

    Args:
        profile: an empty directory.
        flags: more command line options.
    """
    assert PROGRAM is not None
    profile.mkdir(parents=True, exist_ok=True)
    with (profile / "output.log").open("wb") as log:
        browser = Child([PROGRAM, *_FLAGS, f"--user-data-dir={profile}", *flags, "about:blank"], None, log, 5)
        try:
            async with aiohttp.ClientSession(f"http://127.0.0.1:{await _port(profile, browser)}") as session:
                async with session.get("/json/list") as reply:
                    pages = [one for one in await reply.json() if one["type"] == "page"]
                async with session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                    tab = Tab(socket)
                    try:
                        yield tab
                    finally:
                        await tab.close()
        finally:
            await asyncio.to_thread(browser.stop)


async def _port(profile: Path, browser: Child) -> int:
    """Where the browser listens, once it does."""
    told = profile / "DevToolsActivePort"
    for _ in range(300):
        with suppress(OSError, ValueError, IndexError):
            return int(told.read_text().splitlines()[0])
        if browser.poll() is not None:
            break
        await asyncio.sleep(0.1)
    pytest.fail(f"chromium did not start:\n{(profile / 'output.log').read_text(errors='replace')[-3000:]}")
