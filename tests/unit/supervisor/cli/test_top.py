"""`atlasctl top`, by Textual's pilot, against a daemon that plays its answers."""

from __future__ import annotations

import re
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import OptionList, Static

from atlas_supervisor.cli.client import DaemonClient
from atlas_supervisor.cli.endpoint import Endpoint
from atlas_supervisor.cli.session import Session
from atlas_supervisor.cli.terminal import Screen
from atlas_supervisor.cli.top import watch
from atlas_supervisor.cli.top.app import Top
from atlas_supervisor.cli.top.headline import headline, last_change, slot_lines
from tests.harness import eventually
from tests.unit.supervisor.cli.fakes import (
    STAY,
    Played,
    event,
    problem,
    record,
    slot,
    status,
    step,
)
from tests.unit.supervisor.cli.support import Call

FIGURES = {"per_second": 41.5, "error_share": 0.0, "p50_ms": 8.2, "p95_ms": 31.0, "p99_ms": 77.0}
RECENT = {"seconds": 300, "requests": 12450, "failed": 0}
FAILED = record(
    step("preflight"),
    step("smoke", ok=False, message="1 of 6 smoke tests failed"),
    result="failed",
    reason="smoke: 1 of 6 smoke tests failed",
)
ENTRIES = [
    {"ts": "2025-11-23T06:00:01Z", "actor": "anonymous", "action": "request", "outcome": "refused"},
    {
        "ts": "2025-11-23T06:00:00Z",
        "actor": "supervisor",
        "action": "deploy",
        "outcome": "failed",
        "subject": "d-42",
    },
    {"actor": "uid:7", "action": "deploy", "outcome": "begun", "subject": "d-42"},
]
RAMP = {
    "share": 0.05,
    "step": 1,
    "of": 3,
    "paused": False,
    "next_ts": "2000-01-01T00:00:00Z",
    "waits_for": "30 more requests of the new version",
    "steps": [],
}


def serving(**fields: Any) -> dict[str, Any]:
    active = slot("blue", 8791, "active", "running", version="1.0.0", requests=FIGURES)
    slots = [active, slot("green", 8792, "staging", "empty")]
    return status(slots=slots, **{"requests": RECENT, **fields})


def ramping() -> dict[str, Any]:
    last = record(phase="ramp", ramp=RAMP)
    return serving(last_deploy=last, deploy_in_progress=True)


class Seen:
    """The screen as a person sees and uses it."""

    def __init__(self, app: Top, pilot: Pilot[str]) -> None:
        self.app = app
        self.pilot = pilot

    def text(self, name: str) -> str:
        """Return the text of a part of the screen, or of a window over it."""
        return "\n".join(str(each.content) for each in self.app.screen.query(name).results(Static))

    async def until(self, name: str, *words: str) -> str:
        """Wait until a part of the screen has these words; return all of it."""

        def has() -> bool:
            return all(word in self.text(name) for word in words)

        await eventually(has, what=f"{words} in {name}")
        return self.text(name)

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)


Look = Callable[..., Any]


@pytest.fixture
def look(daemon: Played) -> Look:
    """Show the screen, with a daemon that is in this status."""

    @asynccontextmanager
    async def shown(
        now: dict[str, Any],
        size: tuple[int, int] = (80, 24),
        *,
        streams: Sequence[tuple[bytes | object, ...]] = (),
        log: bytes = b"",
        entries: Sequence[dict[str, Any]] = (),
    ) -> AsyncIterator[Seen]:
        daemon.play("GET", "/deploy/status", now)
        daemon.play("GET", "/health", {"score": 100, "status": "healthy", "checks": {}})
        daemon.play("GET", "/deploy/audit", {"entries": [*entries]})
        if last := now["last_deploy"]:
            daemon.play("GET", f"/deploy/{last['deploy_id']}", last)
        path = "/deploy/logs/supervisor" if log else "/deploy/events"
        daemon.play_events(*([(log, STAY)] if log else streams), path=path)
        async with DaemonClient(Endpoint(base=daemon.url, token="t")) as client:
            app = Top(Session(client, Screen(StringIO()), json=False), now)
            async with app.run_test(size=size) as pilot:
                yield Seen(app, pilot)

    return shown


async def test_the_screen_says_first_whether_users_are_served_then_the_slots_and_the_keys(
    look: Look,
) -> None:
    async with look(serving()) as seen:
        await seen.until("#headline", "1.0.0 serves all traffic, 0 errors in 5 min")
        assert "> blue   running  1.0.0" in seen.text("#slots")
        assert "41.5   0 %     31 ms" in seen.text("#slots")
        assert "d deploy" in seen.text("#keys")
        assert "abort" not in seen.text("#keys")
        assert "no deploy yet" in seen.text("#content")


