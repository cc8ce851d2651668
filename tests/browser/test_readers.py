"""The dashboard for everyone: without JavaScript, by keyboard, on a phone, with axe's eyes."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.browser.support import (
    CANARIES,
    DESK,
    PHONE,
    Dashboard,
    canaries_called,
    dashboard,
    lose_history,
    needs_axe,
    watched_daemon,
)
from tests.chromium import Browser
from tests.harness import Setting, write_release
from tests.integration.support import until_phase

FEATURES = {"vision": "step 1 of 3", "web": "rolled back", "optimizer": "20 % of calls"}
FOCUSED = "document.activeElement.id"
OUTLINE = (
    "(() => { const { outlineStyle, outlineWidth } = getComputedStyle(document.activeElement);"
    "return outlineStyle !== 'none' && parseFloat(outlineWidth) >= 2; })()"
)
BUTTONS = "[...document.querySelectorAll('[id^=ask-]')].map((it) => it.id)"


async def test_without_javascript_the_page_is_a_snapshot_whose_forms_work(
    tmp_path: Path, browser: Browser
) -> None:
    async with watched_daemon(tmp_path) as daemon, dashboard(browser, daemon) as shown:
        page = shown.page
        await page.call("Emulation.setScriptExecutionDisabled", value=True)
        await page.open(shown.url)
        await page.click("#token")
        await page.type(daemon.token)
        await page.click("#sign-in-button")
        await shown.until_there("#sign-out")
        assert await shown.text("#sentence") == "v1 serves all traffic"
        assert "as of" in await shown.text("#fresh")

        assert await shown.ask("hold") == "atlasctl hold --max 30"
        await page.click("#do-hold")
        await shown.until_text("#said", "Done.")
        assert "atlasctl hold --max 30" in await shown.text("#said")
        assert "audit #" in await shown.text("#said")
        assert await shown.text("#sentence") == "New connections are held"
        await shown.ask("release")
        await page.click("#do-release")
        await shown.until_there("#ask-hold")

        await shown.ask("deploy")
        await page.evaluate("document.querySelector('#release-deploy').value = 'r2'")
        await page.click("#do-deploy")
        await shown.until_text("#said", "atlasctl deploy r2")
        await until_phase(daemon, "warm")
        async with asyncio.timeout(20):
            while await shown.text("#sentence") != "r2 serves all traffic":
                await page.open(shown.url)  # answers are shared for a moment
                await page.until("document.readyState === 'complete'")

        # It is no longer news after a while, and then looks like it.
        grey = "document.getAnimations().filter((it) => it.animationName === 'stale')"
        delays = await page.evaluate(f"{grey}.map((it) => it.effect.getTiming().delay)")
        assert delays
        assert set(delays) == {15000}
        await page.evaluate(f"{grey}.forEach((it) => it.finish())")
        filters = f"{grey}.map((it) => getComputedStyle(it.effect.target).filter)"
        assert set(await page.evaluate(filters)) == {"grayscale(1)"}
        dot = "it.effect.target.contains(document.querySelector('.headline .dot'))"
        assert await page.evaluate(f"{grey}.some((it) => {dot})")


async def test_a_view_session_reads_everything_and_has_no_button(
    tmp_path: Path, browser: Browser
) -> None:
    token = tmp_path / "view.token"
    settings: dict[str, Setting] = {
        "CONTROL_VIEW_TOKEN_FILE": token,
        "AUTO_SWITCH_ON_HEALTH": "false",
    }
    async with watched_daemon(tmp_path, settings) as daemon, dashboard(browser, daemon) as shown:
        behaviour = {"behaviour.json": '{"say": "secret of the vault", "health": 500}'}
        write_release(tmp_path / "releases" / "r3", "r3", behaviour)
        await daemon.deploy("r3")
        await shown.open()
        assert await page_buttons(shown) == []
        assert "secret of the vault" not in await shown.text("#why")
        await shown.sign_in(token.read_text().strip())
        assert await page_buttons(shown) == []
        assert not await shown.has("form[data-action]")
        await shown.until_text("#why", "secret of the vault")
        await shown.page.click("#sign-out")
        await shown.until_there("#sign-in")


async def page_buttons(shown: Dashboard) -> list[str]:
    """Return the buttons that would change something."""
    found: list[str] = await shown.page.evaluate(BUTTONS)
    return found


async def test_by_keyboard_every_action_is_reached_and_the_focus_stays(
    tmp_path: Path, browser: Browser
) -> None:
    async with (
        watched_daemon(tmp_path, {"AUTO_SWITCH_ON_HEALTH": "false"}) as daemon,
        dashboard(browser, daemon) as shown,
    ):
        page = shown.page
        await daemon.deploy("r2")
        await daemon.request("POST", "/deploy/switch")
        await daemon.deploy("r1", wait="false")
        await until_phase(daemon, "awaiting_switch")
        await shown.sign_in()
        await shown.until_there("#ask-switch")
        wanted = set(await page_buttons(shown))
        assert {"ask-switch", "ask-abort", "ask-hold", "ask-reload"} <= wanted

        await page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
        reached = set()
        for _ in range(80):
            await page.press("Tab")
            reached.add(await page.evaluate(FOCUSED))
            assert await page.evaluate(OUTLINE), await page.evaluate(FOCUSED)
            if wanted <= reached:
                break
        assert wanted <= reached

        # Enter asks; what is focused does nothing; Escape goes back to where one was.
        await page.evaluate("document.querySelector('#ask-abort').focus()")
        await page.press("Enter")
        await shown.until_there("#confirm-abort:popover-open")
        assert await page.evaluate(FOCUSED) == "cancel-abort"
        await page.press("Tab", shift=True)
        assert await page.evaluate(FOCUSED) == "do-abort"
        await page.press("Escape")
        await page.until("!document.querySelector(':popover-open')")
        assert await page.evaluate(FOCUSED) == "ask-abort"

        # The page changes around the focus.
        await page.evaluate("document.querySelector('#ask-hold').focus()")
        await daemon.request("POST", "/deploy/abort")
        await shown.until_there("#ask-deploy")
        assert await page.evaluate(FOCUSED) == "ask-hold"
        await page.evaluate("document.querySelector('#ask-deploy').focus()")
        await page.press(" ")
        await shown.until_there("#confirm-deploy:popover-open")
        await page.press("Tab", shift=True)
        await page.press("Enter")
        await shown.until_text("#said", "atlasctl deploy")
        await until_phase(daemon, "awaiting_switch")


@needs_axe
async def test_axe_finds_nothing_and_nothing_hangs_over_on_a_phone(
    tmp_path: Path, browser: Browser
) -> None:
    settings = {"AUTO_SWITCH_ON_HEALTH": "false", "AFTER_FAILURE": "single", **CANARIES}
    async with watched_daemon(tmp_path, settings) as daemon, dashboard(browser, daemon) as shown:
        behaviour = {"behaviour.json": '{"say": "no gold in the vault", "exit": 3}'}
        write_release(tmp_path / "releases" / "r3", "r3", behaviour)
        lose_history(daemon)
        await canaries_called(daemon)
        await shown.open()
        await shown.until_there("#note-history_lost")
        await nothing_is_found(shown, "signed out")
        await shown.sign_in()
        await daemon.deploy("r2", wait="false")
        await shown.until_there("#ask-switch")
        for feature, words in FEATURES.items():
            await shown.until_text(f"#feature-{feature}", words)
            assert await shown.has(f"#feature-{feature} svg")
        await nothing_is_found(shown, "waiting", looks=4)
        await shown.ask("switch")
        await nothing_is_found(shown, "asking")
        await shown.confirm("switch")
        await daemon.deploy("r3")
        await shown.until_there("#ask-reset")
        await nothing_is_found(shown, "failed")
        await shown.page.evaluate("document.body.classList.add('stale')")
        await nothing_is_found(shown, "stale")

        # It would: else this silence would mean nothing.
        await shown.page.evaluate("document.querySelector('#sign-out').style.color = '#333'")
        (found,) = await shown.faults()
        assert "color-contrast: #sign-out" in found


async def nothing_is_found(shown: Dashboard, state: str, *, looks: int = 2) -> None:
    """Look at the page as it is, in both widths and both schemes; with four looks in each pair."""
    pairs = ((DESK, "light"), (PHONE, "dark"), (PHONE, "light"), (DESK, "dark"))
    for screen, scheme in pairs[:looks]:
        await shown.page.show_as(**screen, scheme=scheme)
        assert await shown.faults() == [], (state, screen, scheme)
        assert await shown.overhang() == [], (state, screen)
