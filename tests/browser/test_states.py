"""What the dashboard says when something went wrong: a release, or the supervisor itself."""

from __future__ import annotations

from pathlib import Path

from tests.browser.support import LIVE, LOST, dashboard, watched_daemon
from tests.chromium import Browser
from tests.harness import Setting, write_release
from tests.integration.support import public_version, until_phase
from tests.unit.supervisor.cli.support import call_client

SMOKE = """\
[[http]]
name = "front page"
path = "/"
expect = { contains = "golden" }
"""
DOT = ".headline .dot"


async def test_a_failed_release_says_why_and_the_latch_is_reset(
    tmp_path: Path, browser: Browser
) -> None:
    smoke = tmp_path / "smoke.toml"
    smoke.write_text(SMOKE)
    settings: dict[str, Setting] = {"SMOKE_FILE": smoke, "AFTER_FAILURE": "single"}
    async with watched_daemon(tmp_path, settings) as daemon, dashboard(browser, daemon) as shown:
        behaviour = {"behaviour.json": '{"say": "no gold in the vault"}'}
        write_release(tmp_path / "releases" / "r3", "r3", behaviour)
        await shown.sign_in()
        good = await shown.colour(DOT, "background-color")
        await shown.ask("deploy")
        await shown.choose("deploy", "r3")
        await shown.confirm("deploy")
        await shown.until_text("#why", "front page")
        why = await shown.text("#why-text")
        for each in ("expected", "golden", "got", "r3", "last output", "no gold in the vault"):
            assert each in why
        assert f"atlasctl show {(await daemon.status())['last_deploy']['deploy_id']}" in (
            await shown.text("#why")
        )

        # Users are served, so nothing is red; the old version has no button that deploys.
        await shown.until_there("#ask-reset")
        assert await shown.text("#sentence") == "v1 serves all traffic"
        assert await shown.colour(DOT, "background-color") == good
        assert "single" in await shown.text("#headline")
        assert not await shown.has("#ask-deploy")
        for by in ("button", "command"):
            command = await shown.ask("reset")
            assert command == "atlasctl mode bluegreen"
            if by == "button":
                notice = await shown.confirm("reset")
                assert "mode" in notice.audit[0]
            else:
                await shown.page.press("Escape")
                outcome = await call_client(*command.split()[1:], "--env-file", daemon.env_file)
                assert outcome.code == 0
            await shown.until_there("#ask-deploy")
            assert (await daemon.status())["mode"] == "bluegreen"
            if by == "button":
                await daemon.deploy("r3")
                await shown.until_there("#ask-reset")


async def test_a_lost_supervisor_is_said_never_looks_green_and_is_found_again(
    tmp_path: Path, browser: Browser
) -> None:
    async with (
        watched_daemon(tmp_path) as daemon,
        dashboard(browser, daemon, expected=LOST) as shown,
    ):
        await shown.sign_in()
        good = await shown.colour(DOT, "background-color")
        await shown.page.evaluate("document.querySelector('#ask-deploy').focus()")

        await daemon.kill()
        await shown.until_text("#said", "The supervisor does not answer.")
        await shown.until_text("#fresh", "supervisor unreachable")
        assert await shown.has("body.stale")
        assert await shown.colour(DOT, "background-color") != good
        assert await shown.colour("main > #headline", "filter") == "grayscale(1)"
        assert await public_version(daemon) == "v1"
        await shown.ask("hold")
        notice = await shown.confirm("hold")
        assert "did not answer" in notice.text

        await daemon.start()
        await shown.until_text("#said", "The supervisor answers again.")
        await shown.page.until(LIVE)
        assert await shown.colour(DOT, "background-color") == good
        assert "unreachable" not in await shown.text("#fresh")

        # The session went on, and so does what is done with it.
        await shown.ask("dry-run")
        await shown.choose("dry-run", "r2")
        await shown.confirm("dry-run")
        await until_phase(daemon, "ended")
        await shown.until_text("#deploy", "r2")
