"""The table's promises, checked over every row and every path."""

from itertools import product

import pytest

from atlas_supervisor.deploy.machine import (
    ACTIVITIES,
    FIRST_PHASE,
    IN_PROGRESS,
    TABLE,
    Consequence,
    Event,
    NotPossibleError,
    Phase,
    Plan,
    When,
    demands_of,
    diagram,
    possible,
    step,
)
from atlas_supervisor.model.deploy import Result

RECYCLE = Plan(recycle=True)
PLANS = [
    *(
        Plan(dry_run, auto_switch, irreversible=irreversible, ramp=ramp)
        for dry_run, auto_switch, irreversible in product((False, True), repeat=3)
        for ramp in ((), (0.1, 1.0))
    ),
    RECYCLE,
]
BEFORE_SWITCH = {
    *(Phase.PREFLIGHT, Phase.LAUNCH, Phase.SMOKE, Phase.HEALTH),
    *(Phase.AWAITING_SWITCH, Phase.RAMP),
}
LIVE_STAGING = {Phase.LAUNCH, Phase.SMOKE, Phase.HEALTH}


def followers(plan: Plan, phase: Phase) -> set[Phase]:
    return {step(plan, phase, event).target for event in Event if possible(plan, phase, event)}


def reachable(plan: Plan, start: Phase = FIRST_PHASE) -> set[Phase]:
    seen, frontier = {start}, [start]
    while frontier:
        for target in followers(plan, frontier.pop()) - seen:
            seen.add(target)
            frontier.append(target)
    return seen


def results(plan: Plan) -> set[tuple[Phase, Result | None]]:
    """Walk every path there is; return each phase with each result that a deploy can have there."""
    start: tuple[Phase, Result | None] = (FIRST_PHASE, None)
    seen, frontier = {start}, [start]
    while frontier:
        phase, result = frontier.pop()
        for event in Event:
            if possible(plan, phase, event):
                row = step(plan, phase, event)
                if (found := (row.target, row.result or result)) not in seen:
                    seen.add(found)
                    frontier.append(found)
    return seen


def test_every_state_has_an_answer_to_every_event() -> None:
    for plan, phase, event in product(PLANS, Phase, Event):
        if possible(plan, phase, event):
            assert step(plan, phase, event).target in Phase
        else:
            with pytest.raises(NotPossibleError):
                step(plan, phase, event)


@pytest.mark.parametrize("plan", PLANS)
def test_every_path_ends_with_a_result(plan: Plan) -> None:
    ended = {result for phase, result in results(plan) if phase is Phase.ENDED}
    assert None not in ended
    assert Result.AWAITING_SWITCH not in ended
    assert (Result.DRY_RUN_PASSED in ended) == plan.dry_run
    assert (Result.SWITCHED in ended) == (Result.ROLLED_BACK in ended) == (not plan.dry_run)


@pytest.mark.parametrize("plan", PLANS)
def test_a_deploy_goes_in_circles_only_if_something_from_outside_makes_it(plan: Plan) -> None:
    own = {Event.PASSED, Event.FAILED, Event.STAGING_DIED, Event.SUPERSEDED}

    def walk(phase: Phase, before: frozenset[Phase]) -> None:
        assert phase not in before, f"it comes back to {phase} by itself"
        for event in own if phase is not Phase.AWAITING_SWITCH else ():
            if possible(plan, phase, event):
                walk(step(plan, phase, event).target, before | {phase})

    for phase in reachable(plan):
        walk(phase, frozenset())


def test_no_event_has_two_rows_in_a_phase() -> None:
    for plan in PLANS:
        for phase, event in product(Phase, Event):
            rows = [r for r in TABLE if (r.phase, r.event) == (phase, event) and plan.meets(r.when)]
            assert len(rows) <= 1, (plan, phase, event)


@pytest.mark.parametrize("plan", PLANS)
def test_every_phase_has_a_way_to_the_end(plan: Plan) -> None:
    for phase in reachable(plan):
        assert Phase.ENDED in reachable(plan, phase), phase


@pytest.mark.parametrize("plan", PLANS)
def test_every_activity_that_passes_leads_on(plan: Plan) -> None:
    waits = {Phase.AWAITING_SWITCH, Phase.ENDED}
    for phase in reachable(plan) - waits:
        assert possible(plan, phase, Event.PASSED), phase


