"""What each section says of the API's answers."""

from __future__ import annotations

from typing import Any

import pytest

from atlas_supervisor.api import examples, fleet_examples
from atlas_supervisor.dashboard import page
from atlas_supervisor.dashboard.answers import Answers, Audience
from atlas_supervisor.dashboard.sections import actions, change, deploy, fleet, headline, slots
from tests.unit.supervisor.dashboard.support import AT, EARLIER, answers, as_json, html, slot

NOT_READY = {"error": {"code": "not_ready", "message": "no active worker takes traffic"}}
HISTORY, AUDIT = change.HISTORY, change.AUDIT


def figures(per_second: float, share: float | None) -> dict[str, Any]:
    quantiles = dict.fromkeys(("p50_ms", "p95_ms", "p99_ms"), 12.0)
    return {"per_second": per_second, "error_share": share, **quantiles}


def last(record: Any, **changes: Any) -> dict[str, Any]:
    return {**as_json(record), **changes}


# The headline.


@pytest.mark.parametrize(
    ("failed", "share", "tone", "errors"),
    [
        (0, 0.0, "good", "0 errors in 5 min"),
        (1, 0.001, "watch", "1 of 3,000 requests failed in 5 min"),
        (30, 0.0, "watch", "30 of 3,000 requests failed in 5 min"),
        (30, 0.05, "bad", "30 of 3,000 requests failed in 5 min"),
        (0, None, "good", "0 errors in 5 min"),
    ],
)
def test_the_headline_is_red_when_users_suffer_and_only_then(
    failed: int, share: float | None, tone: str, errors: str
) -> None:
    slots_ = [slot(0, requests=None), slot(1, requests=figures(10, share))]
    recent = {"seconds": 300, "requests": 3000, "failed": failed}
    found = headline.view(answers(slots=slots_, requests=recent))
    assert (found["tone"], found["errors"], found["detail"]) == (tone, errors, "10 requests/s")
    assert ("of requests fail" in found["sentence"]) is (tone == "bad")


def test_the_headline_names_the_time_that_a_new_daemon_knows_of() -> None:
    recent = {"seconds": 40, "requests": 7, "failed": 0}
    assert headline.view(answers(requests=recent))["errors"] == "0 errors in 40 s"
    assert headline.view(answers(requests=None))["detail"] == "requests are not counted"


def test_no_version_serves_is_red_with_the_reason() -> None:
    slots_ = [slot(0, role="active", state="backoff", last_exit="it exited with status 2")]
    found = headline.view(answers({"/readyz": NOT_READY}, slots=slots_))
    assert (found["tone"], found["detail"]) == ("bad", "it exited with status 2")
    assert found["sentence"].startswith("No version serves")


def test_a_failed_deploy_and_a_latch_are_no_harm_to_users() -> None:
    failed = as_json(examples.FAILED)
    note = {"code": "mode_is_single", "message": "Deploys are disabled.", "action": "See `it`."}
    given = answers(mode="single", last_deploy=failed, fallback_suggestions=[note])
    assert headline.view(given)["tone"] != "bad"
    assert 'class="headline bad"' not in html("headline", given)
    assert "<code>it</code>" in html("headline", given)


def test_without_an_answer_nothing_looks_well() -> None:
    found = headline.view(Answers({}, at=AT, audience=Audience.READER))
    assert found["tone"] == "unknown"


def test_a_split_and_a_hold_are_said() -> None:
    weights = {"plane": "kernel", "weights": {"blue": 0.9, "green": 0.1}}
    split = headline.view(answers(traffic=weights, slots=[slot(0, version="1.0"), slot(1)]))
    assert split["sentence"] == "1.0 serves 90 % of the traffic, 1.4.0 has 10 %"
    held = {**weights, "held": {"by": "uid:0", "since": "2026-01-05T09:30:00Z", "waiting": 3}}
    assert headline.view(answers(traffic=held))["tone"] == "watch"


# The last change, and the way back.


def test_the_last_change_names_who_asked_for_it_and_not_the_daemon() -> None:
    id_ = examples.SWITCHED.deploy_id
    entries = [
        {"subject": id_, "action": "deploy", "actor": "supervisor", "origin": "internal"},
        {"subject": id_, "action": "deploy", "actor": "session:ab", "origin": "127.0.0.1"},
    ]
    found = {HISTORY: {"deploys": [as_json(examples.FAILED), as_json(examples.SWITCHED)]}}
    shown = change.view(answers({**found, AUDIT: {"entries": entries}}))["changed"]
    assert (shown["id"], shown["by"]["actor"]) == (id_, "session:ab")
    assert change.view(answers(found))["changed"]["by"] is None


def back(**changes: Any) -> Any:
    version = {**as_json(examples.EARLIER)["versions"][0], "next": True, **changes}
    found = {
        EARLIER: {"active_version": "1.4.0", "versions": [version]},
        HISTORY: {"deploys": [as_json(examples.SWITCHED)]},
    }
    return answers(found, deploy_in_progress=False)


