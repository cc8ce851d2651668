"""Whose turn it is, by the documents of one revision."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from atlas_supervisor.fleet.documents import (
    PRESENT,
    RESULTS,
    ROLLOUT,
    SEMAPHORE,
    Direction,
    Document,
    Halt,
    Holder,
    HostDeploy,
    HostResult,
    HostState,
    Purpose,
    Rollout,
    RolloutState,
    Semaphore,
    UnreadableDocumentError,
)
from atlas_supervisor.fleet.engine import Delete, Put
from atlas_supervisor.fleet.local import LocalOutcome, LocalState
from atlas_supervisor.fleet.situation import Situation
from atlas_supervisor.fleet.turn import (
    Finish,
    Take,
    Use,
    Wait,
    Writes,
    decide,
    give_back,
    is_far,
    places_behind,
    reached,
    reason_to_wait,
)
from tests.unit.supervisor.fleet.support import (
    RUN,
    START,
    fleet_of,
    present_host,
    results,
    rollout_of,
    slots_of,
    snapshot,
)

Documents = dict[str, Document]
HERE = LocalState("1.3.2", 100, "bluegreen", None, deploying=False)
FAILED = HostDeploy(deploy_id="d1", result="failed")
ABC = fleet_of("a", "b", "c")
PASSED_AT = LocalOutcome(passed=True, deploy_id="d2", version="1.4.0", reason="")


def situation(*parts: Documents) -> Situation:
    merged: dict[str, Document | bytes] = {}
    for part in parts:
        merged |= part
    return Situation.read(snapshot(merged))


def semaphore(slots: int = 1, **holders: Purpose) -> Documents:
    held = {
        host: Holder(purpose=purpose, since_ts=START, generation=5, rollout_id=RUN)
        for host, purpose in holders.items()
    }
    return {SEMAPHORE: Semaphore(slots=slots, generation=5, holders=held)}


def failed_on(*hosts: str) -> Documents:
    return {PRESENT + host: present_host(last_deploy=FAILED) for host in hosts}


def reason(host: str, *parts: Documents, local: LocalState = HERE) -> str:
    decision = decide(situation(*parts), host, local, START)
    assert isinstance(decision, Wait)
    return decision.reason


def takers(*parts: Documents) -> list[str]:
    """Return the hosts that may take a slot now."""
    given = situation(*parts)
    return [
        host for host in sorted(given.members) if isinstance(decide(given, host, HERE, START), Take)
    ]


def written(writes: Writes) -> dict[str, bytes | None]:
    return {each.key: each.value if isinstance(each, Put) else None for each in writes}


def test_the_first_host_without_a_result_takes_a_slot() -> None:
    order = rollout_of("a", "b", "c")

    assert takers(ABC, order) == ["a"]
    assert takers(ABC, order, results(a=HostState.PASSED)) == ["b"]
    assert takers(ABC, order, results(a=HostState.PASSED), semaphore(2)) == ["b", "c"]


def test_a_slot_is_taken_together_with_the_result_that_shows_it() -> None:
    decision = decide(situation(ABC, rollout_of("a", "b", "c")), "a", HERE, START)

    assert isinstance(decision, Take)
    changes = written(decision.writes)
    assert set(changes) == {SEMAPHORE, f"{RESULTS}{RUN}/a"}
    after = Semaphore.read(SEMAPHORE, changes[SEMAPHORE] or b"")
    assert (after.generation, after.holders["a"]) == (1, decision.holder)


def test_a_host_that_holds_a_slot_goes_on_with_it_whatever_the_rollout_does() -> None:
    given = situation(ABC, rollout_of("a", "b", state=RolloutState.ABORTED), slots_of(a=4))

    decision = decide(given, "a", HERE, START)

    assert isinstance(decision, Use)
    assert decision.holder.generation == 4


def test_a_wave_begins_once_all_hosts_of_the_waves_before_it_have_passed() -> None:
    order = rollout_of("a", "b", "c", wave_ends=(1, 3), max_unavailable=3)
    begun = results(a=HostState.DEPLOYING)

    assert takers(ABC, order, semaphore(3)) == ["a"]
    assert takers(ABC, order, begun, semaphore(3, a=Purpose.DEPLOY)) == []
    assert takers(ABC, order, results(a=HostState.PASSED), semaphore(3)) == ["b", "c"]
    assert reason("b", ABC, order, begun, semaphore(3, a=Purpose.DEPLOY)) == (
        "waits for its wave: host a of an earlier one has not passed"
    )


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([rollout_of("a", "b", state=RolloutState.PAUSED)], "waits: the rollout is paused"),
        (
            [
                rollout_of(
                    "a",
                    "b",
                    state=RolloutState.HALTED,
                    halt=Halt(host="b", reason="smoke: home answers 500", at_ts=START),
                )
            ],
            "waits: the rollout is halted by host b: smoke: home answers 500",
        ),
        (
            [rollout_of("a", "b", "c"), semaphore(1, c=Purpose.REBOOT)],
            "waits: 1 of 1 slots is held by c",
        ),
        (
            [rollout_of("a", "b", "c"), semaphore(2, a=Purpose.REBOOT)],
            "waits: this host holds a slot for a reboot",
        ),
        ([rollout_of("c", "b", "a")], "waits for its turn: host c and 1 more comes first"),
        ([rollout_of("b", "c")], "waits for the next rollout: it has no part in this one"),
        (
            [rollout_of("a", "b", "c"), results(a=HostState.DEPLOYING)],
            "waits for an operator: its deploy is recorded as begun, but it holds no slot",
        ),
        ([rollout_of("a", "b", "c"), results(a=HostState.PASSED)], ""),
        ([rollout_of("a", "b", state=RolloutState.PASSED)], ""),
        ([rollout_of("a", "b", state=RolloutState.ABORTED)], ""),
        ([], ""),
    ],
)
def test_a_host_says_why_it_takes_no_slot(parts: list[Documents], expected: str) -> None:
    assert reason("a", ABC, *parts) == expected


def test_a_host_without_a_sign_of_life_stops_all_others() -> None:
    some = fleet_of("a", "b", "c", "d", away=("b", "d"))

    assert reason("a", some, rollout_of("a", "b", "c")) == (
        "waits for host b and 1 more: no sign of life"
    )


@pytest.mark.parametrize("result", ["failed", "rolled_back"])
def test_a_failed_last_deploy_stops_all_others(result: str) -> None:
    last = HostDeploy(deploy_id="d1", result=result)
    failed: Documents = {PRESENT + "c": present_host(last_deploy=last)}

    assert reason("a", ABC, failed, rollout_of("a", "b")) == (
        "waits for host c: its last deploy failed; deploy on it, or pause and resume the rollout"
    )


@pytest.mark.parametrize("result", ["switched", "aborted", "dry_run_passed"])
def test_a_last_deploy_that_did_not_fail_stops_no_other(result: str) -> None:
    last = HostDeploy(deploy_id="d1", result=result)
    done: Documents = {PRESENT + "c": present_host(last_deploy=last)}

    assert takers(ABC, done, rollout_of("a", "b", "c")) == ["a"]


def test_excused_hosts_are_tried_before_all_others() -> None:
    order = rollout_of("a", "b", "c", excused=("b", "c"))

    assert takers(ABC, failed_on("b", "c"), order, semaphore(3)) == ["b", "c"]
    assert reason("a", ABC, failed_on("b", "c"), order) == (
        "waits for host b: it failed, and is tried first"
    )
    passed = results(b=HostState.PASSED, c=HostState.PASSED)
    assert takers(ABC, order, passed) == ["a"]


def test_a_host_that_holds_a_slot_shows_that_its_wave_has_not_passed() -> None:
    order = rollout_of("a", "b", "c", wave_ends=(2, 3), max_unavailable=3)
    deploying = situation(ABC, order, semaphore(3, b=Purpose.DEPLOY)).turns
    free = situation(ABC, order, semaphore(3)).turns

    assert reason_to_wait(deploying, "c") == (
        "waits for its wave: host b of an earlier one has not passed"
    )
    assert reason_to_wait(deploying, "a") is None
    assert reason_to_wait(free, "c") is None


def test_an_excused_host_of_a_later_wave_is_waited_for_in_its_own() -> None:
    order = rollout_of("a", "b", "c", wave_ends=(1, 3), excused=("c",))

    assert takers(ABC, failed_on("c"), order, semaphore(3)) == ["a"]
    assert takers(ABC, failed_on("c"), order, semaphore(3), results(a=HostState.PASSED)) == ["c"]


def test_a_rollout_that_goes_back_is_not_stopped_by_failed_deploys() -> None:
    order = rollout_of("b", "a", direction=Direction.BACK, undoes="before")

    assert takers(ABC, failed_on("a", "c"), order) == ["b"]


def test_a_forgotten_host_is_waited_for_no_longer_and_takes_no_slot() -> None:
    left = fleet_of("b", "c")
    order = rollout_of("a", "b", "c", wave_ends=(1, 3))

    assert takers(left, order) == ["b"]
    assert reason("a", left, order) == "waits: the fleet was asked to forget this host"


def test_a_host_that_can_not_deploy_now_takes_no_slot() -> None:
    order = rollout_of("a", "b", "c")
    back = rollout_of("a", direction=Direction.BACK)
    single = replace(HERE, mode="single")

    assert reason("a", ABC, order, local=replace(HERE, deploying=True)) == (
        "waits: a deploy of its own is in progress on this host"
    )
    assert reason("a", ABC, order, local=single).startswith("waits: deploys are disabled on this")
    assert isinstance(decide(situation(ABC, back), "a", single, START), Take)


def test_a_rollout_passes_with_its_last_host() -> None:
    holder = Holder(purpose=Purpose.DEPLOY, since_ts=START, generation=5, rollout_id=RUN)
    given = situation(
        ABC,
        rollout_of("a", "b"),
        semaphore(1, b=Purpose.DEPLOY),
        results(a=HostState.PASSED, b=HostState.DEPLOYING),
    )

    writes = give_back(given, "b", holder, PASSED_AT, START)

    assert writes is not None
    changes = written(writes)
    assert Rollout.read(ROLLOUT, changes[ROLLOUT] or b"").state is RolloutState.PASSED
    assert not Semaphore.read(SEMAPHORE, changes[SEMAPHORE] or b"").holders
    result = HostResult.read("b", changes[f"{RESULTS}{RUN}/b"] or b"")
    assert (result.state, result.version, result.deploy_id) == (HostState.PASSED, "1.4.0", "d2")


def test_a_rollout_passes_once_the_hosts_that_are_left_have() -> None:
    given = situation(fleet_of("b"), rollout_of("a", "b"), results(b=HostState.PASSED))

    assert isinstance(decide(given, "b", HERE, START), Finish)


@pytest.mark.parametrize(
    ("state", "after"),
    [
        (RolloutState.RUNNING, RolloutState.HALTED),
        (RolloutState.PAUSED, RolloutState.HALTED),
        (RolloutState.HALTED, None),
        (RolloutState.ABORTED, None),
    ],
)
def test_a_failure_halts_a_rollout_that_goes_on(
    state: RolloutState, after: RolloutState | None
) -> None:
    outcome = replace(PASSED_AT, passed=False, reason="guard: errors rose")

    changes = given_back(outcome, rollout_of("a", "b", state=state))

    assert HostResult.read("a", changes[f"{RESULTS}{RUN}/a"] or b"").state is HostState.FAILED
    rollout = changes.get(ROLLOUT)
    assert (None if rollout is None else Rollout.read(ROLLOUT, rollout).state) is after
    if rollout is not None:
        halt = Rollout.read(ROLLOUT, rollout).halt
        assert halt == Halt(host="a", reason="guard: errors rose", at_ts=START)


def test_a_host_that_began_nothing_gives_its_slot_back_and_waits_again() -> None:
    changes = given_back(None, rollout_of("a", "b"))

    assert changes[f"{RESULTS}{RUN}/a"] is None
    assert ROLLOUT not in changes


def test_a_result_for_a_rollout_that_was_replaced_leaves_the_new_one_as_it_is() -> None:
    outcome = replace(PASSED_AT, passed=False)

    changes = given_back(outcome, rollout_of("a", "b", rollout_id="another"))

    assert set(changes) == {SEMAPHORE, f"{RESULTS}{RUN}/a"}


def given_back(outcome: LocalOutcome | None, rollout: Documents) -> dict[str, bytes | None]:
    holder = Holder(purpose=Purpose.DEPLOY, since_ts=START, generation=5, rollout_id=RUN)
    given = situation(ABC, rollout, semaphore(1, a=Purpose.DEPLOY))
    writes = give_back(given, "a", holder, outcome, START)
    assert writes is not None
    assert all(isinstance(each, Put | Delete) for each in writes)
    return written(writes)


def test_a_broken_slot_is_not_given_back() -> None:
    holder = Holder(purpose=Purpose.DEPLOY, since_ts=START, generation=4, rollout_id=RUN)
    given = situation(ABC, rollout_of("a", "b"), semaphore(1, a=Purpose.DEPLOY))

    assert give_back(given, "a", holder, PASSED_AT, START) is None


@pytest.mark.parametrize("key", [ROLLOUT, SEMAPHORE, f"{RESULTS}{RUN}/b", PRESENT + "b"])
def test_nothing_is_decided_by_a_document_that_can_not_be_read(key: str) -> None:
    documents: dict[str, Any] = {**ABC, **rollout_of("a", "b"), key: b"\x00"}

    with pytest.raises(UnreadableDocumentError, match=f"{key} can't be read"):
        Situation.read(snapshot(documents))


def test_only_hosts_whose_turn_may_have_come_look_closely() -> None:
    hosts = [f"h{number:03}" for number in range(100)]
    rollout = Rollout.read(ROLLOUT, rollout_of(*hosts)[ROLLOUT].written())
    excused = rollout.model_copy(update={"excused": ("h099",)})

    assert reached(rollout, ["h003", "h001", "unknown"]) == 4
    assert [host for host in hosts if not is_far(rollout, host, 4, 2)] == hosts[:6]
    assert not is_far(excused, "h099", 4, 2)
    assert not is_far(rollout, "joined-later", 4, 2)
    assert [places_behind(rollout, host, 4) for host in hosts[2:7]] == [0, 0, 0, 1, 2]
    assert places_behind(rollout, "joined-later", 4) == 0