@pytest.mark.parametrize("plan", PLANS)
def test_every_activity_that_fails_leads_on(plan: Plan) -> None:
    for phase in reachable(plan) - {Phase.AWAITING_SWITCH, Phase.ENDED}:
        assert possible(plan, phase, Event.FAILED), phase


@pytest.mark.parametrize("plan", PLANS)
def test_no_event_leads_out_of_the_last_phase(plan: Plan) -> None:
    assert not followers(plan, Phase.ENDED)


@pytest.mark.parametrize("plan", PLANS)
def test_a_stopped_supervisor_is_an_event_everywhere(plan: Plan) -> None:
    for phase in reachable(plan) - {Phase.ENDED}:
        assert possible(plan, phase, Event.SUPERVISOR_STOPPED), phase


@pytest.mark.parametrize("plan", PLANS)
def test_an_abort_is_possible_at_every_step_before_the_switch_and_at_none_after(plan: Plan) -> None:
    for phase in reachable(plan):
        assert possible(plan, phase, Event.ABORT_REQUESTED) == (phase in BEFORE_SWITCH), phase


def test_only_a_release_that_passed_every_gate_is_switched_to() -> None:
    for row in TABLE:
        if row.target is Phase.SWITCH:
            assert (row.phase, row.event) in {
                (Phase.HEALTH, Event.PASSED),
                (Phase.AWAITING_SWITCH, Event.SWITCH_REQUESTED),
                (Phase.RAMP, Event.PASSED),
                (Phase.RAMP, Event.SWITCH_REQUESTED),
            }
            assert row.phase is Phase.RAMP or row.when in {When.AUTO, When.NO_RAMP}
        if row.target is Phase.RAMP and row.phase is not Phase.RAMP:
            assert (row.phase, row.event, row.when) in {
                (Phase.HEALTH, Event.PASSED, When.AUTO_RAMP),
                (Phase.AWAITING_SWITCH, Event.SWITCH_REQUESTED, When.RAMP),
            }
    gates = [(Phase.PREFLIGHT, Phase.LAUNCH), (Phase.LAUNCH, Phase.SMOKE)]
    gates += [(Phase.SMOKE, Phase.HEALTH)]
    for before, gate in gates:
        entries = {(r.phase, r.event) for r in TABLE if r.target is gate}
        assert entries - {(Phase.AWAITING_SWITCH, Event.SUPERVISOR_STOPPED)} == {
            (before, Event.PASSED)
        }


def test_a_dry_run_never_switches_and_never_touches_the_mode() -> None:
    for auto in (False, True):
        plan = Plan(dry_run=True, auto_switch=auto)
        assert Phase.SWITCH not in reachable(plan)
        for phase, event in product(reachable(plan), Event):
            if possible(plan, phase, event):
                assert Consequence.SINGLE_MODE not in step(plan, phase, event).demands


def test_a_release_that_fails_a_gate_is_audited_falls_back_and_ends_staging() -> None:
    for phase, event in product(LIVE_STAGING, (Event.FAILED, Event.STAGING_DIED)):
        row = step(Plan(), phase, event)
        assert (row.result, row.target) == (Result.FAILED, Phase.UNSTAGE)
        assert row.demands == (Consequence.ROLLBACK_UNNEEDED_AUDITED, Consequence.SINGLE_MODE)


def test_a_rollback_whose_version_fails_a_gate_is_audited_as_failed() -> None:
    for phase in LIVE_STAGING:
        row = step(Plan(rollback=True), phase, Event.FAILED)
        demands = (Consequence.ROLLBACK_FAILURE_AUDITED, Consequence.SINGLE_MODE)
        assert demands_of(Plan(rollback=True), row, None) == demands
        assert demands_of(Plan(), row, None) == row.demands


def test_preflight_and_abort_leave_the_mode_alone() -> None:
    for row in TABLE:
        if row.event is Event.ABORT_REQUESTED or row.phase is Phase.PREFLIGHT:
            assert Consequence.SINGLE_MODE not in row.demands


def test_a_switch_that_could_not_be_done_leaves_the_mode_and_waits_for_a_retry() -> None:
    row = step(Plan(), Phase.SWITCH, Event.FAILED)
    assert row.target is Phase.AWAITING_SWITCH
    assert Consequence.SINGLE_MODE not in row.demands
    assert Consequence.SWITCH_FAILURE_AUDITED in row.demands


