"""`atlasctl status`."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from tests.unit.supervisor.cli.fakes import Played, record, slot, status
from tests.unit.supervisor.cli.support import Call


async def test_status_shows_mode_ports_versions_slots_and_traffic(
    daemon: Played, atlasctl: Call
) -> None:
    daemon.play("GET", "/deploy/status", status())
    outcome = await atlasctl("status")
    assert outcome.code == 0
    assert outcome.err == ""
    lines = [line.split() for line in outcome.out.splitlines()]
    assert ["mode", "bluegreen"] in lines
    assert ["active", "port", "8791", "1.0.0"] in lines
    assert ["public", "port", "8790", "kernel", "plane"] in lines
    assert ["traffic", "blue", "100", "%,", "green", "0", "%"] in lines
    assert ["last", "deploy", "none", "yet"] in lines
    assert ["green", "staging", "empty", "8792", "-", "-", "-", "0"] in lines


async def test_status_shows_the_age_and_the_result_of_the_last_deploy(
    daemon: Played, atlasctl: Call
) -> None:
    ended = (datetime.now(UTC) - timedelta(minutes=5, seconds=20)).isoformat()
    last = record(result="rolled_back", ended_ts=ended.replace("+00:00", "Z"))
    daemon.play("GET", "/deploy/status", status(last_deploy=last))
    outcome = await atlasctl("status")
    assert "last deploy  rolled_back  2.0.0  5 min ago  d-42" in outcome.out


async def test_status_shows_the_phase_of_a_deploy_in_progress(
    daemon: Played, atlasctl: Call
) -> None:
    last = record(result=None, phase="health", ended_ts=None)
    daemon.play("GET", "/deploy/status", status(last_deploy=last, deploy_in_progress=True))
    outcome = await atlasctl("status")
    assert "deploying  d-42  health" in outcome.out
    assert "last deploy" not in outcome.out


async def test_status_shows_what_to_do_with_a_waiting_deploy(
    daemon: Played, atlasctl: Call
) -> None:
    last = record(result="awaiting_switch", phase="awaiting_switch", ended_ts=None)
    daemon.play("GET", "/deploy/status", status(last_deploy=last, deploy_in_progress=True))
    outcome = await atlasctl("status")
    assert "deploying  d-42  awaiting switch" in outcome.out
    assert (
        "! 2.0.0 passed its gates and waits.\n  Switch to it with `atlasctl switch`" in outcome.out
    )


async def test_status_shows_what_the_daemon_suggests_and_its_action(
    daemon: Played, atlasctl: Call
) -> None:
    suggestion = {
        "code": "mode_is_single",
        "message": "Deploys are off.",
        "action": "atlasctl mode bluegreen",
    }
    daemon.play("GET", "/deploy/status", status(mode="single", fallback_suggestions=[suggestion]))
    outcome = await atlasctl("status")
    assert "! Deploys are off.\n  atlasctl mode bluegreen\n" in outcome.out


async def test_status_shows_that_there_is_no_public_port(daemon: Played, atlasctl: Call) -> None:
    daemon.play(
        "GET",
        "/deploy/status",
        status(public_port=None, traffic={"plane": "none", "weights": {}}, version=None),
    )
    outcome = await atlasctl("status")
    assert "off; clients use the active port" in outcome.out
    assert "None" not in outcome.out


async def test_status_shows_the_restarts_of_a_slot(daemon: Played, atlasctl: Call) -> None:
    slots = [slot("blue", 8791, "active", "backoff", restarts=3)]
    daemon.play("GET", "/deploy/status", status(slots=slots))
    outcome = await atlasctl("status")
    assert ["blue", "active", "backoff", "8791", "-", "-", "-", "3"] in [
        line.split() for line in outcome.out.splitlines()
    ]


@pytest.mark.parametrize(
    "arguments", [["status", "--json"], ["--json", "status"], ["--json", "status", "--json"]]
)
async def test_json_is_accepted_before_and_after_the_verb_and_printed_unchanged(
    daemon: Played, atlasctl: Call, arguments: list[str]
) -> None:
    body = '{"mode" :"bluegreen",\n "slots":[],  "version":"ü\\u001b"}'.encode()
    daemon.play("GET", "/deploy/status", body)
    outcome = await atlasctl(*arguments)
    assert outcome.out.encode() == body
    assert outcome.err == ""
    assert outcome.code == 0
    json.loads(outcome.out)


async def test_text_of_a_worker_is_escaped_and_not_parsed_as_markup(
    daemon: Played, atlasctl: Call
) -> None:
    evil = "\x1b]0;owned\x07[red]v1[/red]\r\x9b2J\u202e:smile:"
    daemon.play("GET", "/deploy/status", status(version=evil))
    outcome = await atlasctl("status")
    assert r"\x1b]0;owned\x07[red]v1[/red]\r\x9b2J\u202e:smile:" in outcome.out
    assert not any(not c.isprintable() for c in outcome.out.replace("\n", ""))


async def test_status_shows_draining_workers_and_unexpected_exits(
    daemon: Played, atlasctl: Call
) -> None:
    leaving = {"slot": "green", "version": "0.9", "pid": 77, "since_ts": None}
    left = {"requests": 1, "websockets": 3, "event_streams": 0, "idle": 2}
    slots = [
        slot("blue", 8791, "active", "backoff", restarts=3, last_exit="it was ended by SIGBUS")
    ]
    draining = [
        {**leaving, "left": left},
        {**leaving, "left": None, "connections": 5},
        {**leaving, "left": dict.fromkeys(left, 0)},
    ]
    daemon.play("GET", "/deploy/status", status(slots=slots, draining=draining))
    outcome = await atlasctl("status")
    assert "blue: last unexpected exit: it was ended by SIGBUS\n    SIGBUS: a crash" in outcome.out
    assert "green drains 0.9, pid 77" in outcome.out
    assert "1 request, 3 websockets, 2 idle" in outcome.out
    assert "5 connections" in outcome.out
    assert "nothing left" in outcome.out


async def test_status_and_show_have_what_the_guard_has_seen(daemon: Played, atlasctl: Call) -> None:
    guarded = record(phase="guard", guard={"message": "3 of 640 requests failed", "failed": 3})
    daemon.play("GET", "/deploy/status", status(last_deploy=guarded))
    daemon.play("GET", f"/deploy/{guarded['deploy_id']}", guarded)
    assert "3 of 640 requests failed" in (await atlasctl("status")).out
    assert "3 of 640 requests failed" in (await atlasctl("show", guarded["deploy_id"])).out


async def test_status_shows_the_requests_of_workers_that_count_them(
    daemon: Played, atlasctl: Call
) -> None:
    figures = {"per_second": 41.5, "error_share": 0.002, "p50_ms": 8.2, "p95_ms": 31, "p99_ms": 77}
    busy, foreign = status()["slots"]
    quiet = dict.fromkeys(figures, None) | {"per_second": 0.0}
    daemon.play(
        "GET",
        "/deploy/status",
        status(slots=[{**busy, "requests": figures}, {**foreign, "requests": quiet}]),
    )
    outcome = await atlasctl("status")
    line = "blue: 41.5 requests/s  0.2 % failed  p50 8.2 ms, p95 31 ms, p99 77 ms"
    assert line in outcome.out
    assert "green: " not in outcome.out


async def test_status_shows_the_limits_of_a_worker_and_that_the_last_deploy_was_a_recycle(
    daemon: Played, atlasctl: Call
) -> None:
    recycle = {"max_rss_mb": 800, "max_age_seconds": 86400, "due": None, "waits": None}
    last = record(result="switched", cause="recycled")
    daemon.play("GET", "/deploy/status", status(last_deploy=last, recycle=recycle))
    out = (await atlasctl("status")).out
    assert "recycle      at 800 MB or 1 d of age\n" in out
    assert "last deploy  switched  recycled  2.0.0" in out
    waits = {**recycle, "due": "the worker has 900 MiB", "waits": "the worker before it drains"}
    daemon.play("GET", "/deploy/status", status(recycle=waits))
    assert "of age  due: the worker before it drains\n" in (await atlasctl("status")).out