def test_the_way_back_says_how_fast_it_is() -> None:
    assert "warm: at once" in html("change", back(warm=True))
    assert "boots in about 1.0 s" in html("change", back(warm=False))


def test_the_way_back_says_whether_it_suits_the_data() -> None:
    assert "safe: nothing irreversible since" in html("change", back())
    unsafe = html("change", back(past_irreversible=["1.3.9"]))
    assert "not safe: irreversible 1.3.9" in unsafe
    assert "may not suit the data" in unsafe


@pytest.mark.parametrize(
    ("versions", "changes", "why"),
    [
        ([], {}, "No earlier version"),
        ([{"next": True, "version": "1.0", "gone": "its folder is gone"}], {}, "folder is gone"),
        ([{"next": True, "version": "1.0"}], {"deploy_in_progress": True}, "abort it first"),
    ],
)
def test_where_one_cannot_go_back_the_page_says_why(
    versions: list[Any], changes: dict[str, Any], why: str
) -> None:
    shown = html("change", answers({EARLIER: {"versions": versions}}, **changes))
    assert why in shown
    assert 'id="ask-rollback"' not in shown


# Slots.


def test_each_slot_is_one_line_and_so_is_a_worker_that_drains() -> None:
    rows = slots.view(answers(slots=[slot(0), slot(1)]))["rows"]
    assert [row["name"] for row in rows][:2] == ["blue", "green"]
    shown = html("slots", answers())
    assert shown.count('<th scope="row">') == len(slots.view(answers())["rows"])


# The deploy in progress, and why one stopped.


def test_steps_are_shown_as_done_running_and_to_come() -> None:
    record = last(examples.STARTED, phase="smoke", steps=as_json(examples.SWITCHED)["steps"][:2])
    view = deploy.view(answers(last_deploy=record, deploy_in_progress=True))["deploy"]
    states = [(each["name"], each["state"]) for each in view["steps"]]
    assert states[:3] == [("preflight", "ok"), ("launch", "ok"), ("smoke", "now")]
    assert states[3:] == [(n, "next") for n in ("health", "switch", "guard", "warm", "drain")]
    assert view["actions"] == ["abort"]


def test_a_dry_run_has_no_switch_ahead() -> None:
    record = last(examples.STARTED, phase="launch", dry_run=True)
    view = deploy.view(answers(last_deploy=record, deploy_in_progress=True))["deploy"]
    assert [each["name"] for each in view["steps"]] == ["launch", "smoke", "health"]


def test_a_ramp_shows_what_the_next_step_needs_and_can_be_steered() -> None:
    ramp = {**as_json(examples.RAMP), "next_ts": "2026-01-05T09:32:00Z", "requests_needed": 21}
    for paused, first in ((False, "ramp-pause"), (True, "ramp-resume")):
        record = last(examples.STARTED, phase="ramp", ramp={**ramp, "paused": paused})
        given = answers(last_deploy=record, deploy_in_progress=True)
        shown = deploy.view(given)["deploy"]
        assert shown["actions"] == [first, "ramp-advance", "switch", "abort"]
        assert "<b>21 more requests</b>" in html("deploy", given)
        assert ("data-left" in html("deploy", given)) is not paused


def test_a_guard_counts_down() -> None:
    record = last(examples.SWITCHED, phase="guard", until_ts="2026-01-05T09:32:00Z")
    shown = html("deploy", answers(last_deploy=record, deploy_in_progress=False))
    assert 'datetime="2026-01-05T09:32:00Z" data-left' in shown


def test_why_it_stopped_is_what_was_expected_what_came_and_the_last_output() -> None:
    check = {
        "name": "home answers",
        "ok": False,
        "kind": "http",
        "problems": ["status is 500, expected 200"],
        "expected": "status 200",
        "got": "status 500 in 3 ms: <b>oh no</b>",
    }
    detail = {"message": "1 failed: x", "checks": [check], "output": ["one", "the last line"]}
    step = {"name": "smoke", "ok": False, "duration_ms": 9, "detail": detail}
    shown = html("deploy", answers(last_deploy=last(examples.FAILED, steps=[step])))
    assert "status is 500, expected 200" in shown
    assert "<code>status 500 in 3 ms</code>" in shown
    assert "&lt;b&gt;oh no&lt;/b&gt;" in shown
    assert "the last line" in shown
    assert 'data-copy="why-text"' in shown


# Actions.


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, ["deploy", "dry-run", "hold", "reload"]),
        ({"deploy_in_progress": True}, ["hold", "reload"]),
        ({"mode": "single"}, ["reset", "hold", "reload"]),
        ({"public_port": None}, ["deploy", "dry-run", "reload"]),
    ],
)
def test_the_actions_are_those_that_are_possible_now(
    changes: dict[str, Any], names: list[str]
) -> None:
    given = {"deploy_in_progress": False, "mode": "bluegreen", **changes}
    given.setdefault("traffic", {"plane": "kernel", "weights": {"green": 1.0}, "held": None})
    assert actions.view(answers(**given))["names"] == names


