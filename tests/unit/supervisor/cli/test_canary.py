"""`atlasctl canary …`: its requests, and the effect that it shows."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.supervisor.cli.fakes import FEATURE, REPORT, VIEW, Played, problem, steady
from tests.unit.supervisor.cli.support import Call

UNKNOWN = problem("unknown_feature", "there is no feature 'speech'", "CANARY_FEATURES lists them")


@pytest.mark.parametrize(
    ("written", "share"),
    [("0.1", 0.1), ("10%", 0.1), ("7 %", 0.07), (".5", 0.5), ("0.05%", 0.0005), ("0", 0), ("1", 1)],
)
async def test_a_share_can_be_a_fraction_or_a_percentage(
    daemon: Played, atlasctl: Call, written: str, share: float
) -> None:
    daemon.play("PUT", "/deploy/canary/vision", steady(share=share, percentage=share))
    outcome = await atlasctl("canary", "set", "vision", written)
    assert (outcome.code, outcome.err) == (0, "")
    assert [json.loads(asked.body) for asked in daemon.asked] == [{"percentage": share}]


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("10", "did you mean 10%?"),
        ("101%", "'101%' is more than all: a share is 0 to 1, or 0% to 100%."),
        ("1000", "a share is 0 to 1, or 0% to 100%."),
        ("0,1", "'0,1' is not a share: write 0.1 or 10% for a tenth."),
        ("nan", "'nan' is not a share"),
        ("1e-3", "'1e-3' is not a share"),
        ("\u0660.\u0661", "is not a share"),  # digits, but of no number that we write
        ("%", "'%' is not a share"),
        ("", "'' is not a share"),
        ("9" * 5000, "is not a share"),
    ],
)
async def test_an_invalid_share_is_wrong_usage_and_sends_no_request(
    daemon: Played, atlasctl: Call, written: str, said: str
) -> None:
    outcome = await atlasctl("canary", "set", "vision", written)
    assert outcome.code == 2
    assert said in outcome.err
    assert daemon.asked == []


@pytest.mark.parametrize("name", ["Vision", "../mode", "vision/ramp", "1st", "v" * 101, "ä"])
@pytest.mark.parametrize("sub_verb", [["report"], ["set"], ["ramp"], ["reset"]])
async def test_an_invalid_feature_name_is_wrong_usage_and_sends_no_request(
    daemon: Played, atlasctl: Call, name: str, sub_verb: list[str]
) -> None:
    more = {"set": ["0.1"], "ramp": ["start"]}.get(sub_verb[0], [])
    outcome = await atlasctl("canary", *sub_verb, name, *more)
    assert outcome.code == 2
    assert "is not the name of a feature" in outcome.err
    assert "`atlasctl canary status` lists them" in outcome.err
    assert daemon.asked == []


async def test_a_changed_share_is_shown(daemon: Played, atlasctl: Call) -> None:
    daemon.play("PUT", "/deploy/canary/vision", steady(share=0.125, percentage=0.125))
    outcome = await atlasctl("canary", "set", "vision", "12.5%")
    assert outcome.out == "✓ vision: 12.5 % of calls go to the canary (steady)\n"


async def test_a_share_set_while_canaries_are_off_says_that_it_is_not_in_force(
    daemon: Played, atlasctl: Call
) -> None:
    daemon.play("PUT", "/deploy/canary/vision", steady(share=0.0, percentage=0.1))
    outcome = await atlasctl("canary", "set", "vision", "0.1")
    assert outcome.code == 0
    assert "vision: 10 % of calls go to the canary" in outcome.out
    assert "Canaries are off, so for now every call is stable." in outcome.out


async def test_setting_a_share_is_repeated_after_a_lost_answer(
    daemon: Played, atlasctl: Call
) -> None:
    daemon.play("PUT", "/deploy/canary/vision", steady(share=0.1, percentage=0.1))
    daemon.break_first()
    outcome = await atlasctl("canary", "set", "vision", "0.1")
    assert outcome.code == 0
    assert [asked.body for asked in daemon.asked] == ['{"percentage": 0.1}'] * 2


@pytest.mark.parametrize(
    ("action", "now", "said"),
    [
        ("start", {"step": 0, "share": 0.02}, "2 % of calls go to the canary (ramping, step 1 of"),
        ("pause", {"stage": "paused"}, "10 % of calls go to the canary (paused, step 2 of 4)"),
        ("resume", {}, "10 % of calls go to the canary (ramping, step 2 of 4)"),
        ("advance", {"step": 2, "share": 0.5}, "50 % of calls go to the canary (ramping, step 3"),
        ("promote", {"stage": "promoted", "step": None, "share": 1.0}, "all calls go to the"),
        ("rollback", {"stage": "rolled_back", "step": None, "share": 0.0}, "no calls go to the"),
    ],
)
async def test_a_ramp_action_has_an_idempotency_key_and_its_effect_is_shown(
    daemon: Played, atlasctl: Call, action: str, now: dict[str, Any], said: str
) -> None:
    daemon.play("POST", "/deploy/canary/vision/ramp", {**FEATURE, **now})
    outcome = await atlasctl("canary", "ramp", "vision", action)
    assert outcome.code == 0
    assert f"✓ vision: {said}" in outcome.out
    assert ("waits for 120 s more" in outcome.out) == (now.get("step", 1) is not None)
    assert "Canaries are off" not in outcome.out
    [asked] = daemon.asked
    assert json.loads(asked.body) == {"action": action}
    assert asked.headers["idempotency-key"]


@pytest.mark.parametrize("words", [["ramp", "vision", "advance"], ["reset"]])
async def test_a_repeated_request_has_the_same_key(
    daemon: Played, atlasctl: Call, words: list[str]
) -> None:
    daemon.play("POST", "/deploy/canary/vision/ramp", FEATURE)
    daemon.play("POST", "/deploy/canary/reset", VIEW)
    daemon.break_first()
    assert (await atlasctl("canary", *words)).code == 0
    first, second = (asked.headers["idempotency-key"] for asked in daemon.asked)
    assert first == second != ""


async def test_an_unknown_action_is_wrong_usage(daemon: Played, atlasctl: Call) -> None:
    outcome = await atlasctl("canary", "ramp", "vision", "faster")
    assert outcome.code == 2
    assert "'promote'" in outcome.err
    assert daemon.asked == []


async def test_an_impossible_ramp_action_is_refused_with_a_hint(
    daemon: Played, atlasctl: Call
) -> None:
    refused = problem("ramp_not_possible", "vision is steady: no ramp is in progress", "start one")
    daemon.play("POST", "/deploy/canary/vision/ramp", refused, status=409)
    outcome = await atlasctl("canary", "ramp", "vision", "pause")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err == "✗ vision is steady: no ramp is in progress\n  start one\n"


async def test_a_reset_of_the_fallback_shows_its_effect(daemon: Played, atlasctl: Call) -> None:
    daemon.play("POST", "/deploy/canary/reset", VIEW)
    outcome = await atlasctl("canary", "reset")
    assert outcome.code == 0
    assert outcome.out.startswith("✓ the fallback is reset; earlier calls no longer count")
    assert "canaries are on\n" in outcome.out
    assert json.loads(daemon.asked[0].body) == {}


async def test_a_reset_shows_that_the_settings_keep_canaries_off(
    daemon: Played, atlasctl: Call
) -> None:
    daemon.play("POST", "/deploy/canary/reset", {**VIEW, "enabled": False})
    outcome = await atlasctl("canary", "reset")
    assert "canaries are off: CANARY_ENABLED=false in the env file" in outcome.out


async def test_a_reset_feature_shows_the_share_of_the_settings(
    daemon: Played, atlasctl: Call
) -> None:
    view = {**VIEW, "features": [steady(share=0.2, percentage=0.2)]}
    daemon.play("POST", "/deploy/canary/reset", view)
    outcome = await atlasctl("canary", "reset", "vision")
    assert "✓ vision is reset to the settings: 20 % of calls go to the canary" in outcome.out
    assert json.loads(daemon.asked[0].body) == {"feature": "vision"}


@pytest.mark.parametrize(
    ("words", "method", "path"),
    [
        (["set", "speech", "0.1"], "PUT", "/deploy/canary/speech"),
        (["ramp", "speech", "start"], "POST", "/deploy/canary/speech/ramp"),
        (["reset", "speech"], "POST", "/deploy/canary/reset"),
    ],
)
async def test_an_unknown_feature_is_refused_with_the_daemon_s_hint(
    daemon: Played, atlasctl: Call, words: list[str], method: str, path: str
) -> None:
    daemon.play(method, path, UNKNOWN, status=404)
    outcome = await atlasctl("canary", *words)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err == "✗ there is no feature 'speech'\n  CANARY_FEATURES lists them\n"


@pytest.mark.parametrize("option", [[], ["--json"]])
async def test_a_report_on_an_unknown_feature_is_refused_and_names_the_known(
    daemon: Played, atlasctl: Call, option: list[str]
) -> None:
    daemon.play("GET", "/deploy/canary/report", REPORT)
    outcome = await atlasctl("canary", "report", "speech", *option)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err == "✗ There is no feature 'speech'.\n  CANARY_FEATURES lists: vision\n"


@pytest.mark.parametrize("words", [["status"], ["report"], ["set", "vision", "0"], ["reset"]])
async def test_a_daemon_without_canaries_is_distinguished_from_an_unknown_feature(
    daemon: Played, atlasctl: Call, words: list[str]
) -> None:
    # An older daemon takes `canary` for the id of a deploy.
    daemon.play("GET", "/deploy/canary", problem("unknown_deploy", "no 'canary'"), status=404)
    outcome = await atlasctl("canary", *words)
    assert (outcome.code, outcome.out) == (1, "")
    assert "This daemon has no feature canaries." in outcome.err


@pytest.mark.parametrize(
    "words",
    [
        ["--json", "canary", "status"],
        ["canary", "--json", "status"],
        ["canary", "status", "--json"],
    ],
)
async def test_json_is_accepted_at_any_position_and_printed_unchanged(
    daemon: Played, atlasctl: Call, words: list[str]
) -> None:
    body = b'{ "enabled":true,\n"features":[] , "new": "\\u0007"}'
    daemon.play("GET", "/deploy/canary", body)
    outcome = await atlasctl(*words)
    assert (outcome.code, outcome.out) == (0, body.decode())


async def test_the_url_is_accepted_between_the_words(
    daemon: Played, call: Call, tmp_path: Any
) -> None:
    daemon.play("GET", "/deploy/canary", VIEW)
    outcome = await call("canary", "--url", daemon.url, "status")
    assert outcome.code == 0
    assert "canaries are on" in outcome.out


async def test_with_json_a_refusal_is_the_api_s_own_answer_and_exit_1(
    daemon: Played, atlasctl: Call
) -> None:
    daemon.play("PUT", "/deploy/canary/speech", UNKNOWN, status=404)
    outcome = await atlasctl("canary", "set", "speech", "0.1", "--json")
    assert (outcome.code, outcome.err) == (1, "")
    assert json.loads(outcome.out) == UNKNOWN


async def test_an_answer_of_another_server_is_no_daemon(daemon: Played, atlasctl: Call) -> None:
    daemon.play("GET", "/deploy/canary", {"hello": "world"})
    outcome = await atlasctl("canary", "status")
    assert outcome.code == 3
    assert "has no 'features'" in outcome.err


async def test_hours_outside_of_a_month_are_wrong_usage(daemon: Played, atlasctl: Call) -> None:
    for hours in ("0", "721", "x"):
        assert (await atlasctl("canary", "report", "--hours", hours)).code == 2
    assert daemon.asked == []


async def test_the_verbs_of_canary_are_listed_in_the_order_of_use(atlasctl: Call) -> None:
    outcome = await atlasctl("canary", "--help")
    words = [line.split()[0] for line in outcome.out.splitlines() if line.startswith("  ")]
    assert words[-6:] == ["status", "report", "simulate", "set", "ramp", "reset"]


async def test_a_simulation_asks_for_the_keys_and_shows_each_ramp(
    daemon: Played, atlasctl: Call
) -> None:
    ramps = [
        {"shares": [0.05, 0.25], "canary_keys": 75, "promoted": 0.0},
        {"shares": [0.05, 0.25, 0.5], "canary_keys": 150, "promoted": 0.315},
    ]
    answer = {"keys": 300, "error_rate": 0.01, "margin": 0.02, "ramps": ramps}
    daemon.play("GET", "/deploy/canary/simulate", answer)
    outcome = await atlasctl("canary", "simulate", "300", "--ramp", "0.05,0.25,1")
    assert daemon.asked[0].query == {"keys": "300", "error_rate": "0.01", "ramp": "0.05,0.25,1"}
    assert [line.split() for line in outcome.out.splitlines()[2:]] == [
        ["5", "%,", "25", "%", "75", "0", "%"],
        ["5", "%,", "25", "%,", "50", "%", "150", "31.5", "%"],
    ]


async def test_a_ramp_that_can_not_be_promoted_by_evidence_says_so_when_it_starts(
    daemon: Played, atlasctl: Call
) -> None:
    shortage = "300 keys are too few for a verdict at 25.0 %"
    view = steady(stage="ramping", step=0, steps=[0.05, 0.25, 1.0], share=0.05, shortage=shortage)
    daemon.play("POST", "/deploy/canary/vision/ramp", view)
    outcome = await atlasctl("canary", "ramp", "vision", "start")
    assert f"can't be promoted by evidence: {shortage}" in outcome.out