async def test_a_failed_deploy_has_its_reason_first_and_the_change_its_requester(
    look: Look, daemon: Played
) -> None:
    async with look(serving(last_deploy=FAILED), entries=ENTRIES) as seen:
        text = await seen.until("#content", "✗ smoke")
        assert text.index("1 of 6 smoke tests failed") < text.index("started")
        await seen.until("#change", "deploy: failed (2.0.0)", "requested by uid:7")


async def test_a_deploy_in_its_guard_has_its_steps_its_figures_and_the_time_that_is_left(
    look: Look,
) -> None:
    guard = {"message": "0 of 264 requests failed"}
    until = (datetime.now(UTC) + timedelta(seconds=90)).isoformat()
    steps = [step(name) for name in ("preflight", "launch", "smoke", "health", "switch")]
    last = record(*steps, result="switched", phase="guard", guard=guard, until_ts=until)
    async with look(serving(last_deploy=last)) as seen:
        text = await seen.until("#content", "✓ switch  > guard  · drain", "0 of 264 requests")
        assert re.search(r"guard  for .*  1 min 2\d s left", text)
        assert "d deploy" in seen.text("#keys")


async def test_an_action_asks_shows_its_command_runs_the_verb_and_says_what_came_of_it(
    look: Look, daemon: Played
) -> None:
    daemon.play("POST", "/deploy/mode", {**serving(), "mode": "single"})
    async with look(serving()) as seen:
        await seen.press("m")
        await seen.until("Ask Static", "Disables deploys.", "$ atlasctl mode single")
        await seen.press("escape")
        assert not [asked for asked in daemon.asked if asked.method == "POST"]
        await seen.press("m")
        await seen.until("Ask Static", "$ atlasctl mode single")
        await seen.press("y")
        await seen.until("#outcome", "$ atlasctl mode single", "✓ mode is single")
        [asked] = [asked for asked in daemon.asked if asked.method == "POST"]
        assert asked.body == '{"mode": "single"}'
        await seen.press("escape")
        assert seen.text("#outcome") == ""


async def test_a_token_that_may_only_read_is_told_so_by_the_daemons_own_words(
    look: Look, daemon: Played
) -> None:
    refused = problem("not_permitted", "this token may only read", "use the other one")
    daemon.play("POST", "/deploy/ramp", refused, status=403)
    async with look(ramping()) as seen:
        daemon.play("GET", "/deploy/logs/supervisor", refused, status=403)
        await seen.until("#keys", "a abort", "p pause", "v advance")
        await seen.until("#content", "> ramp", "waits for 30 more requests")
        await seen.press("p", "y")
        await seen.until("#outcome", "$ atlasctl ramp pause", "this token may only read", "use the")
        await seen.press("l")
        await seen.until("#content", "this token may only read")
        await seen.press("r")
        await seen.until("#outcome", "roll back", "no /deploy/rollback here")


async def test_without_a_daemon_the_screen_is_grey_and_goes_on_when_one_is_there(
    look: Look, daemon: Played
) -> None:
    async with look(serving()) as seen:
        await seen.until("#headline", "✓")
        daemon.play("GET", "/deploy/status", problem("stopping", "it stops"), status=503)
        text = await seen.until("#headline", "ago: 1.0.0 serves", "it stops")
        assert "✓" not in text
        [line] = seen.app.screen.query("#slots").results(Static)
        assert line.content.style == "dim"
        daemon.play("GET", "/deploy/status", serving())
        await seen.until("#headline", "✓")


async def test_a_deploy_is_chosen_from_the_history_and_lines_are_filtered(
    look: Look, daemon: Played
) -> None:
    old = {**FAILED, "deploy_id": "d-1"}
    daemon.play("GET", "/deploy/history", {"deploys": [record(result="switched"), old]})
    daemon.play("GET", "/deploy/d-1", old)
    async with look(serving(last_deploy=record(result="switched")), size=(46, 20)) as seen:
        past = seen.app.screen.query_one("#past", OptionList)
        await seen.press("2")
        await eventually(lambda: past.option_count == 2, what="the history")
        await seen.press("slash", *"d-1")
        await eventually(lambda: past.option_count == 1, what="the filtered history")
        await seen.press("enter", "enter")
        await seen.until("#content", "d-1", "d-1  release")
        await seen.press("escape")
        await seen.until("#content", "d-1", "✗ failed")
        await seen.press("escape")
        await seen.until("#content", "d-42", "✓ switched")


async def test_a_transition_is_shown_at_once_by_the_one_event_stream(
    look: Look, daemon: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "POLL_SECONDS", 1000)
    async with look(serving(), streams=[(b"id: 6\n\n", 40, event(7), STAY)]) as seen:
        await seen.until("#headline", "1.0.0 serves all traffic")
        daemon.play("GET", "/deploy/status", ramping())
        while not daemon.has_heard(40):
            await seen.app.session.daemon.get("/nothing")
        await seen.until("#keys", "a abort")
        assert [asked.path for asked in daemon.asked].count("/deploy/events") == 1


