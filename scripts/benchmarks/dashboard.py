"""What the dashboard costs: time until it is seen, bytes, and CPU of the daemon for 20 open pages.

The application has requests all the time, so that numbers change every second. The pages are event
streams as a browser opens them; first paint is Chromium's own, if it is installed.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
from rich.table import Table

from scripts.benchmarks.footprint import cpu_seconds, idle_share
from scripts.benchmarks.result import Options, Result, quantile
from tests import chromium
from tests.harness import DaemonProcess, write_release

PAGES = 20
_LOADS_PER_SECOND = 20
_PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 0"
_PAINTS = 5


async def run(options: Options) -> Result:
    pages, seconds = options.count or PAGES, options.seconds or 20.0
    with tempfile.TemporaryDirectory(prefix="atlas-bench-") as name:
        async with DaemonProcess.running(Path(name)) as daemon:
            first = await opened(daemon)
            for version in ("v1", "v2", "v3"):  # a history
                write_release(daemon.worker_directory, version)
                await daemon.deploy()
            loading = asyncio.create_task(load(daemon))
            later = [await opened(daemon) for _ in range(5)]
            size = await bytes_of_all(daemon)
            alone = await idle_share(daemon.pid, seconds)
            watched, heard = await watched_share(daemon, pages, seconds)
            paints = await first_paints(daemon, "/")
            plain = await first_paints(daemon, "/livez")
            loading.cancel()
    table = Table(title="the dashboard", title_justify="left")
    for column in ("", "measured", "allowed"):
        table.add_column(column, justify="right" if column else "left")
    found = {
        "first_answer_ms": round(first, 1),
        "later_answer_ms": round(min(later), 1),
        "first_paint_ms": [round(each, 1) for each in paints],
        "first_paint_of_a_line_ms": [round(each, 1) for each in plain],
        "bytes": size,
        "cpu_alone_percent": alone,
        "cpu_watched_percent": watched,
        "bytes_per_page_and_second": round(heard / pages / seconds),
    }
    table.add_row("first answer after a start", f"{first:.0f} ms", "")
    table.add_row("later answers, the fastest", f"{min(later):.0f} ms", "")
    for what, each, most in (("first paint", paints, "300 ms"), ("of a line of text", plain, "")):
        taken = f"{quantile(each, 0.5):.0f}, at most {max(each):.0f} ms" if each else "-"
        table.add_row(what, taken, most)
    table.add_row("page, script and style", f"{size / 1000:.0f} kB", "150 kB")
    table.add_row(f"CPU for {pages} open pages", f"{watched - alone:.2f} % of a core", "3 %")
    return Result(
        [table],
        found,
        [
            f"the daemon alone, under the same requests: {alone:.2f} % of a core",
            f"sent to each page: {heard / pages / seconds / 1000:.1f} kB/s",
        ],
    )


async def opened(daemon: DaemonProcess) -> float:
    """Return how long the daemon takes to answer with the page, in ms."""
    begun = time.monotonic()
    answer = await daemon.request_tcp("GET", "/")
    if answer.status != 200:
        raise RuntimeError(f"no page: {answer}")
    return (time.monotonic() - begun) * 1000


async def bytes_of_all(daemon: DaemonProcess) -> int:
    """Return the size of the page and of what it loads."""
    total = 0
    async with aiohttp.ClientSession(headers=bearer(daemon)) as session:
        for path in ("/", "/dashboard/atlas.js", "/dashboard/atlas.css"):
            async with session.get(f"http://127.0.0.1:{daemon.control_port}{path}") as answer:
                total += len(await answer.read())
    return total


async def load(daemon: DaemonProcess) -> None:
    """Ask for the application's front page again and again."""
    async with aiohttp.ClientSession() as session:
        while True:
            async with session.get(f"http://127.0.0.1:{daemon.public_port}/") as answer:
                await answer.read()
            await asyncio.sleep(1 / _LOADS_PER_SECOND)


async def watched_share(daemon: DaemonProcess, pages: int, seconds: float) -> tuple[float, int]:
    """Return the daemon's CPU in percent of a core with so many open pages, and what they read."""
    heard = 0

    async def watch() -> None:
        nonlocal heard
        async with session.get(url) as answer:
            async for chunk in answer.content.iter_any():
                heard += len(chunk)

    url = f"http://127.0.0.1:{daemon.control_port}/dashboard/events"
    no_limit: Any = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(
        headers=bearer(daemon), timeout=no_limit, connector=aiohttp.TCPConnector(limit=0)
    ) as session:
        watching = [asyncio.create_task(watch()) for _ in range(pages)]
        await asyncio.sleep(3)  # all of them have their first sections
        heard = 0
        before, begun = cpu_seconds(daemon.pid), time.monotonic()
        await asyncio.sleep(seconds)
        share = (cpu_seconds(daemon.pid) - before) / (time.monotonic() - begun) * 100
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
    return round(share, 3), heard


async def first_paints(daemon: DaemonProcess, path: str) -> list[float]:
    """Return the times until Chromium paints an answer, in ms; none without Chromium."""
    if chromium.PROGRAM is None:
        return []
    found = []
    with tempfile.TemporaryDirectory(prefix="atlas-bench-") as profile:
        browser = chromium.Browser(Path(profile))
        try:
            for _ in range(_PAINTS + 1):
                async with browser.blank_page() as page:
                    await page.open(f"http://127.0.0.1:{daemon.control_port}{path}")
                    await page.until(_PAINT)
                    found.append(float(await page.evaluate(_PAINT)))
        finally:
            browser.end()
    return found[1:]  # the first one pays for the browser's start


def bearer(daemon: DaemonProcess) -> dict[str, str]:
    return {"Authorization": f"Bearer {daemon.token}"}