def test_only_the_guard_falls_back_after_a_switch() -> None:
    reverts = [row for row in TABLE if row.target is Phase.REVERT]
    falling = {row.phase for row in reverts if Consequence.SINGLE_MODE in row.demands}
    assert falling == {Phase.GUARD}
    by_hand = step(Plan(), Phase.GUARD, Event.ROLLBACK_REQUESTED)
    assert Consequence.SINGLE_MODE not in by_hand.demands


def test_only_a_request_reverts_an_irreversible_version_that_had_all_the_traffic() -> None:
    plan, held = Plan(irreversible=True), 0
    for phase, event in product(reachable(plan), Event):
        if not possible(plan, phase, event):
            continue
        row = step(plan, phase, event)
        assert row.target is not Phase.REVERT or event is Event.ROLLBACK_REQUESTED
        if step(Plan(), phase, event).target is Phase.REVERT != row.target:
            assert (row.target, row.demands) == (Phase.WARM, (Consequence.HELD,))
            held += 1
    assert held == 3
    assert not possible(plan, Phase.DRAIN, Event.ACTIVE_DIED)


def test_the_old_version_is_drained_only_after_the_switch() -> None:
    for row in TABLE:
        if row.target is Phase.DRAIN:
            assert row.phase in {Phase.SWITCH, Phase.GUARD, Phase.WARM}


def test_a_recycle_needs_nobody_and_never_touches_the_mode() -> None:
    assert Phase.AWAITING_SWITCH not in reachable(RECYCLE)
    for row in TABLE:
        assert Consequence.SINGLE_MODE not in demands_of(RECYCLE, row, None)


def test_the_old_worker_of_a_recycle_is_drained_at_once_and_is_no_version_to_go_back_to() -> None:
    after = step(RECYCLE, Phase.SWITCH, Event.PASSED)
    assert (after.target, after.result) == (Phase.DRAIN, Result.SWITCHED)
    assert not [phase for phase in reachable(RECYCLE) if _goes_back(phase)]
    assert possible(RECYCLE, Phase.DRAIN, Event.ACTIVE_DIED), "its drain has not begun"


def _goes_back(phase: Phase) -> bool:
    return possible(RECYCLE, phase, Event.ROLLBACK_REQUESTED)


def test_a_recycle_whose_switch_can_not_be_done_fails_and_ends_staging() -> None:
    row = step(RECYCLE, Phase.SWITCH, Event.FAILED)
    assert (row.target, row.result) == (Phase.UNSTAGE, Result.FAILED)


def test_a_deploy_is_in_progress_until_it_has_all_the_traffic_or_gave_up() -> None:
    assert {Phase.GUARD, Phase.WARM, Phase.DRAIN, Phase.ENDED}.isdisjoint(IN_PROGRESS)
    assert BEFORE_SWITCH | {Phase.SWITCH, Phase.UNSTAGE} <= IN_PROGRESS


@pytest.mark.parametrize("plan", PLANS)
def test_a_ramp_is_reached_only_if_one_is_ahead_and_never_in_a_dry_run(plan: Plan) -> None:
    assert (Phase.RAMP in reachable(plan)) == (bool(plan.ramp) and not plan.dry_run)


def test_a_ramp_that_is_reverted_has_no_traffic_before_its_worker_ends() -> None:
    for event in (Event.FAILED, Event.STAGING_DIED):
        row = step(Plan(), Phase.RAMP, event)
        assert (row.target, row.result) == (Phase.UNSTAGE, Result.ROLLED_BACK)
        assert row.demands == (Consequence.ROLLBACK_AUDITED, Consequence.SINGLE_MODE)


def test_an_event_without_a_row_is_refused() -> None:
    with pytest.raises(NotPossibleError, match="switch_requested is not possible in launch"):
        step(Plan(), Phase.LAUNCH, Event.SWITCH_REQUESTED)


def test_every_phase_but_the_last_has_an_activity_in_words() -> None:
    assert set(ACTIVITIES) == set(Phase) - {Phase.ENDED}


def test_the_diagram_shows_every_row() -> None:
    assert diagram().count("-->") == len(TABLE) + 2
