"""`atlasctl fleet …`: its requests, what it shows, and how it ends."""

from __future__ import annotations

import json
from typing import Any

import pytest

from atlas_supervisor.api import fleet_examples
from atlas_supervisor.cli import fleet_follow
from atlas_supervisor.cli.fleet_words import FEW_HOSTS, headline, listed, versions
from tests.unit.supervisor.cli.fakes import FLEET, Played, problem
from tests.unit.supervisor.cli.support import Call

OFF = problem("fleet_is_off", "this machine belongs to no fleet", "set FLEET_ETCD_ENDPOINTS")
RUNNING = problem("rollout_in_progress", "rollout r1 of 1.3 is running", "wait for its end")


def view(name: str) -> dict[str, Any]:
    found: dict[str, Any] = getattr(fleet_examples, name).model_dump(mode="json")
    return found


def host(name: str, **fields: Any) -> dict[str, Any]:
    return {**FLEET["hosts"][0], "name": name, "part": None, **fields}


def rollout(state: str, **parts: str) -> dict[str, Any]:
    """Return a fleet of hosts in these states of a rollout."""
    times = {"started_ts": "2026-01-05T09:30:02Z", "ended_ts": "2026-01-05T09:31:10Z"}
    hosts = [
        host(name, part=each and {**times, "state": each, "reason": "", "version": "1.4.0"})
        for name, each in parts.items()
    ]
    deploying = [name for name, each in parts.items() if each == "deploying"]
    now = {"state": state, "hosts": {"passed": [], "deploying": deploying}, "now": ""}
    return {**FLEET, "hosts": hosts, "rollout": {**FLEET["rollout"], **now}, "suggestions": []}


@pytest.mark.parametrize(
    ("arguments", "path", "body"),
    [
        (
            ("rollout", "1.4.0"),
            "rollout",
            {"release": "1.4.0", "max_unavailable": 1, "waves": [1, 0.1, 1]},
        ),
        (
            ("rollout", "1.4.0", "--max-unavailable", "3", "--waves", "2, 12.5 %,100%"),
            "rollout",
            {"release": "1.4.0", "max_unavailable": 3, "waves": [2, 0.125, 1]},
        ),
        (("pause",), "rollout/pause", None),
        (("resume",), "rollout/resume", None),
        (("abort",), "rollout/abort", None),
        (("abort", "--rollback"), "rollout/rollback", None),
        (("rollback",), "rollout/rollback", None),
        (("break", "web2", "--generation", "17"), "break", {"host": "web2", "generation": 17}),
        (("kill", "vision"), "kill", {"feature": "vision"}),
        (("kill", "all"), "kill", {"feature": None}),
        (("reset",), "reset", None),
        (("forget", "web9"), "forget", {"host": "web9"}),
    ],
)
async def test_a_change_is_one_request(
    daemon: Played, atlasctl: Call, arguments: tuple[str, ...], path: str, body: object
) -> None:
    daemon.play("POST", f"/fleet/{path}", FLEET)

    outcome = await atlasctl("fleet", *arguments)

    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("✓")
    assert [json.loads(asked.body or "null") for asked in daemon.asked] == [body]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("rollout", "1", "--waves", "1,ten,100%"), "'ten' is neither a number of hosts nor"),
        (("rollout", "1", "--waves", "1,0.1,1"), "'0.1' is neither a number of hosts nor a share"),
        (("rollout", "1", "--waves", "1,110%"), "'110%' is more than all"),
        (("rollout", "1", "--waves", "0,100%"), "'0' is neither"),
        (("rollout", "1", "--waves", "10%,1"), "the last wave is all hosts, and 1 is one host"),
        (("rollout", "1", "--waves", "100%,100%"), "no wave comes after it"),
        (("rollout", "1", "--waves", ""), "'' is neither"),
        (("rollout", "1", "--waves", "1,,100%"), "'' is neither"),
        (("rollout", "1", "--waves", "1.5,100%"), "'1.5' is neither"),
        (("rollout", "1", "--waves", "²,100%"), "is neither"),
        (("rollout", "1", "--max-unavailable", "0"), "max-unavailable"),
        (("break", "web2"), "--generation"),
        (("break", "web/2", "--generation", "1"), "not the name of a host"),
        (("kill", "Vision"), "not the name of a feature"),
        (("kill",), "FEATURE|all"),
    ],
)
async def test_wrong_usage_is_explained_and_sends_no_request(
    daemon: Played, atlasctl: Call, arguments: tuple[str, ...], said: str
) -> None:
    outcome = await atlasctl("fleet", *arguments)

    assert outcome.code == 2
    assert said in outcome.err
    assert daemon.asked == []


