"""`atlasctl canary status` and `report`: numbers, warnings, and older daemons."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.unit.supervisor.cli.fakes import FEATURE, REPORT, VIEW, Played, steady
from tests.unit.supervisor.cli.support import Call, on_terminal

OF_VISION = REPORT["features"][0]
STRATUM = OF_VISION["strata"][0]
EVIDENCE = FEATURE["judgement"]["reason"].removeprefix("vision: ")
NONSENSE: tuple[Any, ...] = (None, [[]], {"a": 1}, "x", 1e999)


def latched(**fields: Any) -> dict[str, Any]:
    """Return a view in which the fallback turned canaries off an hour ago."""
    fallback = {
        "since_ts": (datetime.now(UTC) - timedelta(minutes=65)).isoformat(),
        "reason": "19.2 % of 120 canary calls failed, more than 15.0 %",
        "canary": {"calls": 120, "errors": 23, "error_rate": 23 / 120},
        "stable": {"calls": 9800, "errors": 98, "error_rate": 0.01},
        **fields,
    }
    off = {"enabled": False, "canary_disabled_fallback": True, "fallback": fallback}
    return {**VIEW, **off, "features": [{**FEATURE, "share": 0.0}]}


def report(*features: dict[str, Any]) -> dict[str, Any]:
    return {**REPORT, "features": list(features)}


def lines_of(written: str) -> list[str]:
    """Return the lines on a terminal, without their colours."""
    return [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m|\r", "", written).split("\n")]


async def shown(daemon: Played, atlasctl: Call, view: dict[str, Any]) -> list[str]:
    """Return the lines of `canary status` on this view."""
    daemon.play("GET", "/deploy/canary", view)
    outcome = await atlasctl("canary", "status")
    assert (outcome.code, outcome.err) == (0, "")
    return outcome.out.splitlines()


async def reported(
    daemon: Played, atlasctl: Call, answer: dict[str, Any], *words: str
) -> list[str]:
    """Return the lines of `canary report` on this answer."""
    daemon.play("GET", "/deploy/canary/report", answer)
    outcome = await atlasctl("canary", "report", *words)
    assert (outcome.code, outcome.err) == (0, "")
    return outcome.out.splitlines()


async def test_a_feature_shows_share_step_evidence_and_what_it_waits_for(
    daemon: Played, atlasctl: Call
) -> None:
    lines = await shown(daemon, atlasctl, VIEW)
    assert lines[0] == "canaries are on"
    assert lines[2].startswith("vision  10 % of calls  ramping, step 2 of 4  for ")
    assert lines[3:] == [
        "  why        ramp started by uid:0",
        "  ramp       2 %  [10 %]  50 %  100 %",
        "  verdict    inconclusive: hold",
        f"  evidence   {EVIDENCE}",
        f"  waits for  {FEATURE['waits_for']}",
        "  pending    7 calls, not evidence yet",
    ]


async def test_a_killed_feature_shows_the_share_that_it_has_after_the_kill(
    daemon: Played, atlasctl: Call
) -> None:
    waits = "a reset of the fleet's kill switch"
    killed = {**FEATURE, "killed": True, "share": 0.0, "waits_for": waits}
    lines = await shown(daemon, atlasctl, {**VIEW, "features": [killed]})
    assert lines[2].startswith(
        "vision  no calls (10 % when on)  killed in the whole fleet; ramping, step 2 of 4  for "
    )
    assert f"  waits for  {waits}" in lines


@pytest.mark.parametrize("number", ["1234", "1,234"])
async def test_the_number_of_missing_calls_is_shown_once(
    daemon: Played, atlasctl: Call, number: str
) -> None:
    judgement = {**FEATURE["judgement"], "needs": 1234, "reason": f"about {number} more are needed"}
    view = {**VIEW, "features": [steady(judgement=judgement)]}
    assert not [line for line in await shown(daemon, atlasctl, view) if "waits for" in line]


async def test_a_rolled_back_feature_shows_its_reason_once(daemon: Played, atlasctl: Call) -> None:
    judgement = {"verdict": "fail", "reason": "vision: it fails more", "needs": None}
    fields = {
        "pending_calls": 0,
        "stage": "rolled_back",
        "share": 0.0,
        "reason": judgement["reason"],
    }
    lines = await shown(
        daemon, atlasctl, {**VIEW, "features": [steady(judgement=judgement, **fields)]}
    )
    assert lines[2].startswith("vision  no calls  rolled back")
    assert "  verdict   fail: roll back" in lines
    assert [line for line in lines if "it fails more" in line] == ["  evidence  it fails more"]


async def test_a_latched_fallback_is_shown_first_with_both_arms_and_the_reset(
    daemon: Played, atlasctl: Call
) -> None:
    lines = await shown(daemon, atlasctl, latched())
    assert lines[:5] == [
        "✗ canaries are off: turned off by the fallback 1 h ago",
        "  19.2 % of 120 canary calls failed, more than 15.0 %",
        "  canary  19.2 %  23 of 120 calls failed",
        "  stable  1 %     98 of 9,800 calls failed",
        "  Fix the cause, then turn them on again with `atlasctl canary reset`.",
    ]
    assert lines[6].startswith("vision  no calls (10 % when on)  ramping, step 2 of 4")


async def test_a_latched_fallback_is_red_on_a_terminal(daemon: Played, env_file: Path) -> None:
    daemon.play("GET", "/deploy/canary", latched())
    written = await on_terminal("--env-file", env_file, "canary", "status")
    assert max(map(len, lines_of(written))) <= 80
    assert "\x1b[31m✗" in written
    assert "\x1b[1;31mcanaries are off" in written


async def test_a_fallback_without_numbers_is_shown(daemon: Played, atlasctl: Call) -> None:
    lines = await shown(daemon, atlasctl, latched() | {"fallback": None})
    assert lines[0] == "✗ canaries are off: turned off by the fallback"
    assert "`atlasctl canary reset`" in lines[1]


async def test_the_settings_that_keep_canaries_off_are_named(
    daemon: Played, atlasctl: Call
) -> None:
    lines = await shown(daemon, atlasctl, {**VIEW, "enabled": False, "features": []})
    assert lines == [
        "canaries are off: CANARY_ENABLED=false in the env file, so every call is stable",
        "no features; CANARY_FEATURES in the env file lists them",
    ]


async def test_reasons_to_doubt_the_numbers_are_shown(daemon: Played, atlasctl: Call) -> None:
    view = {**VIEW, "dropped_events": 1234, "late_calls": 3, "overflown_calls": 2}
    warned = {**FEATURE, "warnings": ["the arms do not get their shares"]}
    lines = await shown(daemon, atlasctl, {**view, "features": [warned]})
    assert lines[1] == "! 1,234 events were lost and are not counted"
    assert lines[2] == "! 3 outcomes came too late to be evidence"
    assert lines[3] == (
        "! 2 calls are of keys beyond the limit of a ramp: counted, but not evidence"
    )
    assert lines[-1] == "  ! the arms do not get their shares"


async def test_a_warning_that_repeats_the_verdict_is_not_shown(
    daemon: Played, atlasctl: Call
) -> None:
    why = "sample ratio mismatch"
    judgement = {**FEATURE["judgement"], "reason": f"vision: {why}; no promotion meanwhile"}
    warned = {**FEATURE, "judgement": judgement, "warnings": [why, "mind this"]}
    lines = await shown(daemon, atlasctl, {**VIEW, "features": [warned]})
    assert [line for line in lines if "!" in line] == ["  ! mind this"]


async def test_a_report_has_both_arms_the_difference_and_the_verdict(
    daemon: Played, atlasctl: Call
) -> None:
    lines = await reported(daemon, atlasctl, REPORT)
    assert lines[0].startswith("the last 24 h  up to ")
    assert lines[2:] == [
        "vision",
        "  arm     calls  error rate (95 %)            p50     p95     p99",
        "  canary    412  1.2 % (0.52 % to 2.8 %)  74.1 ms  140 ms  202 ms",
        "  stable  3,690  1.1 % (0.82 % to 1.5 %)  83.5 ms  161 ms  240 ms",
        "  difference  0.1 % more (-0.7 % to +1.7 %) of the canary's calls fail",
        "  verdict     inconclusive: hold",
        f"  reason      {EVIDENCE}",
    ]
    assert daemon.asked[0].query == {"hours": "24"}


@pytest.mark.parametrize(
    ("estimate", "words"),
    [
        (-0.02, "2 % fewer (-0.7 % to +1.7 %) of the canary's calls fail"),
        (0.0, "0 % (-0.7 % to +1.7 %)"),
        (None, "- (-0.7 % to +1.7 %)"),
    ],
)
async def test_a_difference_says_which_way_it_goes(
    daemon: Played, atlasctl: Call, estimate: float | None, words: str
) -> None:
    difference = {**OF_VISION["difference"], "estimate": estimate}
    lines = await reported(daemon, atlasctl, report({**OF_VISION, "difference": difference}))
    assert f"  difference  {words}" in lines


async def test_an_arm_without_calls_has_no_rate_and_no_difference(
    daemon: Played, atlasctl: Call
) -> None:
    none = {"calls": 0, "errors": 0, "error_rate": 0.0, "latency_ms": {"p50": None}}
    lines = await reported(
        daemon, atlasctl, report({**OF_VISION, "canary": none, "difference": None})
    )
    assert ["canary", "0", "-", "-", "-", "-"] in [line.split() for line in lines]
    assert "  difference  none: the arms can't be compared" in lines


async def test_a_report_on_one_feature_leaves_out_the_others(
    daemon: Played, atlasctl: Call
) -> None:
    answer = report(OF_VISION, {**OF_VISION, "feature": "web"})
    lines = await reported(daemon, atlasctl, answer, "web", "--hours", "720")
    assert "web" in lines
    assert "vision" not in lines
    assert daemon.asked[0].query == {"hours": "720"}


async def test_unreported_decisions_and_warnings_are_shown_in_the_report(
    daemon: Played, atlasctl: Call
) -> None:
    canary = {**OF_VISION["canary"], "unreported": 30, "assigned": 4150}
    lines = await reported(
        daemon, atlasctl, report({**OF_VISION, "canary": canary, "warnings": ["mind this"]})
    )
    assert "  unreported  30 of 4,150 canary decisions" in lines
    assert "  ! mind this" in lines


@pytest.mark.parametrize(
    ("epochs", "words", "seen"),
    [(1, [], 0), (1, ["--strata"], 1), (2, [], 2), (5, [], 5), (6, [], 0), (6, ["--strata"], 6)],
)
async def test_epochs_are_shown_if_they_are_few_or_asked_for(
    daemon: Played, atlasctl: Call, epochs: int, words: list[str], seen: int
) -> None:
    answer = report({**OF_VISION, "strata": [STRATUM] * epochs})
    lines = await reported(daemon, atlasctl, answer, *words)
    line = "  canary 1.2 % of 412  stable 1.1 % of 3,690  +0.1 % (-0.7 % to +1.7 %)"
    assert lines.count(line) == seen
    assert len([each for each in lines if "10 % of calls  step time elapsed" in each]) == seen
    hint = "  6 epochs, compared separately; --strata shows them"
    assert (hint in lines) == (epochs > 5 and not seen)


def without_each(value: Any) -> Iterator[Any]:
    """Yield an answer of the API once for each field at any depth, without that field."""
    if isinstance(value, list) and value:
        yield from ([changed, *value[1:]] for changed in without_each(value[0]))
    if isinstance(value, dict):
        for name, held in value.items():
            yield {other: each for other, each in value.items() if other != name}
            yield from (value | {name: changed} for changed in without_each(held))


def with_nonsense(value: Any, nonsense: Any, depth: int) -> Any:
    """Return an answer of the API with nonsense in each place of that depth."""
    if depth == 0:
        return nonsense
    if isinstance(value, dict):
        return {name: with_nonsense(held, nonsense, depth - 1) for name, held in value.items()}
    if isinstance(value, list):
        return [with_nonsense(held, nonsense, depth) for held in value]
    return value


@pytest.mark.parametrize("verb", ["status", "report"])
def test_fields_that_another_version_lacks_or_changes_do_not_hide_the_rest(verb: str) -> None:
    from atlas_supervisor.cli.canary_report import report_view
    from atlas_supervisor.cli.canary_status import canaries
    from atlas_supervisor.cli.terminal import Screen

    screen = Screen()
    screen.console.width = 80
    answer = latched() if verb == "status" else REPORT
    changes = list(without_each(answer))
    changes += [with_nonsense(answer, each, depth) for each in NONSENSE for depth in range(1, 6)]
    assert len(changes) > 50
    for changed in changes:
        if verb == "status":
            view = canaries(screen, changed)
        else:
            view = report_view(screen, changed, feature=None, everything=True)
        with screen.console.capture() as capture:
            screen.console.print(view)
        assert "None" not in capture.get(), json.dumps(changed)


@pytest.mark.parametrize("place", ["status", "report"])
async def test_control_characters_are_escaped(daemon: Played, atlasctl: Call, place: str) -> None:
    evil = "\x1b]0;owned\x07[red]"
    feature = {**FEATURE, "feature": evil, "stage": evil, "reason": evil, "warnings": [evil + "!"]}
    judgement = {**FEATURE["judgement"], "reason": evil + evil, "verdict": evil}
    strata = [{**STRATUM, "cause": evil}] * 2
    odd = {"feature": evil, "verdict": evil, "reason": evil, "warnings": [evil + "!"]}
    view = latched(reason=evil) | {"features": [{**feature, "judgement": judgement}]}
    answer = report({**OF_VISION, **odd, "strata": strata})
    daemon.play("GET", "/deploy/canary", view)
    daemon.play("GET", "/deploy/canary/report", answer)
    outcome = await atlasctl("canary", place)
    assert outcome.code == 0
    assert outcome.out.replace("\n", "").isprintable()
    assert outcome.out.count(r"\x1b]0;owned\x07[red]") == {"status": 8, "report": 6}[place]


async def test_the_table_of_both_arms_fits_eighty_columns(daemon: Played, env_file: Path) -> None:
    busy = {**OF_VISION["stable"], "calls": 100_123_456, "error_rate": 0.000041}
    busy["error_rate_interval"] = {"estimate": 0.000041, "low": 0.000039, "high": 0.000043}
    daemon.play("GET", "/deploy/canary/report", report({**OF_VISION, "stable": busy}))
    lines = lines_of(await on_terminal("--env-file", env_file, "canary", "report"))
    rate = "0.0041 % (0.0039 % to 0.0043 %)"
    assert f"  stable  100,123,456  {rate}  83.5 ms  161 ms  240 ms" in lines
    assert max(map(len, lines)) <= 80
