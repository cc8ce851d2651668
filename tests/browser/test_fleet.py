"""The fleet on the dashboard: its hosts, its rollout, and its kill switches."""

from __future__ import annotations

from pathlib import Path

import pytest

from atlas_supervisor.fleet.documents import HOSTS, Member
from atlas_supervisor.fleet.engine import Put
from atlas_supervisor.fleet.etcd import EtcdEngine
from atlas_supervisor.system.clock import now
from tests import etcd
from tests.browser.support import (
    AXE,
    DESK,
    PHONE,
    Dashboard,
    dashboard,
    watched_daemon,
)
from tests.chromium import Browser
from tests.harness import Setting


@pytest.mark.skipif(etcd.PROGRAM is None, reason=etcd.MISSING)
@pytest.mark.timeout(120)
async def test_a_fleet_is_rolled_out_and_killed_by_buttons_and_axe_finds_nothing(
    tmp_path: Path, browser: Browser
) -> None:
    with etcd.cluster(tmp_path / "etcd") as cluster:
        settings: dict[str, Setting] = {
            "FLEET_ETCD_ENDPOINTS": cluster.endpoints[0],
            "FLEET_HOST": "web1",
            "GUARD_SECONDS": 0,
            "CANARY_FEATURES": "vision",
        }
        async with (
            watched_daemon(tmp_path, settings) as daemon,
            dashboard(browser, daemon) as shown,
        ):
            await shown.open()
            await shown.until_text("#fleet", "The only host serves v1")
            assert not await shown.has("#fleet [data-action]")
            await shown.sign_in()
            await roll_out(shown)
            await kill_and_reset(shown)
            async with EtcdEngine(cluster.endpoints, "/atlas/default/") as engine:
                lost = Member(joined_ts=now()).written()
                await engine.commit([], Put(HOSTS + "web9", lost))
            await shown.until_text("#fleet", "1 of 2 hosts serve r2")
            if AXE.exists():
                await nothing_is_found(shown)
            await do(shown, "fleet-forget-2", "atlasctl fleet forget web9")
            await shown.until_text("#fleet", "The only host serves r2")

            await shown.page.call("Emulation.setScriptExecutionDisabled", value=True)
            await shown.page.open(shown.url)
            await shown.until_text("#fleet", "The only host serves r2")
            await shown.page.call("Emulation.setScriptExecutionDisabled", value=False)
            cluster.stop()
            await shown.open()
            await shown.until_text("#fleet", "etcd does not answer")
            assert not await shown.has("#fleet [data-action]")


async def do(shown: Dashboard, name: str, command: str) -> None:
    """Press a button of the fleet, and confirm what it asks."""
    await shown.until_there(f"#ask-{name}")
    assert await shown.ask(name) == command
    notice = await shown.confirm(name)
    assert (notice.command, len(notice.audit)) == (command, 1), notice


async def roll_out(shown: Dashboard) -> None:
    assert await shown.ask("fleet-rollout") == "atlasctl fleet rollout"
    assert await shown.choose("fleet-rollout", "r2") == "atlasctl fleet rollout r2"
    await shown.confirm("fleet-rollout")
    await shown.until_text("#fleet", "r2: passed, 1 of 1 hosts passed")


async def kill_and_reset(shown: Dashboard) -> None:
    await do(shown, "fleet-kill-vision", "atlasctl fleet kill vision")
    await shown.until_text("#fleet-feature-vision", "off everywhere")
    assert not await shown.has("#ask-fleet-kill-vision")
    await do(shown, "fleet-reset", "atlasctl fleet reset")
    await shown.until_there("#ask-fleet-kill-vision")


async def nothing_is_found(shown: Dashboard) -> None:
    """Look at the fleet in both widths and both schemes."""
    for screen, scheme in ((DESK, "light"), (PHONE, "dark"), (PHONE, "light"), (DESK, "dark")):
        await shown.page.show_as(**screen, scheme=scheme)
        assert await shown.faults() == [], (screen, scheme)
        assert await shown.overhang() == [], screen
    await shown.page.show_as(**PHONE)
    await shown.ask("fleet-kill-vision")
    dialog = "document.querySelector('#confirm-fleet-kill-vision')"
    assert await shown.page.evaluate(f"{dialog}.scrollWidth <= {dialog}.clientWidth")
    await shown.page.click("#cancel-fleet-kill-vision")
    await shown.page.show_as(**DESK)
