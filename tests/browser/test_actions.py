"""Each button of the dashboard asks first, and does what the command does that it shows."""

from __future__ import annotations

import shlex
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tests.browser.support import LIVE, LOST, Dashboard, dashboard, watched_daemon
from tests.chromium import Browser
from tests.harness import DaemonProcess
from tests.integration.support import held, until_phase
from tests.unit.supervisor.cli.support import call_client

SHARES = (0.2, 0.6, 1)
Afterwards = Callable[[], Awaitable[object]]


async def trail(daemon: DaemonProcess) -> list[dict[str, Any]]:
    """Return the audit entries of people, oldest first, without those of sessions."""
    answer = await daemon.request("GET", "/deploy/audit", params={"limit": "1000"})
    return [
        each
        for each in reversed(answer.json["entries"])
        if each["actor"] != "supervisor" and each["action"] != "session"
    ]


class Actions:
    """Does actions on a dashboard, and afterwards once more by the commands that it showed."""

    def __init__(self, shown: Dashboard, *, first: int = 0) -> None:
        self._shown = shown
        self._daemon = shown.daemon
        self._done: list[tuple[str, Afterwards]] = []
        self._first = first

    async def do(self, name: str, afterwards: Afterwards, *, release: str = "") -> None:
        """Press the button, read the question, confirm it, and read what the page says then."""
        page, before = self._shown.page, await trail(self._daemon)
        asked_for = len(page.requests)
        command = await self._shown.ask(name, release)
        assert await trail(self._daemon) == before
        assert not any("/dashboard/actions/" in each for each in page.requests[asked_for:])
        notice = await self._shown.confirm(name)
        assert notice.command == command
        (entry,) = (await trail(self._daemon))[len(before) :]
        assert entry["actor"].startswith("session:")
        (shown,) = [each for each in notice.audit if entry["actor"] in each]
        assert f"#{entry['id']} " in shown
        assert f" {entry['action']} {entry['outcome']}" in shown
        await afterwards()
        self._done.append((command, afterwards))

    async def do_by_commands(self) -> None:
        """Run the commands, and compare the entries that they leave in the audit trail."""
        by_buttons = await trail(self._daemon)
        for command, afterwards in self._done:
            program, *arguments = shlex.split(command)
            assert program == "atlasctl"
            outcome = await call_client(*arguments, "--env-file", self._daemon.env_file)
            assert outcome.code == 0, (command, outcome)
            await afterwards()
        by_commands = (await trail(self._daemon))[len(by_buttons) :]
        assert list(map(essence, by_commands)) == list(map(essence, by_buttons[self._first :]))
        self._done.clear()
        self._first = len(by_buttons) + len(by_commands)


def essence(entry: dict[str, Any]) -> tuple[Any, ...]:
    """Return action, outcome and detail of an entry, without its actor and deploy."""
    names = ("release", "version", "mode", "max_seconds", "dry_run", "share")
    detail = entry["detail"]
    return entry["action"], entry["outcome"], {name: detail.get(name) for name in names}


async def test_each_button_asks_and_does_what_its_command_does(
    tmp_path: Path, browser: Browser
) -> None:
    async with (
        watched_daemon(tmp_path, {"AUTO_SWITCH_ON_HEALTH": "false"}) as daemon,
        dashboard(browser, daemon) as shown,
    ):

        async def deploy_ends() -> None:
            await until_phase(daemon, "ended")
            await shown.until_there("#ask-deploy")

        async def waits_for_switch() -> None:
            await until_phase(daemon, "awaiting_switch")
            await shown.until_text("#deploy", "waits for you")
            await shown.until_there("#ask-switch")

        async def serves(version: str) -> None:
            await shown.until_text("#sentence", f"{version} serves all traffic")
            assert (await daemon.status())["version"] == version

        async def is_held() -> None:
            assert await held(daemon)
            await shown.until_text("#sentence", "New connections are held")

        async def is_released() -> None:
            assert not await held(daemon)
            await shown.until_there("#ask-hold")

        await shown.sign_in()
        actions = Actions(shown)
        await actions.do("dry-run", deploy_ends, release="r2")
        await actions.do("deploy", waits_for_switch, release="r2")
        await actions.do("abort", deploy_ends)
        await actions.do("deploy", waits_for_switch, release="r2")
        await actions.do("switch", lambda: serves("r2"))
        await shown.until_text("#ask-rollback", "Go back to v1")
        await actions.do("rollback", lambda: serves("v1"))
        await shown.until_there("#ask-deploy")
        await actions.do("hold", is_held)
        await actions.do("release", is_released)
        await actions.do_by_commands()


async def test_a_reload_is_followed_and_a_ramp_steered_by_its_buttons(
    tmp_path: Path, browser: Browser
) -> None:
    async with (
        watched_daemon(tmp_path) as daemon,
        dashboard(browser, daemon, expected=LOST) as shown,
    ):
        started = (await daemon.status())["daemon"]["started_ts"]

        async def is_reloaded() -> None:
            await shown.page.until(
                f"fetch('/deploy/status').then((it) => it.json(), () => null)"
                f".then((it) => it && it.daemon && it.daemon.started_ts !== {started!r})"
            )
            await shown.page.until(LIVE)
            assert (await daemon.status())["daemon"]["start"] == "reload"

        async def ramp_is(*, paused: bool, share: float) -> None:
            ramp = (await until_phase(daemon, "ramp"))["ramp"]
            assert (ramp["paused"], ramp["share"]) == (paused, share)
            button = "#ask-ramp-resume" if paused else "#ask-ramp-pause"
            await shown.until_there(button)
            reached = "document.querySelectorAll('.shares .reached').length"
            await shown.page.until(f"{reached} === {SHARES.index(share) + 1}")

        await shown.sign_in()
        daemon.settings.update(TRAFFIC_RAMP="0.2,0.6,1", TRAFFIC_STEP_SECONDS=600)
        daemon.write_settings()
        actions = Actions(shown)
        await actions.do("reload", is_reloaded)
        (entry,) = await trail(daemon)
        assert (entry["action"], entry["outcome"]) == ("reload", "accepted")

        await daemon.deploy("r2", wait="false")
        actions = Actions(shown, first=len(await trail(daemon)))
        await actions.do("ramp-pause", lambda: ramp_is(paused=True, share=0.2))
        await actions.do("ramp-resume", lambda: ramp_is(paused=False, share=0.2))
        await actions.do_by_commands()
        await actions.do("ramp-advance", lambda: ramp_is(paused=False, share=0.6))
