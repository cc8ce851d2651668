"""A headless Chromium, spoken to in its own debugging protocol, without a driver in between.

It sees what a person's browser would: what is drawn, what the console says, who is asked.
"""

from __future__ import annotations

import asyncio
import base64
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
_KEYS = {"Enter": (13, "\r"), "Tab": (9, ""), "Escape": (27, ""), " ": (32, " ")}
"""What a key is to the protocol: its code, and what it types."""
_SHIFT = 8
_LOOPBACK_ONLY = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"


class Page:
    """One tab: what it asked for, and what it complained of."""

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

    async def show_as(
        self, *, width: int, height: int = 900, scheme: str = "light", phone: bool = False
    ) -> None:
        """Be a screen of this size, in CSS pixels, `light` or `dark`, and without animations."""
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
        await self.call("Emulation.setDeviceMetricsOverride", **screen)
        wanted = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
        features = [{"name": name, "value": value} for name, value in wanted.items()]
        await self.call("Emulation.setEmulatedMedia", features=features)

    async def click(self, selector: str) -> None:
        """Click what a person sees there; it fails if something lies upon it."""
        place = (
            f"(() => {{ const it = document.querySelector({selector!r});"
            "it.scrollIntoView({ block: 'nearest', behavior: 'instant' });"
            "const { x, y, width, height } = it.getBoundingClientRect();"
            "const [left, top] = [x + width / 2, y + height / 2];"
            "const hit = document.elementFromPoint(left, top);"
            "return [left, top, hit !== null && it.contains(hit)]; })()"
        )
        await self.until(
            "document.readyState === 'complete' && "
            f"document.querySelector({selector!r})?.checkVisibility()"
        )
        left, top, is_hit = await self.evaluate(place)
        assert is_hit, f"{selector} can't be clicked"
        for kind in ("mousePressed", "mouseReleased"):
            button = {"x": left, "y": top, "button": "left", "clickCount": 1}
            await self.call("Input.dispatchMouseEvent", type=kind, **button)

    async def press(self, key: str, *, shift: bool = False) -> None:
        """Press a key: Enter, Tab, Escape or the space bar."""
        code, text = _KEYS[key]
        pressed = {"key": key, "windowsVirtualKeyCode": code, "modifiers": _SHIFT * shift}
        await self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **pressed)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **pressed)

    async def type(self, text: str) -> None:
        """Type text where the focus is."""
        await self.call("Input.insertText", text=text)

    async def picture(self) -> bytes:
        """Return a picture of the whole page, as PNG."""
        shot = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(shot["data"])

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

    def _note(self, event: str, data: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.requests.append(data["request"]["url"])
        elif event == "Log.entryAdded" and data["entry"]["level"] in {"warning", "error"}:
            self.complaints.append(f"{data['entry']['text']} {data['entry'].get('url', '')}")
        elif event == "Runtime.exceptionThrown":
            self.complaints.append(str(data["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled" and data["type"] in {"warning", "error", "assert"}:
            self.complaints.append(str([each.get("value") for each in data["args"]]))


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
