"""The dashboard of a real daemon in a real browser, used as a person uses it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.chromium import Browser, Page
from tests.harness import DaemonProcess, Setting
from tests.integration.support import releases, scripted_daemon

ROOT = Path(__file__).parents[2]
AXE = Path(__file__).parent / "node_modules/axe-core/axe.min.js"
needs_axe = pytest.mark.skipif(
    not AXE.exists(), reason="needs axe-core: npm ci --prefix tests/browser"
)

DESK: dict[str, Any] = {"width": 1400, "height": 900}
PHONE: dict[str, Any] = {"width": 390, "height": 844, "phone": True}

LIVE = "document.body.classList.contains('following')"
LOST = ("Failed to load resource: net::ERR_",)
"""What the browser's console says while the supervisor is away."""
_FOUND = (
    "axe.run(document, { resultTypes: ['violations'] }).then((it) => it.violations.flatMap("
    "({ id, nodes }) => nodes.map(({ target, failureSummary }) =>"
    "`${id}: ${target}: ${failureSummary}`)))"
)


@dataclass
class Notice:
    """What the page says after an action."""

    text: str
    command: str
    audit: list[str]


class Dashboard:
    """One open dashboard."""

    def __init__(self, page: Page, daemon: DaemonProcess) -> None:
        self.page = page
        self.daemon = daemon
        self.url = f"http://127.0.0.1:{daemon.control_port}/"

    async def open(self) -> None:
        await self.page.open(self.url)
        await self.page.until(f"document.readyState === 'complete' && {LIVE}")

    async def sign_in(self, token: str | None = None) -> None:
        """Sign in as a person does: with the token pasted, and Enter."""
        await self.open()
        await self.page.click("#token")
        await self.page.type(token or self.daemon.token)
        await self.page.press("Enter")
        await self.page.until(f"!!document.querySelector('#sign-out') && {LIVE}")

    async def ask(self, name: str, release: str = "") -> str:
        """Press an action's button, and choose a release; return the command that is shown then.

        A section that is exchanged just then may move the button away, or take the question with
        it: then press again.
        """
        is_open = f"document.querySelector('#confirm-{name}:popover-open') !== null"
        for _ in range(5):
            await self.page.click(f"#ask-{name}")
            if release and await self.page.evaluate(is_open):
                await self.choose(name, release)
            if await self.page.evaluate(is_open):
                break
        await self.page.until(is_open)
        command: str = await self.text(f"#confirm-{name} [data-command]")
        return command

    async def choose(self, name: str, release: str) -> str:
        """Choose a release in an open dialog; return the command that it shows then."""
        choice = f"document.querySelector('#release-{name}')"
        await self.page.evaluate(
            f"{choice}.value = {release!r};"
            f"{choice}.dispatchEvent(new Event('change', {{ bubbles: true }}))"
        )
        command: str = await self.text(f"#confirm-{name} [data-command]")
        return command

    async def confirm(self, name: str) -> Notice:
        """Do what an open dialog asks; return what the page says of it."""
        await self.page.evaluate("document.querySelector('#said').replaceChildren()")
        await self.page.click(f"#do-{name}")
        await self.page.until("!!document.querySelector('#said [data-of=action]')")
        lines = await self.page.evaluate(
            "[...document.querySelectorAll('#said [data-of=action] p')].map((it) => it.innerText)"
        )
        audit = [line for line in lines if line.startswith("audit ")]
        command = next((line for line in lines if line.startswith("atlasctl ")), "")
        return Notice(lines[0], command, audit)

    async def text(self, selector: str) -> str:
        shown: str = await self.page.evaluate(
            f"document.querySelector({selector!r})?.innerText ?? ''"
        )
        return shown

    async def until_text(self, selector: str, text: str) -> None:
        await self.page.until(
            f"(document.querySelector({selector!r})?.innerText ?? '').includes({text!r})"
        )

    async def has(self, selector: str) -> bool:
        return bool(await self.page.evaluate(f"!!document.querySelector({selector!r})"))

    async def until_there(self, selector: str) -> None:
        await self.page.until(f"!!document.querySelector({selector!r})")

    async def colour(self, selector: str, what: str) -> str:
        """Return a computed style."""
        style = f"getComputedStyle(document.querySelector({selector!r}))"
        found: str = await self.page.evaluate(f"{style}.getPropertyValue({what!r})")
        return found

    async def faults(self) -> list[str]:
        """Return the violations that axe-core finds on the page now."""
        if not await self.page.evaluate("'axe' in window"):
            await self.page.evaluate(AXE.read_text() + "; undefined")
        found: list[str] = await self.page.evaluate(_FOUND)
        return found

    async def overhang(self) -> list[str]:
        """Return the elements that reach beyond the screen, outside of scrolling regions.

        Not by `innerWidth`, which a phone's browser widens to all that hangs over.
        """
        found: list[str] = await self.page.evaluate(
            "(({ clientWidth, scrollWidth }) => scrollWidth <= clientWidth ? [] :"
            "[...document.querySelectorAll('body *')].filter((it) => "
            "it.getBoundingClientRect().right > clientWidth && !it.closest('.scroll'))"
            ".map((it) => `${it.nodeName} ${it.id} ${it.className}`))"
            "(document.documentElement)"
        )
        return found


