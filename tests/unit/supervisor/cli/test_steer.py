"""`atlasctl switch`, `abort`, `rollback` and `mode`."""

from __future__ import annotations

import json

import click
import pytest

from tests.unit.supervisor.cli.fakes import EARLIER, Played, problem, record, status, step
from tests.unit.supervisor.cli.support import Call


@pytest.mark.parametrize(
    ("verb", "result", "said"),
    [
        ("switch", "switched", "✓ switched to 2.0.0 on port 8791"),
        ("abort", "aborted", "✓ aborted"),
        ("rollback", "rolled_back", "✓ rolled back"),
    ],
)
async def test_a_completed_action_is_a_success(
    daemon: Played, atlasctl: Call, verb: str, result: str, said: str
) -> None:
    daemon.play("POST", f"/deploy/{verb}", record(step("switch"), result=result, reason="by uid:0"))
    outcome = await atlasctl(verb)
    assert outcome.code == 0
    assert said in outcome.out
    assert "by uid:0" in outcome.out


async def test_a_rollback_shows_the_version_that_has_the_traffic(
    daemon: Played, atlasctl: Call
) -> None:
    daemon.play("POST", "/deploy/rollback", record(result="rolled_back", reason="by uid:0"))
    daemon.play("GET", "/deploy/status", status(version="1.9.0", active_port=8791))
    outcome = await atlasctl("rollback")
    assert outcome.out.endswith("  1.9.0 on port 8791 has all the traffic\n")


async def test_a_rollback_names_its_version_and_whether_it_skips_the_gates(
    daemon: Played, atlasctl: Call
) -> None:
    daemon.play("POST", "/deploy/rollback", record(result="switched"))
    for arguments, body in (
        ((), ""),
        (("1.2",), '{"version": "1.2"}'),
        (("1.2", "--fast"), '{"version": "1.2", "fast": true}'),
    ):
        assert (await atlasctl("rollback", *arguments)).code == 0
        assert daemon.asked[-1].body == body


async def test_the_list_shows_how_each_version_would_take_over(
    daemon: Played, atlasctl: Call
) -> None:
    first = EARLIER["versions"][0]
    others = (
        {"version": "1.2", "warm": False, "next": False},
        {"version": "1.1", "warm": False, "fast": False, "why_not_fast": "a guard reverted it"},
        {"version": "1.0", "warm": False, "gone": "its folder is gone", "past_irreversible": ["2"]},
    )
    daemon.play(
        "GET", "/deploy/rollback", EARLIER | {"versions": [first, *(first | o for o in others)]}
    )
    outcome = await atlasctl("rollback", "--list")
    for line in (
        "at once                         the previous one",
        "once launched (--fast)",
        "once it has passed its gates    a guard reverted it",
        "not at all                      its folder is gone; it served before irreversible 2",
    ):
        assert " ".join(line.split()) in " ".join(outcome.out.split())
    assert [each.method for each in daemon.asked] == ["GET"]


@pytest.mark.parametrize("answer", ["y", "n"])
async def test_a_person_is_asked_before_going_back_past_an_irreversible_version(
    daemon: Played, atlasctl: Call, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    first = EARLIER["versions"][0] | {"past_irreversible": ["2.0"]}
    daemon.play("GET", "/deploy/rollback", EARLIER | {"versions": [first]})
    daemon.play("POST", "/deploy/rollback", record(result="switched"))
    asked: list[str] = []

    def confirm(question: str, **_: object) -> None:
        asked.append(question)
        if answer == "n":
            raise click.Abort

    monkeypatch.setattr("click.confirm", confirm)
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _stream: True)
    outcome = await atlasctl("rollback")
    assert "1.3.2 served before irreversible 2.0" in asked[0]
    posted = "POST" in [each.method for each in daemon.asked]
    assert (posted, outcome.code == 0) == ((answer == "y"),) * 2
    assert (await atlasctl("rollback", "--yes")).code == 0
    assert len(asked) == 1


@pytest.mark.parametrize("verb", ["switch", "abort", "rollback"])
async def test_an_action_without_a_deploy_is_refused(
    daemon: Played, atlasctl: Call, verb: str
) -> None:
    refused = problem("nothing_to_do", "There is no deploy.", "Begin one.")
    daemon.play("POST", f"/deploy/{verb}", refused, status=409)
    outcome = await atlasctl(verb)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err == "✗ There is no deploy.\n  Begin one.\n"


async def test_a_failed_switch_shows_its_step_and_the_hint(daemon: Played, atlasctl: Call) -> None:
    failed = record(step("launch"), step("switch", ok=False, message="no space left"))
    refused = problem("switch_failed", "The switch could not be done.", "Make room; switch again.")
    daemon.play("POST", "/deploy/switch", failed | refused, status=503)
    outcome = await atlasctl("switch")
    assert outcome.code == 1
    assert "✗ switch" in outcome.out
    assert "no space left" in outcome.out
    assert "launch" not in outcome.out
    assert outcome.err == "✗ The switch could not be done.\n  Make room; switch again.\n"


async def test_with_json_a_refusal_is_the_api_s_own_answer_and_exit_1(
    daemon: Played, atlasctl: Call
) -> None:
    refused = problem("nothing_waits", "No.", "")
    daemon.play("POST", "/deploy/switch", refused, status=409)
    outcome = await atlasctl("switch", "--json")
    assert outcome.code == 1
    assert json.loads(outcome.out) == refused
    assert outcome.err == ""


async def test_the_mode_is_set_and_shown(daemon: Played, atlasctl: Call) -> None:
    daemon.play("POST", "/deploy/mode", status(mode="single"))
    outcome = await atlasctl("mode", "single")
    assert outcome.code == 0
    assert outcome.out == "✓ mode is single: deploys are disabled\n"
    assert json.loads(daemon.asked[0].body) == {"mode": "single"}


async def test_an_unknown_mode_is_wrong_usage_and_sends_no_request(
    daemon: Played, atlasctl: Call
) -> None:
    outcome = await atlasctl("mode", "purple")
    assert outcome.code == 2
    assert daemon.asked == []


@pytest.mark.parametrize(
    ("verb", "does"),
    [
        ("start", "atlas-supervisor"),
        ("stop", "systemctl stop"),
        ("restart", "atlasctl deploy"),
        ("release", "atlasctl hold --release"),
        ("kill", "atlasctl fleet kill"),
    ],
)
async def test_a_verb_of_other_programs_names_what_does_it_here(
    daemon: Played, atlasctl: Call, verb: str, does: str
) -> None:
    outcome = await atlasctl(verb)
    assert outcome.code == 2
    assert f"No such command '{verb}': " in outcome.err
    assert does in outcome.err
    assert daemon.asked == []


async def test_a_refusal_without_a_message_shows_the_status(daemon: Played, atlasctl: Call) -> None:
    daemon.play("POST", "/deploy/abort", {}, status=500)
    outcome = await atlasctl("abort")
    assert outcome.code == 1
    assert "HTTP 500" in outcome.err
