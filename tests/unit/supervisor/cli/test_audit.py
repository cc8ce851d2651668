"""`atlasctl audit`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.supervisor.cli.fakes import Played, problem
from tests.unit.supervisor.cli.support import Call

HEAD = "ab" * 32


def entry(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "id": number,
        "ts": "2025-11-23T06:00:00.123456+00:00",
        "actor": "uid:0",
        "origin": "unix",
        "action": "deploy",
        "subject": "d-42",
        "outcome": "begun",
        "detail": {"release": None},
        "hash": HEAD,
        "previous_hash": "0" * 64,
        **fields,
    }


def found(**fields: Any) -> dict[str, Any]:
    return {
        "ok": True,
        "entries": 7,
        "head": HEAD,
        "head_id": 7,
        "broken_id": None,
        "problem": None,
        "message": "every entry is there as it was written",
        **fields,
    }


BROKEN = found(
    ok=False,
    entries=4,
    broken_id=5,
    problem="missing",
    message="entries 5 to 6 are missing",
)


async def test_entries_are_listed_with_actor_origin_action_and_outcome(
    daemon: Played, atlasctl: Call
) -> None:
    detail = {"method": "POST", "path": "/deploy/mode", "left_out": 0, "why": None}
    refused = entry(
        2, actor="anonymous", origin="127.0.0.1", action="request", subject=None,
        outcome="refused", detail=detail,
    )  # fmt: skip
    daemon.play("GET", "/deploy/audit", {"entries": [refused, entry(1)]})
    outcome = await atlasctl("audit")
    assert outcome.code == 0
    header, first, second = outcome.out.splitlines()
    assert header.split() == ["id", "when", "who", "from", "what", "outcome", "subject", "detail"]
    assert first.split()[0] == "2"
    assert first.split()[3:] == [
        *("anonymous", "127.0.0.1", "request", "refused", "-"),
        *("method", "POST,", "path", "/deploy/mode,", "left_out", "0"),
    ]
    assert second.split()[3:] == ["uid:0", "unix", "deploy", "begun", "d-42"]
    assert daemon.asked[0].query == {"limit": "20"}


async def test_lists_and_records_in_a_detail_are_shown_in_words(
    daemon: Played, atlasctl: Call
) -> None:
    worker = {"slot": "blue", "release": "v1", "pid": 7}
    detail = {"workers": [worker, worker | {"slot": "green"}], "reloaded": False, "changed": []}
    daemon.play("GET", "/deploy/audit", {"entries": [entry(1, detail=detail)]})
    shown = (await atlasctl("audit")).out.splitlines()[1]
    assert shown.endswith("workers blue v1 7 + green v1 7, reloaded no")


async def test_the_options_are_passed_to_the_daemon(daemon: Played, atlasctl: Call) -> None:
    daemon.play("GET", "/deploy/audit", {"entries": []})
    asked = ("--limit", "5", "--before", "9", "--action", "mode", "--subject", "d-42")
    assert (await atlasctl("audit", *asked)).out == "no matching entries\n"
    assert daemon.asked[0].query == {
        "limit": "5",
        "before": "9",
        "action": "mode",
        "subject": "d-42",
    }


async def test_entries_are_escaped_on_a_terminal(daemon: Played, atlasctl: Call) -> None:
    daemon.play("GET", "/deploy/audit", {"entries": [entry(1, actor="\x1b[31mred\n")]})
    out = (await atlasctl("audit")).out
    assert "\\x1b[31mred\\n" in out
    assert len(out.splitlines()) == 2


async def test_an_intact_trail_exits_with_0_and_shows_its_last_hash(
    daemon: Played, atlasctl: Call
) -> None:
    daemon.play("GET", "/deploy/audit/verify", found())
    outcome = await atlasctl("audit", "--verify")
    assert outcome.code == 0
    assert "✓ the audit trail is intact: 7 entries" in outcome.out
    assert f"hash of entry 7, the last one:\n  {HEAD}" in outcome.out


async def test_a_broken_trail_exits_with_1_and_names_the_first_broken_entry(
    daemon: Played, atlasctl: Call
) -> None:
    daemon.play("GET", "/deploy/audit/verify", BROKEN)
    outcome = await atlasctl("audit", "--verify")
    assert outcome.code == 1
    assert "✗ the audit trail is broken at entry 5: entries 5 to 6 are missing" in outcome.out
    assert "4 entries before it" in outcome.out


@pytest.mark.parametrize("answer", [found(), BROKEN])
async def test_json_is_unchanged_and_the_exit_status_is_the_same(
    daemon: Played, atlasctl: Call, answer: dict[str, Any]
) -> None:
    daemon.play("GET", "/deploy/audit/verify", answer)
    outcome = await atlasctl("audit", "--verify", "--json")
    assert json.loads(outcome.out) == answer
    assert outcome.code == (0 if answer["ok"] else 1)


@pytest.mark.parametrize("more", [(), ("--verify",)])
async def test_without_the_right_to_read_it_the_daemons_hint_is_shown(
    daemon: Played, atlasctl: Call, more: tuple[str, ...]
) -> None:
    refused = problem("not_permitted", "uid 1000 may read the status.", "Run it as root.")
    for path in ("/deploy/audit", "/deploy/audit/verify"):
        daemon.play("GET", path, refused, status=403)
    outcome = await atlasctl("audit", *more)
    assert outcome.code == 1
    assert "Run it as root." in outcome.err


async def test_an_answer_of_another_server_is_no_daemon(daemon: Played, atlasctl: Call) -> None:
    daemon.play("GET", "/deploy/audit/verify", {"fine": True})
    assert (await atlasctl("audit", "--verify")).code == 3
