"""`atlasctl health`."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from atlas_supervisor.cli.health import health_view
from atlas_supervisor.cli.terminal import Screen
from tests.unit.supervisor.cli.fakes import Played, status
from tests.unit.supervisor.cli.support import Call


def check(status: str, message: str = "", value: float | None = None, unit: str = "") -> Any:
    return {"status": status, "value": value, "unit": unit or None, "message": message}


def health(score: int = 100, status: str = "healthy", **checks: Any) -> dict[str, Any]:
    return {
        "score": score,
        "status": status,
        "checks": checks or {"port_active": check("pass", "blue answers", 2.94, "ms")},
        "slot": "blue",
        "version": "1.4.0",
        "age_seconds": 1.23,
    }


DEAD = health(
    0,
    "unhealthy",
    port_active=check("fail", "blue is backoff"),
    database=check("pass", "write and read-back OK"),
)


async def test_health_shows_the_score_and_each_check(daemon: Played, atlasctl: Call) -> None:
    checks = {
        "memory": check("warn", "no write within 1 s", None, "ms"),
        "disk_free": check("pass", "free in STATE_DIR", 18211, "MiB"),
        "llm_latency": check("skipped", "LLM_URL is empty"),
    }
    daemon.play("GET", "/health", health(92, "degraded", **checks))
    outcome = await atlasctl("health")
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert lines[0] == "92  degraded  blue, version 1.4.0  checked 1.2 s ago"
    assert [line.split() for line in lines[2:]] == [
        ["!", "memory", "warn", "-", "no", "write", "within", "1", "s"],
        ["✓", "disk_free", "pass", "18", "211", "MiB", "free", "in", "STATE_DIR"],
        ["·", "llm_latency", "skipped", "-", "LLM_URL", "is", "empty"],
    ]


async def test_a_worker_that_reports_no_checks_is_shown_without_them(
    daemon: Played, atlasctl: Call
) -> None:
    names = ("llm_latency", "scheduler", "memory", "db_integrity")
    foreign = dict.fromkeys(names, check("skipped", "not reported by the worker"))
    daemon.play("GET", "/health", health(port_active=check("pass", "blue answers"), **foreign))
    outcome = await atlasctl("health")
    assert "port_active" in outcome.out
    assert not any(name in outcome.out for name in names)
    assert set(json.loads((await atlasctl("health", "--json")).out)["checks"]) == {
        "port_active",
        *names,
    }


async def test_unhealthy_is_exit_1_and_still_shows_every_check(
    daemon: Played, atlasctl: Call
) -> None:
    daemon.play("GET", "/health", DEAD, status=503)
    outcome = await atlasctl("health")
    assert outcome.code == 1
    assert "0  unhealthy" in outcome.out
    assert "✗ port_active  fail" in outcome.out
    assert "blue is backoff" in outcome.out
    assert "database" in outcome.out


@pytest.mark.parametrize(("body", "code"), [(health(), 200), (DEAD, 503)])
async def test_json_is_the_unchanged_answer(
    daemon: Played, atlasctl: Call, body: dict[str, Any], code: int
) -> None:
    daemon.play("GET", "/health", body, status=code)
    outcome = await atlasctl("health", "--json")
    assert json.loads(outcome.out) == body
    assert outcome.err == ""
    assert outcome.code == (0 if code == 200 else 1)


async def test_another_503_is_a_refusal(daemon: Played, atlasctl: Call) -> None:
    error = {"error": {"code": "unavailable", "message": "no storage", "hint": "look there"}}
    daemon.play("GET", "/health", error, status=503)
    outcome = await atlasctl("health")
    assert outcome.code == 1
    assert "no storage" in outcome.err + outcome.out


async def test_an_answer_without_a_score_is_no_daemon(daemon: Played, atlasctl: Call) -> None:
    daemon.play("GET", "/health", {"status": "ok"})
    assert (await atlasctl("health")).code == 3


async def test_text_of_a_worker_is_escaped(daemon: Played, atlasctl: Call) -> None:
    evil = "\x1b[2J[red]x[/red]\u202e"
    daemon.play("GET", "/health", health(60, "degraded", memory=check("fail", evil)))
    outcome = await atlasctl("health")
    assert r"\x1b[2J[red]x[/red]\u202e" in outcome.out
    assert all(c.isprintable() for c in outcome.out.replace("\n", ""))


@pytest.mark.parametrize("odd", [{"checks": {"memory": None}}, {"checks": {"memory": {}}}])
async def test_a_malformed_check_is_shown_as_missing(
    daemon: Played, atlasctl: Call, odd: dict[str, Any]
) -> None:
    daemon.play("GET", "/health", {**health(), **odd})
    outcome = await atlasctl("health")
    assert outcome.code == 0
    assert "memory" in outcome.out


def test_on_a_terminal_the_score_is_big_and_in_its_colour(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)

    class Terminal(io.StringIO):
        encoding = "utf-8"

        def isatty(self) -> bool:
            return True

    stream = Terminal()
    screen = Screen(stream)
    screen.print(health_view(screen, health(71, "degraded")))
    shown = stream.getvalue()
    assert "  |   |" in shown  # the middle of 7 and 1
    assert "\x1b[1;33m" in shown
    assert "degraded" in shown


async def test_status_shows_the_score_and_below_100_the_verb_for_more(
    daemon: Played, atlasctl: Call
) -> None:
    daemon.play("GET", "/deploy/status", status(), status(health_score=60))
    well, worse = [(await atlasctl("status")).out.splitlines() for _ in range(2)]
    assert ["health", "100"] in [line.split() for line in well]
    assert ["health", "60", "atlasctl", "health"] in [line.split() for line in worse]
