"""Pictures of the dashboard over a daemon under load, to be looked at by a person.

Five states, each on a desk and on a phone, light and dark: it serves, a ramp is in progress, a
release has failed, canaries have evidence while the history is lost, and the supervisor is away.
What axe-core finds is printed, if it is installed.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripts.demonstration import stage
from tests.browser.support import (
    AXE,
    CANARIES,
    DESK,
    PHONE,
    Dashboard,
    canaries_called,
    lose_history,
)
from tests.chromium import PROGRAM, Browser
from tests.harness import DaemonProcess, Setting
from tests.integration.support import until_phase

SCREENS: Mapping[str, dict[str, Any]] = {"1400": DESK, "390": PHONE}
_LOAD_SECONDS = 5.0
"""So long there are requests before a picture: figures and charts need some."""


async def take(folder: Path) -> None:
    """Bring the states about, one after the other."""
    with tempfile.TemporaryDirectory(prefix="atlas-screenshots-") as name:
        browser = Browser(Path(name) / "chromium")
        try:
            async with (
                stage(Path(name)) as demo,
                browser.blank_page() as page,
            ):
                daemon, shown = demo.daemon, Dashboard(page, demo.daemon)
                await shown.sign_in()
                await daemon.deploy("1.1")
                await pictures(shown, "serving", folder)
                await ramping(daemon)
                await pictures(shown, "ramping", folder)
                await daemon.request("POST", "/deploy/abort")
                await until_phase(daemon, "ended")
                await daemon.deploy("1.2")
                await shown.until_there("#ask-reset")
                await pictures(shown, "failed", folder)
                await with_canaries(daemon)
                await pictures(shown, "canaries", folder)
                await daemon.kill()
                await shown.until_there("body.stale")
                await pictures(shown, "away", folder)
                await daemon.start()
        finally:
            browser.end()


async def with_canaries(daemon: DaemonProcess) -> None:
    """Let features be called, over some time, and the history be lost."""
    await reloaded(daemon, CANARIES)
    for _ in range(5):
        await canaries_called(daemon)
        await asyncio.sleep(1)
    lose_history(daemon)
    await asyncio.sleep(_LOAD_SECONDS)


async def ramping(daemon: DaemonProcess) -> None:
    """Let the old version come back by growing shares."""
    await reloaded(daemon, {"TRAFFIC_RAMP": "0.1,0.5,1", "TRAFFIC_STEP_SECONDS": 600})
    await daemon.deploy("1.0", wait="false")
    await until_phase(daemon, "ramp")


async def reloaded(daemon: DaemonProcess, settings: Mapping[str, Setting]) -> None:
    """Reload the daemon with changed settings."""
    before = (await daemon.status())["daemon"]["started_ts"]
    daemon.settings.update(settings)
    daemon.write_settings()
    await daemon.request("POST", "/supervisor/reload")
    async with asyncio.timeout(30):
        while (await daemon.status())["daemon"]["started_ts"] == before:  # noqa: ASYNC110 # polled
            await asyncio.sleep(0.1)


async def pictures(shown: Dashboard, state: str, folder: Path) -> None:
    """Take a state's four pictures."""
    await asyncio.sleep(_LOAD_SECONDS)
    for width, screen in SCREENS.items():
        for scheme in ("light", "dark"):
            await shown.page.show_as(**screen, scheme=scheme)
            path = folder / f"{state}-{width}-{scheme}.png"
            path.write_bytes(await shown.page.picture())
            print(path)
            faults = await shown.faults() if AXE.exists() else []
            for each in faults + await shown.overhang():
                print(f"  {each}")


def main() -> None:
    if PROGRAM is None:
        sys.exit("screenshots: needs Chromium")
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    asyncio.run(take(folder))


if __name__ == "__main__":
    main()