async def test_a_tall_screen_has_the_end_of_the_log_below_each_pane(
    look: Look, daemon: Played
) -> None:
    async with look(serving(), size=(140, 50), log=b"id: 1\ndata: a line\n\n") as seen:
        await seen.until("#tail", "a line")
        await seen.press("4")
        await seen.until("#content", "healthy")
        assert "a line" in seen.text("#tail")


@pytest.mark.parametrize(
    ("now", "health", "sentence"),
    [
        (serving(), {}, "✓ 1.0.0 serves"),
        (status(slots=[slot("blue", 1, "active", "backoff")]), {}, "✗ Users are not served: blue"),
        (
            serving(),
            {"checks": {"port_active": {"status": "fail", "message": "it hangs"}}},
            "✗ Users are not served: it hangs",
        ),
        (
            serving(traffic={"held": {"by": "uid:0", "waiting": 3}}),
            {},
            "! New connections are held by uid:0: 3 wait",
        ),
        (
            status(
                slots=[slot("b", 1, "active", "running", requests={**FIGURES, "error_share": 0.2})],
                requests={"seconds": 300, "requests": 40, "failed": 8},
            ),
            {},
            "✗ 1.0.0 serves all traffic, 20 % of requests fail, 8 of 40 requests failed in 5 min",
        ),
    ],
)
def test_the_sentence_is_red_only_when_users_suffer(
    now: dict[str, Any], health: dict[str, Any], sentence: str
) -> None:
    found = headline(now, health)
    signs = {"ok": "✓", "bad": "✗", "note": "!"}
    assert f"{signs[found.sign]} {found.sentence}".startswith(sentence)
    assert found.as_of(12).sentence.startswith("12.0 s ago: ")
    assert found.as_of(12).style == "dim"


def test_a_narrow_table_of_slots_keeps_errors_and_latency() -> None:
    long = serving()
    long["slots"][0]["version"] = "2026.01.05-build.1841+g0123456789ab"
    for width in (140, 80, 46):
        head, blue, _ = [line.plain for line in slot_lines(long, width)]
        assert len(head) <= width
        assert head.rstrip().endswith("errors p95" if width < 140 else "errors  p95")
        assert blue.rstrip().endswith("31 ms")


def test_without_the_audit_trail_the_last_change_is_the_last_deploy() -> None:
    last = {**FAILED, "transitions": [{"cause": "deploy requested by uid:0"}]}
    assert last_change(serving(), {}, []) == "no deploy yet"
    words = last_change(serving(last_deploy=FAILED), last, [])
    assert words.startswith("deploy: failed (2.0.0), ")
    assert words.endswith(" ago: deploy requested by uid:0")


def test_a_session_of_the_dashboard_is_no_change() -> None:
    ts = datetime.now(UTC).isoformat()
    signed_in = {"action": "session", "outcome": "begun", "actor": "session:1", "ts": ts}
    switched = {"action": "deploy", "outcome": "switched", "actor": "uid:0", "ts": ts}
    words = last_change(serving(), {}, [signed_in, switched])
    assert words.startswith("deploy: switched, ")


async def test_top_is_refused_without_a_terminal_and_with_json(
    daemon: Played, atlasctl: Call
) -> None:
    assert (await atlasctl("top")).code == 2
    outcome = await atlasctl("top", "--json")
    assert outcome.code == 2
    assert "atlasctl status --json" in outcome.err


async def test_without_textual_top_names_the_command_that_installs_it(
    daemon: Played, atlasctl: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/srv/my shop/.venv/bin/python")
    monkeypatch.delitem(sys.modules, "atlas_supervisor.cli.top.app")
    monkeypatch.setitem(sys.modules, "textual", None)
    for name in [each for each in sys.modules if each.startswith("textual.")]:
        monkeypatch.setitem(sys.modules, name, None)
    outcome = await atlasctl("top")
    assert outcome.code == 1
    assert "needs Textual" in outcome.err
    assert "'/srv/my shop/.venv/bin/python' -m pip install \"textual" in outcome.err


async def test_an_answer_of_other_types_is_reported_and_the_next_one_shown(
    look: Look, daemon: Played
) -> None:
    async with look(serving()) as seen:
        await seen.until("#headline", "1.0.0 serves all traffic")
        strange = serving()
        strange["slots"][0]["requests"] = FIGURES | {"per_second": [1]}
        daemon.play("GET", "/deploy/status", strange)
        await seen.until("#headline", "not understood", "trying again")
        daemon.play("GET", "/deploy/status", serving())
        await seen.until("#headline", "1.0.0 serves all traffic")