@asynccontextmanager
async def dashboard(
    browser: Browser, daemon: DaemonProcess, *, expected: tuple[str, ...] = ()
) -> AsyncIterator[Dashboard]:
    """Yield a tab at the dashboard, at the end of which nothing may have been complained of.

    `expected` are beginnings of complaints that the test brings about.
    """
    async with browser.blank_page() as page:
        await page.show_as(**DESK)
        shown = Dashboard(page, daemon)
        yield shown
        assert [each for each in page.complaints if not each.startswith(expected)] == []
        assert [each for each in page.requests if not each.startswith((shown.url, "data:"))] == []


CANARIES: Mapping[str, Setting] = {
    "CANARY_ENABLED": "true",
    "CANARY_PERCENTAGE": 0.2,
    "CANARY_RAMP": "0.1,0.5,1",
    "CANARY_STEP_SECONDS": 600,
    "CANARY_ERROR_THRESHOLD": 1,  # the evidence alone rolls back
}
"""Settings for `canaries_called`."""


async def canaries_called(daemon: DaemonProcess, calls: int = 1500) -> None:
    """Have features with data: one is ramped, one was rolled back, one stays at its share."""
    started = await daemon.request("POST", "/deploy/canary/vision/ramp", json={"action": "start"})
    assert started.status == 200, started
    program = Path(__file__).parents[1] / "apps/canary_calls.py"
    paths = os.pathsep.join(str(ROOT / each) for each in ("supervisor", "worker"))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(program), str(calls)),
        env={"ATLAS_STATE_DIR": str(daemon.state_dir), "PYTHONPATH": paths},
    )
    assert await process.wait() == 0
    async with asyncio.timeout(30):
        while await _stage(daemon, "web") != "rolled_back":  # noqa: ASYNC110 # polled
            await asyncio.sleep(0.1)


async def _stage(daemon: DaemonProcess, feature: str) -> str:
    view = (await daemon.request("GET", "/deploy/canary")).json
    (found,) = (each["stage"] for each in view["features"] if each["feature"] == feature)
    return str(found)


def lose_history(daemon: DaemonProcess) -> None:
    """Leave what a start leaves that found a damaged database."""
    (daemon.state_dir / "atlas.db.unreadable-20260101T000000Z").write_bytes(b"damaged")


@asynccontextmanager
async def watched_daemon(
    folder: Path, settings: Mapping[str, Setting] | None = None, **more: Any
) -> AsyncIterator[DaemonProcess]:
    """A daemon with two releases, of which the first serves; going back to it is warm."""
    quick: dict[str, Setting] = {
        "RELEASES_DIR": releases(folder, "r1", "r2"),
        "HEALTH_PROBES": 1,
        "KEEP_WARM_SECONDS": 60,
        "KEEP_WARM_FOREIGN": "true",
    }
    async with scripted_daemon(folder, {**quick, **(settings or {})}, **more) as daemon:
        yield daemon
