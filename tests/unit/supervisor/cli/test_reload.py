"""`atlasctl reload`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from atlas_supervisor.cli import reload
from tests.unit.supervisor.cli.fakes import Played, problem, status
from tests.unit.supervisor.cli.support import Call

BEFORE: dict[str, Any] = {
    "version": "1.2.0",
    "pid": 1311,
    "started_ts": "2026-01-05T09:30:00Z",
    "start": "fresh",
    "settings_pending": False,
}
AFTER = BEFORE | {"version": "1.2.1", "started_ts": "2026-01-05T10:00:00Z", "start": "reload"}
ACCEPTED = {"version": "1.2.1", "before": BEFORE, "changed": ["GUARD_SECONDS", "LLM_URL"]}


async def test_reload_waits_for_the_next_daemon_and_shows_what_changed(
    daemon: Played, atlasctl: Call
) -> None:
    daemon.play("POST", "/supervisor/reload", ACCEPTED, status=202)
    stopping = problem("stopping", "the daemon is stopping, or is being reloaded")
    daemon.play("GET", "/deploy/status", stopping, status=503)
    daemon.play_also("GET", "/deploy/status", status(daemon=BEFORE), status=200)
    daemon.play_also(
        "GET", "/deploy/status", status(daemon=AFTER | {"settings_pending": True}), status=200
    )

    outcome = await atlasctl("reload")

    assert (outcome.code, outcome.err) == (0, "")
    assert "reloaded: ATLAS 1.2.0 is now 1.2.1, pid 1311\n" in outcome.out
    assert "settings changed: GUARD_SECONDS, LLM_URL\n" in outcome.out
    assert "applied at the next deploy.\n  Apply them now with `atlasctl deploy`.\n" in outcome.out


async def test_a_refused_reload_shows_each_line_and_exits_with_1(
    daemon: Played, atlasctl: Call
) -> None:
    refused = problem("reload_refused", "the reload was refused", "correct it")
    refused["error"]["lines"] = ["PUBLIC_PORT=1: a reload can't change it; it is 2", "second"]
    daemon.play("POST", "/supervisor/reload", refused, status=422)

    outcome = await atlasctl("reload")

    assert outcome.code == 1
    assert "✗ The reload was refused; nothing has changed.\n" in outcome.err
    assert "\n  PUBLIC_PORT=1: a reload can't change it; it is 2\n  second\n" in outcome.err
    assert outcome.out == ""


async def test_another_refusal_shows_its_message_and_hint(daemon: Played, atlasctl: Call) -> None:
    daemon.play(
        "POST",
        "/supervisor/reload",
        problem("deploy_in_progress", "deploy d-42 is in progress (health)", "wait"),
        status=409,
    )
    outcome = await atlasctl("reload")
    assert outcome.code == 1
    assert "deploy d-42 is in progress (health)\n" in outcome.err


async def test_a_daemon_that_is_not_replaced_is_a_failure(
    daemon: Played, atlasctl: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "_SAME_SECONDS", 0.0)
    daemon.play("POST", "/supervisor/reload", ACCEPTED, status=202)
    daemon.play("GET", "/deploy/status", status(daemon=BEFORE))

    outcome = await atlasctl("reload")

    assert outcome.code == 1
    assert "The daemon goes on as it was.\n" in outcome.err


async def test_an_api_that_moves_is_not_waited_for_at_the_old_url(
    daemon: Played, call: Call
) -> None:
    moving = ACCEPTED | {"changed": ["CONTROL_PORT", "LOG_LEVEL"]}
    daemon.play("POST", "/supervisor/reload", moving, status=202)
    outcome = await call("reload", "--url", daemon.url)
    assert outcome.code == 0
    assert "the reload is in progress; CONTROL_PORT changes" in outcome.out
    assert [each.path for each in daemon.asked] == ["/supervisor/reload"]


async def test_without_a_daemon_the_hint_names_a_changed_state_folder(
    atlasctl: Call, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "moved.env").write_text("STATE_DIR=elsewhere\n")
    outcome = await atlasctl("reload", "--env-file", str(tmp_path / "moved.env"))
    assert outcome.code == 3
    assert "A reload can't change STATE_DIR" in outcome.err


async def test_json_is_the_answer_of_the_api_once_the_next_daemon_is_there(
    daemon: Played, atlasctl: Call
) -> None:
    daemon.play("POST", "/supervisor/reload", ACCEPTED, status=202)
    daemon.play("GET", "/deploy/status", status(daemon=AFTER))

    outcome = await atlasctl("--json", "reload")

    assert outcome.code == 0
    assert json.loads(outcome.out) == ACCEPTED
    assert [each.path for each in daemon.asked] == ["/supervisor/reload", "/deploy/status"]


async def test_status_shows_the_daemon_and_settings_that_are_pending(
    daemon: Played, atlasctl: Call
) -> None:
    daemon.play("GET", "/deploy/status", status(daemon=AFTER | {"settings_pending": True}))
    outcome = await atlasctl("status")
    assert "daemon       1.2.1  pid 1311  " in outcome.out
    assert "since its reload" in outcome.out
    assert "! Worker settings have changed; they are applied at the next deploy.\n" in outcome.out