@pytest.mark.parametrize("answer", [OFF, RUNNING])
async def test_a_refusal_is_shown_with_its_hint_and_exits_1(
    daemon: Played, atlasctl: Call, answer: dict[str, Any]
) -> None:
    daemon.play("GET", "/fleet", answer, status=409)
    daemon.play("POST", "/fleet/rollout", answer, status=409)

    for arguments in (("status",), ("rollout", "1.4.0", "--follow")):
        outcome = await atlasctl("fleet", *arguments)
        assert outcome.code == 1
        assert answer["error"]["message"] in outcome.err
        assert answer["error"]["hint"] in outcome.err


async def test_the_status_says_who_serves_what_waits_and_what_to_do(
    daemon: Played, atlasctl: Call
) -> None:
    daemon.play("GET", "/fleet", view("HALTED"))
    outcome = await atlasctl("fleet", "status")

    assert outcome.code == 0
    assert "✗ 2 of 3 hosts serve 1.4.0 (1) and 1.3.2 (1)" in outcome.out
    assert "rollout  1.4.0: halted, 1 of 3 hosts passed, 1 failed" in outcome.out
    assert "its slot was broken by uid:0" in outcome.out
    assert "`atlasctl fleet resume` tries that host again" in outcome.out
    assert "`atlasctl fleet forget web2`" in outcome.out


async def test_a_document_that_cant_be_read_is_not_shown_as_free_slots_or_no_rollout(
    daemon: Played, atlasctl: Call
) -> None:
    unread = [
        f"turns/{name} can't be read: document: Invalid JSON" for name in ("rollout", "semaphore")
    ]
    daemon.play("GET", "/fleet", {**FLEET, "rollout": None, "unreadable": unread})
    outcome = await atlasctl("fleet", "status")

    lines = [line.split("  ") for line in outcome.out.splitlines()]
    assert ["rollout", "can't be read"] in lines
    assert ["slots", "", "can't be read"] in lines


async def test_a_kill_of_a_feature_that_no_host_has_says_so(daemon: Played, atlasctl: Call) -> None:
    slip = {"code": "killed_unknown_feature", "message": "visoin: no feature", "action": "Look"}
    daemon.play("POST", "/fleet/kill", {**FLEET, "suggestions": [slip]})
    outcome = await atlasctl("fleet", "kill", "visoin")

    assert outcome.code == 0
    assert "! visoin: no feature" in outcome.out


async def test_a_rollout_that_halts_at_once_has_no_tick(daemon: Played, atlasctl: Call) -> None:
    daemon.play("POST", "/fleet/rollout", rollout("halted", a="failed"))
    outcome = await atlasctl("fleet", "rollout", "1.4.0")

    assert outcome.code == 0  # it was begun
    assert outcome.out.startswith("✗ 1.4.0: halted")


async def test_the_status_of_an_engine_away_says_since_when(daemon: Played, atlasctl: Call) -> None:
    engine = {"connected": False, "since_ts": "2026-01-05T09:30:00Z", "error": "refused"}
    daemon.play("GET", "/fleet", {**FLEET, "engine": engine})
    outcome = await atlasctl("fleet", "status")

    assert "! Nothing is known of the other hosts" in outcome.out
    assert "refused" in outcome.out


async def test_json_is_the_apis_own_answer(daemon: Played, atlasctl: Call) -> None:
    daemon.play("GET", "/fleet", FLEET)
    outcome = await atlasctl("fleet", "status", "--json")
    assert json.loads(outcome.out) == FLEET


@pytest.mark.parametrize(
    ("hosts", "tone", "sentence"),
    [
        ([], "unknown", "No host has joined yet"),
        ([host("a")], "good", "The only host serves 1.4.0"),
        ([host("a"), host("b")], "good", "All 2 hosts serve 1.4.0"),
        ([host("a"), host("b", serves=False)], "bad", "1 of 2 hosts serve 1.4.0"),
        ([host("a", serves=False, fresh=False)], "bad", "0 of 1 hosts serve"),
    ],
)
def test_the_headline_says_whether_all_hosts_serve(
    hosts: list[dict[str, Any]], tone: str, sentence: str
) -> None:
    found = headline({**FLEET, "hosts": hosts})
    assert (found.tone, found.sentence) == (tone, sentence)


