"""A headless Chromium, spoken to in its own debugging protocol, without a driver in between.

It sees what a person's browser would: what is drawn, what the console says, who is asked.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser")

_SECONDS = 30.0
_QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
]
_LOOPBACK_ONLY = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"


class Page:
    """One tab: what it was told to do, what it asked for, and what it complained of."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._socket = socket
        self._numbers = count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def open(self, url: str) -> None:
        """Go to `url`; everything that it asks for or complains of is noted from now on."""
        for domain in ("Network", "Log", "Runtime"):
            await self.call(f"{domain}.enable")
        await self.call("Page.navigate", url=url)

    async def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, awaited if it is a promise."""
        answer = await self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def until(self, expression: str) -> Any:
        """Return the expression's value once it is true; fails after 30 s, with the complaints."""
        try:
            async with asyncio.timeout(_SECONDS):
                while not (value := await self.evaluate(expression)):  # noqa: ASYNC110 # a browser's
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"never true: {expression}; {self.complaints}") from None
        return value

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        message = await asyncio.wait_for(answer, _SECONDS)
        assert "error" not in message, message["error"]
        result: dict[str, Any] = message["result"]
        return result

    async def listen(self) -> None:
        """Take in what the browser says, until it hangs up."""
        async for frame in self._socket:
            message = frame.json()
            if "id" in message:
                self._waiting.pop(message["id"]).set_result(message)
            else:
                self._note(message["method"], message["params"])

    def _note(self, event: str, told: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif event == "Log.entryAdded" and told["entry"]["level"] in {"warning", "error"}:
            self.complaints.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")
        elif event == "Runtime.exceptionThrown":
            self.complaints.append(str(told["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled" and told["type"] in {"warning", "error", "assert"}:
            self.complaints.append(str([each.get("value") for each in told["args"]]))


class Browser:
    """A running browser. It belongs to no event loop, so that the tests of a module share it."""

    def __init__(self, profile: Path) -> None:
        assert PROGRAM is not None
        self._profile = profile
        self._process = subprocess.Popen(
            [PROGRAM, *_QUIET, _LOOPBACK_ONLY, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @asynccontextmanager
    async def blank_page(self) -> AsyncIterator[Page]:
        """Yield a new tab, which is closed afterwards."""
        async with (
            aiohttp.ClientSession() as http,
            http.ws_connect(await self._new_tab(http), max_msg_size=0) as socket,
        ):
            page = Page(socket)
            listening = asyncio.create_task(page.listen())
            yield page
            await page.call("Page.close")
            await listening

    def end(self) -> None:
        """End it, and remove its profile."""
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        shutil.rmtree(self._profile, ignore_errors=True)

    async def _new_tab(self, http: aiohttp.ClientSession) -> str:
        """Return the address of a new tab, as soon as the browser can be spoken to."""
        async with asyncio.timeout(_SECONDS):
            while True:
                with suppress(OSError, IndexError, aiohttp.ClientError):
                    port = (self._profile / "DevToolsActivePort").read_text().split()[0]
                    new = f"http://127.0.0.1:{port}/json/new?about:blank"
                    async with http.put(new) as answer:
                        address: str = (await answer.json())["webSocketDebuggerUrl"]
                        return address
                await asyncio.sleep(0.05)
