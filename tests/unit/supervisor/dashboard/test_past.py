"""The sections with history: what they show, and that they are honest when there is nothing."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from atlas_supervisor.api import audit as audit_route
from atlas_supervisor.api import examples
from atlas_supervisor.api.history import History
from atlas_supervisor.dashboard.answers import Answers, Audience
from atlas_supervisor.dashboard.sections import audit, canary, checks, history, logs, traffic
from atlas_supervisor.model.canary import EvidenceView
from tests.unit.supervisor.dashboard.support import NOW, answers, hour, html, minute

REFUSED = {"error": {"code": "token_required", "message": "this needs the token", "hint": ""}}


# Requests.


def test_a_switch_is_a_line_through_every_chart() -> None:
    found = hour(
        [minute(1, "1.0", 600), minute(2, "1.1", 900, failed=90, seconds=30)],
        switches=[(1.5, "1.1")],
        taken_back=[(1.75, "1.1")],
    )

    view = traffic.view(answers({traffic.REQUESTS: found}))

    assert [each.name for each in view["charts"]] == ["chart-requests", "chart-errors", "chart-p95"]
    for each in view["charts"]:
        assert [line.place for line in each.lines] == [2.5, 2.92]
        assert "back" in each.lines[1].style
    rates, errors, _ = view["charts"]
    assert rates.ticks[-1].label == "50/s"  # 30 a second in the half minute, and 10 before
    assert errors.ticks[-1].label == "10 %"
    assert rates.marks == [(3.33, 1.67, 6.0)]
    assert [(each["version"], each["requests"]) for each in view["versions"]] == [
        ("1.0", 600),
        ("1.1", 900),
    ]


def test_a_version_has_the_colour_of_its_number() -> None:
    found = hour([minute(1, "1.0", 600), minute(2, "1.1", 900)])
    found["versions"] = {"1.0": 4, "1.1": 6}

    view = traffic.view(answers({traffic.REQUESTS: found}))

    assert [each["style"] for each in view["versions"]] == ["v4", "v0"]
    assert [path.style for path in view["charts"][1].paths] == ["line v4", "line v0"]


def test_the_table_has_the_same_numbers_in_parts_of_ten_minutes() -> None:
    found = hour([minute(each, "1.0", 10, failed=each % 2) for each in (0, 9, 10, 59)])

    view = traffic.view(answers({traffic.REQUESTS: found}))

    assert [(each["ts"][11:16], each["requests"], each["failed"]) for each in view["rows"]] == [
        ("11:50", 10, 1),
        ("11:10", 10, 0),
        ("11:00", 20, 1),
    ]


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (hour(), "No requests in the last hour."),
        (hour(uncounted=["1.0"]), "Requests of 1.0 are not counted"),
        (REFUSED, "this needs the token"),
    ],
)
def test_no_requests_are_said_to_be_none(found: dict[str, Any], words: str) -> None:
    text = html("traffic", answers({traffic.REQUESTS: found}))

    assert words in text
    assert "<svg" not in text


# Deploys.


def shown(*deploys: Any) -> Answers:
    return answers({history.HISTORY: History(deploys=list(deploys)).model_dump(mode="json")})


def test_a_deploy_that_failed_says_why_with_what_was_expected() -> None:
    check = {"name": "home", "ok": False, "message": "GET /", "expected": "200", "got": "<b>500"}
    step = examples.FAILED.steps[-1].model_copy(
        update={"detail": {"message": "exited with status 127", "checks": [check], "output": ["a"]}}
    )
    failed = examples.FAILED.model_copy(update={"steps": [*examples.FAILED.steps[:-1], step]})

    asked = shown(failed, examples.SWITCHED)
    text = html("history", asked)

    assert "deploy requested by token" in text
    assert "no such program" in text
    assert "&lt;b&gt;500" in text
    assert 'href="deploy/20260105-093000-4f2a11"' in text
    first, second = history.view(asked)["deploys"]
    assert (first["tone"], second["tone"]) == ("bad", "good")
    assert sum(width for _, _, width in second["bar"]) == pytest.approx(100, abs=0.1)
    assert first["bar"][-1][0] == "failed"


def test_bars_have_one_scale_for_all_deploys() -> None:
    slow, quick = (
        examples.SWITCHED.model_copy(
            update={
                "steps": [
                    each.model_copy(update={"duration_ms": each.duration_ms * times})
                    for each in examples.SWITCHED.steps
                ]
            }
        )
        for times in (4, 1)
    )

    widths = [
        sum(width for _, _, width in each["bar"])
        for each in history.view(shown(slow, quick))["deploys"]
    ]

    assert widths == pytest.approx([100, 25], abs=0.1)


def test_without_deploys_the_history_is_said_to_be_empty() -> None:
    assert "No deploys yet." in html("history", shown())


# Canaries.


def canaries(**changes: Any) -> Answers:
    (feature,) = examples.REPORT.features
    points = [
        EvidenceView(
            ts=NOW - timedelta(seconds=60 - each),
            rollback=1.5,
            promotion=0.01 * each + 0.01,
            rollback_needed=300 - each,
        )
        for each in range(0, 60, 20)
    ]
    judgement = feature.judgement.model_copy(
        update={
            "numbers": {
                "evidence": {
                    "rollback": {"e_value": 1.5, "needed": 300.0},
                    "promotion": {"e_value": 0.4, "needed": 22.2},
                }
            }
        }
    )
    update = {"evidence": points, "judgement": judgement, **changes}
    report = examples.REPORT.model_copy(
        update={
            "features": [feature.model_copy(update=update)],
            "until_ts": NOW,
            "since_ts": NOW - timedelta(hours=24),
        }
    )
    return answers(
        {
            canary.CANARY: examples.VIEW.model_dump(mode="json"),
            canary.REPORT: report.model_dump(mode="json"),
        }
    )


def test_a_feature_shows_both_arms_with_intervals_and_what_follows() -> None:
    asked = canaries()
    (feature,) = canary.view(asked)["features"]
    text = html("canary", asked)

    assert [row["name"] for row in feature["rows"]] == ["errors", "p50", "p95", "p99"]
    assert feature["rows"][0]["cells"][0] == {"text": "1.2 %", "span": "0.52 % to 2.8 %"}
    ends = feature["rows"][0]["whiskers"][0]
    assert ends["low"] < ends["estimate"] < ends["high"] == 98.0
    assert feature["next"].startswith("120 s more on this step")
    assert "Inconclusive: hold." in text


def test_the_evidence_has_its_bounds_and_gaps_at_neither_end() -> None:
    (feature,) = canary.view(canaries())["features"]
    drawn = feature["chart"]

    assert [each.label for each in drawn.levels] == ["roll back at 300 to 1", "promote at 22 to 1"]
    assert drawn.levels[0].place < drawn.levels[1].place
    needed, promote, promotion, rollback = drawn.paths
    assert (needed.style, promote.style) == ("line bound", "line bound")
    assert (needed.data.count("V"), promote.data.count("V")) == (2, 0)  # it fell twice
    for path in drawn.paths:
        assert path.data.startswith("M0 ")
        assert path.data.count("M") == 1
    for path in (promotion, rollback):
        assert path.data.split("L")[-1].startswith("1000 ")


def test_evidence_of_nothing_and_calls_of_nothing_are_not_drawn() -> None:
    (feature,) = canary.view(canaries(evidence=[]))["features"]
    assert feature["chart"] is None
    none = examples.REPORT.features[0].canary.model_copy(update={"calls": 0})
    text = html("canary", canaries(canary=none, stable=none))
    assert "No calls in the last 24 hours." in text
    assert "<svg" not in text


def test_with_canaries_off_features_without_calls_are_not_listed() -> None:
    none = examples.REPORT.features[0].canary.model_copy(update={"calls": 0})
    asked = canaries(canary=none, stable=none)
    asked[canary.CANARY]["enabled"] = False
    text = html("canary", asked)
    assert "Canaries are off" in text
    assert "<article" not in text


# Health, logs and audit.


def test_the_worst_check_comes_first() -> None:
    asked = answers({checks.HEALTH: examples.UNHEALTHY.model_dump(mode="json")})

    view = checks.view(asked)

    assert view["checks"][0]["name"] == "port active"
    assert "its worker was ended by SIGKILL" in html("checks", asked)
    assert "llm latency" not in [each["name"] for each in view["checks"]]


def test_logs_show_their_last_lines_as_text() -> None:
    line = '{"ts": "2026-01-05T09:30:01.204116Z", "level": "error", "event": "a_b", "why": "<i>"}'
    found = {request: {"lines": [line, "<b>hi"]} for request in logs.NEEDS}

    text = html("logs", answers(found))

    assert '<p class="error"><time datetime="2026-01-05T09:30:01.204116Z"' in text
    assert "a_b why=&lt;i&gt;" in text
    assert text.count("&lt;b&gt;hi") == 3
    assert "nothing was written yet" in html("logs", answers({each: {} for each in found}))


def test_a_worker_can_print_no_line_that_a_page_cannot_have() -> None:
    lines = ['{"event": "half \\ud800 of one", "level": "\\udfff"}', "\u202eturned", "a\x1b[31m"]

    text = html("logs", answers({request: {"lines": lines} for request in logs.NEEDS}))

    assert text.encode().count(b"half \\ud800 of one") == 3
    assert "\\u202eturned" in text
    assert "\x1b" not in text


def test_readers_without_a_token_learn_how_to_see_logs_and_audit() -> None:
    refused = dict.fromkeys((*logs.NEEDS, *audit.NEEDS), REFUSED)
    asked = answers(refused, Audience.READER)

    assert "Sign in to read logs." in html("logs", asked)
    assert "Sign in to read the audit trail." in html("audit", asked)


def test_the_audit_trail_says_who_did_what() -> None:
    entry = audit_route.ENTRY.model_copy(update={"outcome": "refused", "detail": {"a": [1, "<x>"]}})
    asked = answers({audit.AUDIT: {"entries": [entry.model_dump(mode="json")]}})

    text = html("audit", asked)

    assert "uid:0" in text
    assert '<td class="warn">refused</td>' in text
    assert "a 1 + &lt;x&gt;" in text


def test_of_a_thousand_features_those_are_shown_that_changed_last() -> None:
    asked = canaries()
    (feature,) = asked[canary.CANARY]["features"]
    many = [
        {
            **feature,
            "feature": f"f{number}",
            "since_ts": f"2026-01-05T09:{number // 60:02}:{number % 60:02}Z",
        }
        for number in range(1000)
    ]

    text = html("canary", answers({canary.CANARY: {**asked[canary.CANARY], "features": many}}))

    assert text.count('<article id="feature-') == 30
    assert 'id="feature-f999"' in text
    assert "970 more" in text


def test_with_canaries_off_many_features_without_calls_hide_none_that_has_some() -> None:
    asked = canaries()
    (feature,) = asked[canary.CANARY]["features"]
    idle = [
        {**feature, "feature": f"f{number}", "since_ts": "2026-02-01T00:00:00Z"}
        for number in range(40)
    ]
    now = {**asked[canary.CANARY], "enabled": False, "features": [*idle, feature]}

    text = html("canary", answers({canary.CANARY: now, canary.REPORT: asked[canary.REPORT]}))

    assert f'id="feature-{feature["feature"]}"' in text
    assert text.count("<article") == 1
    assert "Canaries are off" in text
    assert "which changed earlier" not in text