@pytest.mark.parametrize("audience", [Audience.READER, Audience.VIEWER])
def test_only_an_operator_has_buttons(audience: Audience) -> None:
    record = last(examples.STARTED, phase="ramp", ramp=as_json(examples.RAMP))
    cases: list[dict[str, Any]] = [{}, {"last_deploy": record, "deploy_in_progress": True}]
    for changes in cases:
        given = answers(audience=audience, **changes)
        shown = "".join(html(name, given) for name in page.SECTIONS)
        assert 'method="post"' not in shown
        assert "popover" not in shown


# All of them.


@pytest.mark.parametrize("name", page.SECTIONS)
@pytest.mark.parametrize("audience", Audience)
def test_every_section_stands_without_any_answer(name: str, audience: Audience) -> None:
    nothing = Answers({}, at=AT, audience=audience)
    refused = dict.fromkeys(page.needs(), NOT_READY)
    for given in (nothing, Answers(refused, at=AT, audience=audience)):
        assert isinstance(html(name, given), str)


@pytest.mark.parametrize("name", page.SECTIONS)
def test_a_view_is_equal_as_long_as_its_answers_are(name: str) -> None:
    section = page.SECTIONS[name]
    assert section.view(answers()) == section.view(answers())


def test_text_from_outside_is_escaped_everywhere() -> None:
    evil = "<img src=x onerror=alert(1)>"
    record = last(examples.FAILED, version=evil, release=evil, reason=evil, deploy_id=evil)
    given = answers(
        {HISTORY: {"deploys": [{**record, "result": "switched"}]}},
        version=evil,
        channel=evil,
        last_deploy=record,
        slots=[slot(0, version=evil, last_exit=evil, restarts=1)],
        fallback_suggestions=[{"code": "x", "message": evil, "action": f"`{evil}`"}],
    )
    shown = "".join(html(name, given) for name in page.SECTIONS)
    assert "<img" not in shown
    assert "&lt;img" in shown


# The fleet.

FLEET_OFF = {"error": {"code": "fleet_is_off", "message": "this machine belongs to no fleet"}}


def in_a_fleet(name: str, **found: Any) -> dict[str, Any]:
    """Return the answer of a fleet, one of the document's examples."""
    return {fleet.FLEET: {**as_json(getattr(fleet_examples, name)), **found}}


def test_without_a_fleet_its_section_is_empty() -> None:
    assert html("fleet", answers({fleet.FLEET: FLEET_OFF})).strip() == ""


def test_the_fleet_says_who_serves_what_the_rollout_does_and_why_a_host_waits() -> None:
    shown = html("fleet", answers(in_a_fleet("FLEET")))
    assert "All 3 hosts serve 1.3.2 (2) and 1.4.0 (1)" in shown
    assert "1.4.0: running, 1 of 3 hosts passed" in shown
    assert "web2 deploys" in shown
    assert "waits: 1 of 1 slots is held by web2" in shown
    assert "web2 for" in shown


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("FLEET", ["fleet-pause", "fleet-abort", "fleet-rollback", "fleet-kill-all"]),
        ("PAUSED", ["fleet-resume", "fleet-abort", "fleet-rollback", "fleet-kill-all"]),
        ("ABORTED", ["fleet-rollout", "fleet-rollback", "fleet-kill-all"]),
        ("BACK", ["fleet-pause", "fleet-abort", "fleet-kill-all"]),
        (
            "KILLED",
            ["fleet-pause", "fleet-abort", "fleet-rollback", "fleet-kill-all", "fleet-reset"],
        ),
    ],
)
def test_the_possible_actions_on_a_fleet_are_offered_to_operators_alone(
    name: str, wanted: list[str]
) -> None:
    found = in_a_fleet(name)
    assert fleet.view(answers(found))["actions"] == wanted
    assert fleet.view(answers(found, Audience.VIEWER))["actions"] == []
    assert "data-action" not in html("fleet", answers(found, Audience.VIEWER))


def test_a_lost_host_is_red_and_has_the_button_that_frees_its_slot_or_forgets_it() -> None:
    shown = html("fleet", answers(in_a_fleet("HALTED")))
    assert "atlasctl fleet forget web2" in shown

    hosts = as_json(fleet_examples.FLEET)["hosts"]
    hosts[1] |= {"fresh": False, "serves": False}
    shown = html("fleet", answers(in_a_fleet("FLEET", hosts=hosts)))
    assert "atlasctl fleet break web2 --generation 17" in shown
    assert "2 of 3 hosts serve" in shown


def test_each_feature_has_its_kill_switch_unless_it_is_killed() -> None:
    assert "atlasctl fleet kill vision" in html("fleet", answers(in_a_fleet("FLEET")))
    shown = html("fleet", answers(in_a_fleet("KILLED")))
    assert "off everywhere" in shown
    assert "atlasctl fleet kill vision" not in shown


def test_while_the_engine_is_away_the_fleet_has_no_button() -> None:
    engine = {"connected": False, "since_ts": AT.isoformat(), "error": "no leader"}
    shown = html("fleet", answers(in_a_fleet("FLEET", engine=engine)))
    assert "no leader" in shown
    assert "data-action" not in shown
