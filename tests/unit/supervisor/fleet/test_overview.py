"""The view of a fleet has what its documents have, and says what waits for what."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from atlas_supervisor.fleet.documents import (
    HOSTS,
    KILL,
    PRESENT,
    RESULTS,
    ROLLOUT,
    Direction,
    Document,
    Halt,
    HostDeploy,
    HostState,
    RolloutState,
)
from atlas_supervisor.fleet.engine import Outage
from atlas_supervisor.fleet.overview import Knowledge, Sighting, overview
from atlas_supervisor.fleet.view import FleetView, HostView, RolloutView
from atlas_supervisor.model.canary import Kills
from tests.unit.supervisor.fleet.support import (
    RUN,
    START,
    calls,
    count,
    fleet_of,
    kill,
    killed,
    present_host,
    results,
    rollout_of,
    slots_of,
    snapshot,
)

DEPLOYING, PASSED, FAILED = HostState.DEPLOYING, HostState.PASSED, HostState.FAILED
AWAY = Outage(START, "no endpoint can be reached")


def view_at_a(documents: dict[str, Document], **knowledge: Any) -> FleetView:
    """Return the view of host a."""
    return overview(Knowledge("shop", "a", snapshot({**documents}), **knowledge))


def host(view: FleetView, name: str) -> HostView:
    return next(each for each in view.hosts if each.name == name)


def rollout(view: FleetView) -> RolloutView:
    assert view.rollout is not None
    return view.rollout


def codes(view: FleetView) -> list[str]:
    return [each.code for each in view.suggestions]


def test_a_host_without_a_sign_of_life_is_not_fresh_and_shown_as_last_seen() -> None:
    seen = {"b": Sighting(present_host(version="1.3.1", waits_for="waits: a slot"), START)}
    view = view_at_a(fleet_of("a", "b", "c", away=("b", "c")), sightings=seen)

    assert [(each.name, each.fresh, each.serves) for each in view.hosts] == [
        ("a", True, True),
        ("b", False, False),
        ("c", False, False),
    ]
    assert (host(view, "b").version, host(view, "b").seen_ts) == ("1.3.1", START)
    assert (host(view, "c").version, host(view, "c").mode) == (None, None)
    assert host(view, "b").waits_for == ""  # as it was then
    (lost,) = view.suggestions
    assert "b, c" in lost.message
    assert "atlasctl fleet forget b" in lost.action


@pytest.mark.parametrize(
    ("presence", "serves"),
    [
        ({}, True),
        ({"health_score": 60}, True),
        ({"health_score": 10}, False),
        ({"health_score": None}, False),
        ({"version": None}, False),
    ],
)
def test_a_host_serves_if_it_has_a_version_and_is_not_unhealthy(
    presence: dict[str, Any], serves: bool
) -> None:
    assert host(view_at_a(fleet_of("a", **presence)), "a").serves is serves


def test_while_the_engine_is_away_no_host_is_said_to_be_alive_or_dead() -> None:
    view = view_at_a(fleet_of("a", "b", away=("b",)), outage=AWAY)

    assert [(each.fresh, each.serves) for each in view.hosts] == [(None, None)] * 2
    assert (view.engine.connected, view.engine.since_ts, view.engine.error) == (False, *AWAY)
    assert codes(view) == ["engine_away"]


def test_while_the_engine_is_away_a_machine_shows_itself_as_it_is_now() -> None:
    own = present_host(version="1.5.0", health_score=90)
    for documents in (fleet_of("a", "b"), {}):
        host = view_at_a(documents, outage=AWAY, own=own).hosts[0]
        assert (host.name, host.version, host.health_score) == ("a", "1.5.0", 90)
        assert host.fresh is None  # the fleet can't see it


def test_while_the_engine_is_away_its_lack_of_a_kill_is_no_loss() -> None:
    view = view_at_a({}, outage=AWAY, applied=kill(5, "vision"), features=("vision",))
    assert codes(view) == ["engine_away", "killed"]


def test_before_the_engines_first_answer_the_view_is_empty_and_says_why() -> None:
    view = overview(Knowledge("shop", "a", outage=AWAY))

    assert (view.hosts, view.rollout, view.kills.epoch) == ([], None, 0)
    assert codes(view) == ["engine_away"]


def test_waves_have_their_hosts_and_how_far_each_is() -> None:
    documents = fleet_of("a", "b", "c", "d") | slots_of(b=7)
    documents |= rollout_of("a", "b", "c", "d", wave_ends=(1, 3, 4))
    view = view_at_a(documents | results(a=PASSED, b=DEPLOYING))

    waves = [
        (wave.hosts, wave.waiting, wave.deploying, wave.passed, wave.failed)
        for wave in rollout(view).waves
    ]
    assert waves == [(["a"], 0, 0, 1, 0), (["b", "c"], 1, 1, 0, 0), (["d"], 1, 0, 0, 0)]
    assert rollout(view).hosts.waiting == ["c", "d"]
    assert rollout(view).now == "b deploys"
    assert [each.host for each in view.semaphore.holders] == ["b"]
    assert (slot := host(view, "b").slot)
    assert slot.generation == 7
    assert (part := host(view, "a").part)
    assert part.state is PASSED


def test_a_host_whose_deploy_waits_for_its_switch_is_said_to_wait_for_an_operator() -> None:
    documents = fleet_of("a", "b") | rollout_of("a", "b") | slots_of(a=7) | results(a=DEPLOYING)
    waiting = HostDeploy(deploy_id="1", result="awaiting_switch")
    documents[PRESENT + "a"] = present_host(last_deploy=waiting)
    assert "a has passed its gates and waits for its switch" in rollout(view_at_a(documents)).now


def test_a_rollout_that_waits_says_why_in_the_words_of_the_next_host() -> None:
    documents = fleet_of("a", "b", "c", away=("c",)) | rollout_of("a", "b", "c")
    documents[PRESENT + "b"] = present_host(waits_for="waits for c: no sign of life")
    view = view_at_a(documents | results(a=PASSED))

    assert rollout(view).now == "b waits for c: no sign of life"
    assert host(view, "b").waits_for == "waits for c: no sign of life"


def test_a_host_that_died_with_its_slot_is_named_with_the_command_that_breaks_it() -> None:
    documents = fleet_of("a", "b", away=("b",)) | rollout_of("a", "b") | slots_of(b=17)
    view = view_at_a(documents | results(a=PASSED, b=DEPLOYING))

    assert rollout(view).now == "b holds its slot and shows no sign of life"
    assert codes(view) == ["slot_of_lost_host"]
    assert "atlasctl fleet break b --generation 17" in view.suggestions[0].action


def test_a_halted_rollout_names_the_host_its_reason_and_the_ways_on() -> None:
    halt = Halt(host="b", reason="smoke: home answers: got 500", at_ts=START)
    documents = fleet_of("a", "b", "c")
    documents |= rollout_of("a", "b", "c", state=RolloutState.HALTED, halt=halt)
    view = view_at_a(documents | results(a=PASSED, b=FAILED))

    assert rollout(view).now == "no host begins: b failed: smoke: home answers: got 500"
    assert codes(view) == ["rollout_halted"]
    action = view.suggestions[0].action
    assert all(f"fleet {verb}" in action for verb in ("resume", "rollback", "abort"))


def test_a_paused_rollout_says_so_and_one_that_has_passed_waits_for_nothing() -> None:
    paused = rollout_of("a", state=RolloutState.PAUSED)
    assert rollout(view_at_a(fleet_of("a") | paused)).now == "no host begins: it is paused"

    passed = rollout_of("a", state=RolloutState.PASSED, ended_ts=START + timedelta(minutes=2))
    view = view_at_a(fleet_of("a") | passed | results(a=PASSED))
    assert (rollout(view).now, codes(view)) == ("", [])


def test_a_host_whose_last_deploy_failed_is_named_while_a_rollout_runs() -> None:
    documents = fleet_of("a", "b")
    last = HostDeploy(deploy_id="1", result="rolled_back")
    documents[PRESENT + "b"] = present_host(last_deploy=last)

    assert codes(view_at_a(documents)) == []
    assert codes(view_at_a(documents | rollout_of("a", "b"))) == ["host_failed"]
    assert codes(view_at_a(documents | rollout_of("a", "b", excused=("b",)))) == []
    assert codes(view_at_a(documents | rollout_of("a", direction=Direction.BACK))) == []


def test_a_kill_names_the_hosts_that_have_not_acknowledged_it() -> None:
    documents = fleet_of("a", "b", "c", kill_epoch=3) | killed(4, "vision")
    documents[PRESENT + "b"] = present_host(kill_epoch=4)
    view = view_at_a(documents, applied=kill(4, "vision"), features=("vision",))

    kills = view.kills
    assert (kills.epoch, kills.features) == (4, ["vision"])
    assert (kills.acknowledged, kills.hosts, kills.behind) == (2, 3, ["c"])
    assert codes(view) == ["kill_not_everywhere", "killed"]


@pytest.mark.parametrize("in_engine", [{}, killed(2)])
def test_a_kill_that_the_engine_has_lost_stays_and_is_shown(in_engine: dict[str, Document]) -> None:
    documents = fleet_of("a", kill_epoch=5) | in_engine
    view = view_at_a(documents, applied=kill(5, "vision"), features=("vision",))

    assert (view.kills.epoch, view.kills.features) == (5, ["vision"])
    assert view.kills.engine_epoch == (2 if in_engine else None)
    assert codes(view) == ["kill_lost_in_engine", "killed"]


def test_a_reset_needs_no_attention() -> None:
    view = view_at_a(fleet_of("a", kill_epoch=5) | killed(6), applied=kill(6))
    assert (view.kills.epoch, view.kills.acknowledged, codes(view)) == (6, 1, [])


def test_a_kill_of_a_hosts_former_fleet_is_shown_until_this_one_sets_its_own() -> None:
    former = Kills(epoch=7, features=("vision",), since_ts=START, by="uid:0")
    view = view_at_a(fleet_of("a"), former_kills=former, features=("vision", "web"))
    assert (view.kills.epoch, view.kills.former) == (0, ["vision"])
    assert codes(view) == ["kill_of_former_fleet"]

    every = former.model_copy(update={"every_feature": True})
    assert view_at_a({}, former_kills=every, features=("vision", "web")).kills.former == [
        "vision",
        "web",
    ]
    documents = fleet_of("a", kill_epoch=1) | killed(1)
    assert view_at_a(documents, former_kills=former, applied=kill(1)).kills.former == []


def test_evidence_is_the_sum_of_all_hosts_and_names_the_outlier() -> None:
    counted = calls(a=count((200, 2)), b=count((200, 31)), c=count((200, 1)))
    view = view_at_a(fleet_of("a", "b", "c") | counted)

    vision = view.evidence["vision"]
    assert (vision.hosts, vision.canary.calls, vision.canary.errors) == (3, 600, 34)
    assert (vision.stable.calls, vision.stable.errors) == (3000, 30)
    assert [each.host for each in vision.outliers] == ["b"]
    assert view.suggestions[0].message == (
        "b fails 15.5% of vision's canary calls, the other hosts 0.8%."
    )


@pytest.mark.parametrize("key", [ROLLOUT, KILL, f"{RESULTS}{RUN}/a", PRESENT + "b", HOSTS + "b"])
def test_a_document_that_cant_be_read_is_named_and_left_out(key: str) -> None:
    found = snapshot({**fleet_of("a", "b"), **rollout_of("a", "b"), key: b'{"half": '})
    view = overview(Knowledge("shop", "a", found))

    assert [each.split(" ")[0] for each in view.unreadable] == [key]
    assert "document_unreadable" in codes(view)
    assert [each.name for each in view.hosts] == ["a", "b"]


def test_a_host_that_rollouts_wait_for_is_listed_though_its_document_cant_be_read() -> None:
    view = overview(Knowledge("shop", "a", snapshot({**fleet_of("a"), HOSTS + "b": b"garbage"})))
    assert [(each.name, each.fresh) for each in view.hosts] == [("a", True), ("b", False)]


def test_a_kill_that_cant_be_read_is_not_called_lost() -> None:
    found = snapshot({**fleet_of("a", kill_epoch=5), KILL: b"garbage"})
    view = overview(Knowledge("shop", "a", found, applied=kill(5, "vision"), features=("vision",)))
    assert codes(view) == ["document_unreadable", "killed"]


def test_a_killed_feature_that_no_host_has_is_named() -> None:
    documents = fleet_of("a", kill_epoch=5) | killed(5, "visoin", "vision", "web")
    documents |= calls(b=count((200, 2)))  # another host has `vision`
    view = view_at_a(documents, applied=kill(5, "visoin", "vision", "web"), features=("web",))

    assert view.kills.unknown == ["visoin"]
    assert codes(view) == ["killed_unknown_feature", "killed"]
    assert view.suggestions[0].message.startswith("visoin: no feature of this host")
