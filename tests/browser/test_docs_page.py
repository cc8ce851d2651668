"""The API's page in a real browser: it is drawn, in peace, from this machine alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.chromium import Browser, Page
from tests.harness import free_ports
from tests.integration import nginx
from tests.unit.supervisor.api.support import Server, eventually, running

_PATHS = "[...document.querySelectorAll('.opblock-summary-path')].map((it) => it.dataset.path)"
_DOCUMENT = "fetch('openapi.json').then((answer) => answer.json())"
_DEPLOY = "#operations-Deploy-post_deploy_bluegreen"


@asynccontextmanager
async def prefixed(server: Server, folder: Path) -> AsyncIterator[str]:
    """Serve the API below a path prefix, by nginx if the machine has it; return its address."""
    if nginx.PROGRAM is None:
        yield f"http://{server.authority}"
        return
    (port,) = free_ports(1)
    proxied = f'proxy_pass http://{server.authority}/; proxy_set_header Origin "";'
    site = f"server {{ listen 127.0.0.1:{port}; location /atlas/ {{ {proxied} }} }}"
    async with nginx.nginx(folder / "nginx", site, port=port):
        yield f"http://127.0.0.1:{port}/atlas"


async def test_the_page_shows_and_executes_operations_behind_a_path_prefix_and_asks_nobody_else(
    tmp_path: Path, browser: Browser
) -> None:
    # One test, because a page that draws all operations takes seconds of a core.
    async with (
        running(tmp_path) as server,
        prefixed(server, tmp_path) as base,
        browser.blank_page() as page,
    ):
        await page.open(f"{base}/docs")
        await page.until(f"{_PATHS}.length")
        shown, document = await page.evaluate(_PATHS), await page.evaluate(_DOCUMENT)
        methods = [path for path, operations in document["paths"].items() for _ in operations]
        assert sorted(shown) == sorted(methods)
        assert f"{base}/docs/swagger-ui-bundle.js" in page.requests
        assert [url for url in page.requests if not url.startswith((f"{base}/", "data:"))] == []
        assert page.complaints == []
        await is_opened_and_executed(page, base)
        page.complaints.clear()

        # Nor could it ask another unnoticed: else this silence would mean nothing.
        await page.evaluate(
            "document.body.append(Object.assign(document.createElement('img'), "
            "{src: 'http://198.51.100.1/pixel.png'}))"
        )
        await asyncio.wait_for(eventually(lambda: bool(page.complaints)), 30)
        assert "Content Security Policy" in page.complaints[0]


async def is_opened_and_executed(page: Page, base: str) -> None:
    """Open the operation that deploys, read it, and execute it without a token."""
    await page.until(f"!!document.querySelector('{_DEPLOY} button')")
    await page.evaluate(f"document.querySelector('{_DEPLOY} button').click()")
    text = f"document.querySelector('{_DEPLOY}').innerText"
    await page.until(f"{text}.includes('deploy_in_progress')")
    shown = await page.evaluate(text)
    for each in ("dry_run", "wait", "200", "202", "404", "409", "422", '"deploy_id"'):
        assert each in shown
    tabs = f"[...document.querySelectorAll('{_DEPLOY} .tablinks')]"
    await page.evaluate(f"{tabs}.find((it) => it.innerText === 'Schema').click()")
    await page.until(f"{text}.includes('string | null')")
    await page.evaluate(f"document.querySelector('{_DEPLOY} .try-out__btn').click()")
    body = f"document.querySelector('{_DEPLOY} textarea')?.value ?? ''"
    await page.until(f"{body}.includes('1.4.0')")
    await page.until(f"!!document.querySelector('{_DEPLOY} .execute')")
    await page.evaluate(f"document.querySelector('{_DEPLOY} .execute').click()")
    await page.until(f"!!document.querySelector('{_DEPLOY} .live-responses-table')")
    assert f"{base}/deploy/bluegreen?dry_run=true&wait=true" in page.requests
    (refused,) = page.complaints  # there is no token
    assert "401" in refused