def test_versions_are_counted_the_most_common_first() -> None:
    hosts = [host(str(n), version=f"1.{n // 3}") for n in range(16)]
    assert versions(hosts[:6]) == "1.0 (3) and 1.1 (3)"
    assert versions(hosts).endswith(" and 2 more versions")


def test_of_many_hosts_those_in_trouble_are_listed() -> None:
    hosts = [host(f"web{n:04}") for n in range(1000)]
    hosts[777] = host("web0777", serves=False, fresh=False)
    hosts[888] = host("web0888", waits_for="waits for web0777: no sign of life")

    shown, more = listed({"hosts": hosts})
    names = [each["name"] for each in shown]
    assert (len(shown), more) == (FEW_HOSTS, 1000 - FEW_HOSTS)
    assert names[-2:] == ["web0777", "web0888"]
    assert listed({"hosts": hosts}, everything=True) == (hosts, 0)


async def test_a_followed_rollout_shows_each_host_once_and_ends_with_it(
    daemon: Played, atlasctl: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_follow, "PERIOD_SECONDS", 0)
    daemon.play("POST", "/fleet/rollout", rollout("running", a="", b=""))
    daemon.play(
        "GET",
        "/fleet",
        rollout("running", a="deploying", b=""),
        rollout("running", a="deploying", b=""),
        rollout("running", a="passed", b="deploying"),
        rollout("passed", a="passed", b="passed"),
    )
    outcome = await atlasctl("fleet", "rollout", "1.4.0", "--follow")

    assert outcome.code == 0
    lines = [line.split("  ")[:2] for line in outcome.out.splitlines()[1:-1]]
    assert lines == [
        ["· a", "deploying"],
        ["✓ a", "passed"],
        ["· b", "deploying"],
        ["✓ b", "passed"],
    ]
    assert outcome.out.splitlines()[-1].startswith("✓ 1.4.0: passed")


async def test_a_followed_rollout_that_waits_for_long_says_once_for_what(
    daemon: Played, atlasctl: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_follow, "PERIOD_SECONDS", 0)
    monkeypatch.setattr(fleet_follow, "WAIT_SECONDS", 0)
    waits = rollout("running", a="passed", b="")
    waits["rollout"]["now"] = "b waits: deploys are disabled on this host"
    daemon.play("POST", "/fleet/rollout", rollout("running", a="deploying", b=""))
    daemon.play("GET", "/fleet", waits, waits, rollout("passed", a="passed", b="passed"))
    outcome = await atlasctl("fleet", "rollout", "1.4.0", "--follow")

    assert outcome.out.count("! b waits: deploys are disabled on this host") == 1


@pytest.mark.parametrize("state", ["halted", "aborted", "paused"])
async def test_a_followed_rollout_that_stops_waits_for_the_last_deploy_and_exits_1(
    daemon: Played, atlasctl: Call, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    monkeypatch.setattr(fleet_follow, "PERIOD_SECONDS", 0)
    daemon.play("POST", "/fleet/rollout/resume", rollout("running", a="", b=""))
    daemon.play(
        "GET", "/fleet", rollout(state, a="failed", b="deploying"), rollout(state, b="passed")
    )
    outcome = await atlasctl("fleet", "resume", "--follow")

    assert outcome.code == 1
    assert "✓ b  passed" in outcome.out
    assert outcome.out.splitlines()[-1].startswith(f"✗ 1.4.0: {state}")


async def test_a_rollout_that_another_one_replaced_is_not_taken_for_it(
    daemon: Played, atlasctl: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_follow, "PERIOD_SECONDS", 0)
    daemon.play("POST", "/fleet/rollout", rollout("running", a=""))
    other = rollout("passed", a="passed")
    other["rollout"] = {**other["rollout"], "rollout_id": "r2"}
    daemon.play("GET", "/fleet", other)
    outcome = await atlasctl("fleet", "rollout", "1.4.0", "--follow")

    assert outcome.code == 1
    assert "Another rollout, r2" in outcome.err


async def test_without_a_daemon_the_exit_status_is_3(atlasctl: Call) -> None:
    assert (await atlasctl("fleet", "status")).code == 3
