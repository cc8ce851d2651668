"""Histories of events, at every moment of every activity: each deploy reaches a right end."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from itertools import combinations_with_replacement, product
from unittest.mock import ANY

import anyio
import pytest
import structlog

from atlas_supervisor.deploy import runner
from atlas_supervisor.deploy.machine import SHARES, Event, Phase, Plan, StepOutcome
from atlas_supervisor.errors import AtlasError
from atlas_supervisor.model.deploy import DeployRecord, PublishedEvent, Result, StepDetail
from atlas_supervisor.store import outbox
from tests.unit.supervisor.deploy.fakes import (
    BLUE,
    DIED,
    FAIL,
    GREEN,
    LEFT,
    RELEASE,
    Outcome,
    World,
    driven,
    to_the_end,
    until,
    until_phase,
)
from tests.unit.supervisor.store.support import a_deploy

NEWS = [
    Event.ABORT_REQUESTED,
    Event.STAGING_DIED,
    Event.ACTIVE_DIED,
    Event.SUPERSEDED,
    Event.ROLLBACK_REQUESTED,
    Event.SUPERVISOR_STOPPED,
    Event.SWITCH_REQUESTED,
    Event.SPLIT_REQUESTED,
]
# Which activities have to fail for this one to begin.
WAYS: dict[str, dict[str, Outcome]] = {
    "preflight": {},
    "launch": {},
    "smoke": {},
    "health": {},
    "switch": {},
    "guard": {},
    "warm": {},
    "drain": {},
    "unstage": {"health": FAIL},
    "revert": {"guard": FAIL},
}
FAILURES = [FAIL, AtlasError("the disk is full"), OSError(28, "no space"), ZeroDivisionError("bug")]


def world_on_the_way_to(activity: str) -> World:
    world = World()
    world.outcomes = {name: [outcome] for name, outcome in WAYS[activity].items()}
    return world


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(outbox, "_RETRY_SECONDS", 0.001)
    # Thousands of histories; to format what is logged of them would take most of the time.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


async def test_a_good_release_goes_through_every_phase() -> None:
    world = World()
    async with driven(world) as run:
        await run.ended.wait()
    assert run.record.result == "switched"
    assert [step.name for step in run.record.steps] == [
        *("preflight", "launch", "smoke", "health", "switch", "guard", "drain")
    ]
    assert all(step.ok for step in run.record.steps)
    assert world.mode == "bluegreen"


@pytest.mark.parametrize("failure", FAILURES, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize(
    ("activity", "result", "mode"),
    [
        ("preflight", "failed", "bluegreen"),
        ("launch", "failed", "single"),
        ("smoke", "failed", "single"),
        ("health", "failed", "single"),
        ("switch", "aborted", "bluegreen"),
        ("guard", "rolled_back", "single"),
        ("warm", "switched", "bluegreen"),
        ("drain", "switched", "bluegreen"),
        ("unstage", "failed", "single"),
        ("revert", "switched", "single"),
    ],
)
async def test_every_failure_of_every_activity_ends_the_deploy_as_it_should(
    activity: str, result: str, mode: str, failure: Outcome
) -> None:
    world = world_on_the_way_to(activity)
    world.outcomes[activity] = [failure]
    async with driven(world) as run:
        await to_the_end(run)
    assert (run.record.result, world.mode) == (result, mode)


async def test_a_failure_to_clean_up_does_not_hide_the_reason() -> None:
    world = world_on_the_way_to("unstage")
    world.outcomes["unstage"] = [OSError(5, "input/output error")]
    async with driven(world) as run:
        await run.ended.wait()
    assert run.record.reason == "health: not good enough"


@pytest.mark.parametrize("moment", ["before", "as_it_begins", "as_it_ends"])
@pytest.mark.parametrize("activity", WAYS)
async def test_any_events_at_any_moment_lead_to_an_end(activity: str, moment: str) -> None:
    for pair in combinations_with_replacement(NEWS, 2):
        world = world_on_the_way_to(activity)
        async with driven(world) as run:

            def happen(
                run: runner.DeployRun = run, news: tuple[Event, Event] = pair
            ) -> None:  # the defaults bind them to this turn
                for each in dict.fromkeys(news):
                    run.offer(each, f"{each} in the test")

            if moment == "before":
                world.held[activity] = anyio.Event()
                world.when_begun[activity] = world.held[activity].set
                happen()
            elif moment == "as_it_begins":
                world.when_begun[activity] = happen
            else:
                world.when_ending[activity] = happen
            await to_the_end(run)


@pytest.mark.parametrize("plan", [Plan(dry_run=True), Plan(auto_switch=False), Plan(rollback=True)])
@pytest.mark.parametrize("activity", ["launch", "smoke", "health", "unstage"])
async def test_any_event_leads_to_an_end_under_other_plans(plan: Plan, activity: str) -> None:
    for event, outcome in product(NEWS, (FAIL, DIED, None)):
        world = world_on_the_way_to(activity)
        if outcome is not None:
            world.outcomes[activity] = [outcome]
        async with driven(world, plan) as run:
            world.when_ending[activity] = partial(run.offer, event, "it came")
            await to_the_end(run)
        assert world.mode == "bluegreen" or not plan.dry_run


@pytest.mark.parametrize("lasts", [1, 2, 5])
async def test_a_disk_that_fails_at_any_write_loses_nothing(lasts: int) -> None:
    for activity, first in product(WAYS, range(12)):
        world = world_on_the_way_to(activity)
        failing = iter([False] * first + [True] * lasts)
        world.disk_fails = partial(next, failing, False)
        async with driven(world) as run:
            await to_the_end(run)
        if activity in {"unstage", "revert"} and run.record.result != "aborted":
            assert world.mode == "single"
            outcome = "not_needed" if activity == "unstage" else "done"
            assert rollbacks(world) == [outcome]


@pytest.mark.parametrize(
    ("activity", "came_to"),
    [
        ("", ["switched"]),
        ("preflight", ["failed"]),
        ("smoke", ["failed"]),
        ("guard", ["switched", "rolled_back"]),
        ("switch", ["awaiting_switch", "aborted"]),
    ],
)
async def test_each_result_of_a_deploy_is_audited_once(activity: str, came_to: list[str]) -> None:
    world = World()
    world.outcomes[activity] = [FAIL]
    async with driven(world) as run:
        await run.settled.wait()
        run.offer(Event.ABORT_REQUESTED, "given up")
        await to_the_end(run)
    assert [outcome for action, outcome in world.audits if action == "deploy"] == came_to


def rollbacks(world: World) -> list[str]:
    return [outcome for action, outcome in world.audits if action == "rollback"]


@pytest.mark.parametrize("by", [None, Event.ACTIVE_DIED, Event.ROLLBACK_REQUESTED])
@pytest.mark.parametrize("outcome", [[], [FAIL]])
async def test_a_revert_is_audited_with_its_true_outcome_once_it_is_known(
    by: Event | None, outcome: list[Outcome]
) -> None:
    world = World()
    world.outcomes = {"guard": [FAIL] if by is None else [], "revert": list(outcome)}
    async with driven(world) as run:
        if by is not None:
            world.when_begun["guard"] = lambda: run.offer(by, "it came")
        world.when_begun["revert"] = lambda: asked_before.extend(rollbacks(world))
        asked_before: list[str] = []
        await run.ended.wait()
    assert asked_before == []
    # A request is audited by the service, with its actor.
    expected = [] if by is Event.ROLLBACK_REQUESTED else ["failed" if outcome else "done"]
    assert rollbacks(world) == expected
    assert (run.record.result == "rolled_back") == (not outcome)


async def test_nothing_is_switched_while_the_intent_can_not_be_written() -> None:
    world, broken = World(), True
    world.disk_fails = lambda: broken
    async with driven(world) as run:
        await run.settled.wait()
        assert (run.phase, run.record.result) == (Phase.AWAITING_SWITCH, "awaiting_switch")
        assert run.settled.switch_failure == "the intent to switch could not be saved"
        assert "switch" not in world.done
        broken = False
        assert run.offer(Event.SWITCH_REQUESTED, "try again")
        await run.settled.wait()
        assert run.record.result == "switched"
        await run.ended.wait()
    assert ("switch", "failed") in world.audits


async def test_a_deploy_has_ended_before_its_record_could_be_written() -> None:
    world, broken = World(), False
    world.disk_fails = lambda: broken
    world.held["drain"] = anyio.Event()
    async with driven(world) as run:
        await until(lambda: world.journaled[-1:] == [("warm", "passed", "drain")])
        broken = True
        world.held["drain"].set()
        await run.ended.wait()  # so that the next deploy can begin
        assert world.journaled[-1].target == Phase.DRAIN
        event, journal_id = world.published[-1]  # and it is published
        assert (event.target, journal_id) == (Phase.ENDED, None)
        broken = False
    assert world.journaled[-1].target == Phase.ENDED


async def test_all_waiting_callers_get_the_answer_and_none_too_early() -> None:
    world = World()
    world.held["switch"] = anyio.Event()
    world.held["guard"] = anyio.Event()
    answers: list[DeployRecord] = []
    async with driven(world) as run, anyio.create_task_group() as waiters:

        async def wait() -> None:
            await run.settled.wait()
            answers.append(run.record)

        for _ in range(3):
            waiters.start_soon(wait)
        await until_phase(run, Phase.SWITCH)
        assert not answers
        world.held["switch"].set()
        await until(lambda: len(answers) == 3)
        assert {answer.result for answer in answers} == {"switched"}
        assert run.offer(Event.ROLLBACK_REQUESTED, "by hand")
        assert not run.settled.is_set()
        await wait()
        assert answers[-1].result == "rolled_back"
        world.held["guard"].set()


async def test_a_requested_rollback_is_in_progress_at_once() -> None:
    world = World()
    world.held["guard"] = anyio.Event()
    async with driven(world) as run:
        await until_phase(run, Phase.GUARD)
        assert not run.in_progress
        assert run.offer(Event.ROLLBACK_REQUESTED, "by hand")
        assert run.in_progress
        assert not run.offer(Event.ROLLBACK_REQUESTED, "by another")
        await run.ended.wait()
    assert run.record.result == "rolled_back"


async def test_a_version_that_dies_as_it_gets_the_traffic_is_reverted() -> None:
    world = World()
    async with driven(world) as run:
        world.when_ending["switch"] = lambda: run.offer(
            Event.STAGING_DIED, "it was ended by SIGKILL"
        )
        await run.ended.wait()
    assert run.record.result == "rolled_back"
    assert run.record.reason == "guard: it was ended by SIGKILL"


@pytest.mark.parametrize("activity", WAYS)
async def test_a_supervisor_that_stops_brings_every_activity_to_an_end(activity: str) -> None:
    world = world_on_the_way_to(activity)
    world.held[activity] = anyio.Event()
    if activity in {"switch", "revert"}:  # these are short, and run to their end
        world.when_begun[activity] = world.held[activity].set
    async with driven(world) as run:
        await until(lambda: activity in world.held and run.phase is not Phase.ENDED)
        await run.finish(Event.SUPERVISOR_STOPPED, "the supervisor was stopped")
        assert run.ended.is_set()


async def test_a_drain_that_the_supervisor_interrupts_records_what_was_left() -> None:
    world = World()
    world.held["drain"] = anyio.Event()
    begun = anyio.Event()
    world.when_begun["drain"] = begun.set
    async with driven(world) as run:
        await begun.wait()
        await run.finish(Event.SUPERVISOR_STOPPED, "the supervisor was stopped")
    drain = run.record.steps[-1]
    assert (drain.name, drain.ok) == ("drain", True)
    assert drain.detail == {
        "message": "the supervisor was stopped",
        "left": LEFT.model_dump(),
        "cut": None,
    }


async def test_a_waiting_deploy_waits_on_when_the_supervisor_stops() -> None:
    world = World()
    async with driven(world, Plan(auto_switch=False)) as run:
        await until_phase(run, Phase.HEALTH)
        await run.finish(Event.SUPERVISOR_STOPPED, "the supervisor was stopped")
        if not run.ended.is_set():
            assert run.waits
        await to_the_end(run)
    world = World()
    async with driven(world, Plan(auto_switch=False)) as run:
        await run.settled.wait()
        await run.finish(Event.SUPERVISOR_STOPPED, "the supervisor was stopped")
        assert run.waits
        assert world.record == run.record
        await to_the_end(run)


async def test_the_next_deploy_gets_the_slot_though_the_revert_fails_meanwhile() -> None:
    world = World()
    world.held = {"guard": anyio.Event(), "revert": anyio.Event(), "warm": anyio.Event()}
    world.outcomes["revert"] = [FAIL]
    async with driven(world) as run:
        await until_phase(run, Phase.GUARD)
        run.offer(Event.ACTIVE_DIED, "it was ended by SIGKILL")
        await until_phase(run, Phase.REVERT)
        world.held["revert"].set()
        await run.finish(Event.SUPERSEDED, "the next deploy has begun")
    assert world.done[-1] == "drain"


async def test_the_record_has_the_ports_that_a_revert_changed_during_preflight() -> None:
    world = World()
    world.active, world.staging = GREEN, BLUE
    world.outcomes["launch"] = [FAIL]

    def revert() -> None:
        world.active, world.staging = BLUE, GREEN

    world.when_ending["preflight"] = revert
    async with driven(world) as run:
        await run.ended.wait()
    assert run.record.active_port == BLUE


async def test_a_step_records_an_internal_error() -> None:
    world = World()
    world.outcomes["smoke"] = [ZeroDivisionError("bug")]
    async with driven(world) as run:
        await run.ended.wait()
    assert run.record.steps[-1].model_dump() == {
        "name": "smoke",
        "ok": False,
        "duration_ms": ANY,
        "detail": {"message": "internal error: ZeroDivisionError: bug"},
    }


async def test_a_step_that_a_death_ends_records_the_worker_s_last_output() -> None:
    world = World()
    world.held["guard"] = anyio.Event()
    async with driven(world) as run:
        await until_phase(run, Phase.GUARD)
        run.offer(Event.ACTIVE_DIED, "it died", StepDetail(output=["Traceback", "MemoryError"]))
        await run.ended.wait()
    guard, drain = run.record.steps[-2:]
    assert (guard.name, guard.detail["output"]) == ("guard", ["Traceback", "MemoryError"])
    assert (drain.name, "output" in drain.detail) == ("drain", False)


# Events from outside that have no row in a phase. A request is then refused. Every other pair of
# phase and event has a row, or is kept for the next phase.
_REQUESTS = {Event.ROLLBACK_REQUESTED, Event.SWITCH_REQUESTED, Event.ABORT_REQUESTED}
_BEFORE = {Event.ROLLBACK_REQUESTED, Event.SWITCH_REQUESTED, Event.SUPERSEDED}
_AFTER = {Event.SWITCH_REQUESTED, Event.ABORT_REQUESTED}
WITHOUT_ROW: dict[Phase, set[Event]] = {
    Phase.PREFLIGHT: _BEFORE,
    Phase.LAUNCH: _BEFORE,
    Phase.SMOKE: _BEFORE,
    Phase.HEALTH: _BEFORE,
    # The daemon's stop leaves it waiting; the next daemon takes that row.
    Phase.AWAITING_SWITCH: _BEFORE - {Event.SWITCH_REQUESTED} | {Event.SUPERVISOR_STOPPED},
    Phase.RAMP: {Event.ROLLBACK_REQUESTED, Event.SUPERSEDED},
    # The flip is short and runs to its end.
    Phase.SWITCH: _REQUESTS | {Event.SUPERSEDED},
    Phase.REVERT: _REQUESTS | {Event.SUPERSEDED},
    Phase.GUARD: _AFTER,
    Phase.WARM: _AFTER,
    # What only cleans up goes to its end.
    Phase.DRAIN: _REQUESTS | {Event.SUPERSEDED},
    Phase.DRAIN_REVERTED: _REQUESTS | {Event.SUPERSEDED},
    Phase.UNSTAGE: _REQUESTS | {Event.SUPERSEDED},
    Phase.ENDED: _REQUESTS | {Event.SUPERSEDED, Event.SUPERVISOR_STOPPED},
}
# Deaths without a row, and why no deploy needs to know: `Slots` is told that the deploy does not
# deal with it, and starts the active one again (`test_orders` tries every moment).
_RESTARTED = "the active version is started again, and the deploy goes on"
_BEING_ENDED = "it is being ended"
HARMLESS: dict[Phase, dict[Event, str]] = {
    Phase.PREFLIGHT: {
        Event.STAGING_DIED: "no instance of this deploy is there yet",
        Event.ACTIVE_DIED: _RESTARTED,
    },
    Phase.LAUNCH: {Event.ACTIVE_DIED: _RESTARTED},
    Phase.SMOKE: {Event.ACTIVE_DIED: _RESTARTED},
    Phase.HEALTH: {Event.ACTIVE_DIED: _RESTARTED},
    Phase.AWAITING_SWITCH: {Event.ACTIVE_DIED: _RESTARTED},
    Phase.RAMP: {Event.ACTIVE_DIED: _RESTARTED},
    Phase.SWITCH: {Event.ACTIVE_DIED: "the version before: it is about to lose the traffic"},
    Phase.REVERT: {Event.STAGING_DIED: "the flip fails, or it is started again after the flip"},
    Phase.GUARD: {Event.STAGING_DIED: "the version before: a rollback launches it again"},
    Phase.WARM: {Event.STAGING_DIED: "the version before: a rollback launches it again"},
    Phase.DRAIN: {Event.STAGING_DIED: _BEING_ENDED, Event.ACTIVE_DIED: _RESTARTED},
    Phase.DRAIN_REVERTED: {Event.STAGING_DIED: _BEING_ENDED, Event.ACTIVE_DIED: _RESTARTED},
    Phase.UNSTAGE: {Event.STAGING_DIED: _BEING_ENDED, Event.ACTIVE_DIED: _RESTARTED},
    Phase.ENDED: {Event.STAGING_DIED: _BEING_ENDED, Event.ACTIVE_DIED: _RESTARTED},
}


def run_in(phase: Phase, plan: Plan | None = None, *, begun: bool = True) -> runner.DeployRun:
    run = runner.DeployRun(
        a_deploy(), plan or Plan(), RELEASE, effects=World(), transitions=World(), phase=phase
    )
    run._has_begun = begun
    return run


@pytest.mark.parametrize("phase", Phase)
async def test_every_event_has_a_row_or_is_kept_or_is_harmless(phase: Phase) -> None:
    for plan in (Plan(), Plan(auto_switch=False), Plan(dry_run=True), Plan(rollback=True)):
        for event in NEWS:
            run = run_in(phase, plan)
            # Asked for once more, what is being done is no second event.
            accepted = run.accepts(event) and not run._does(event)
            means_nothing = event in WITHOUT_ROW[phase] | set(HARMLESS[phase])
            if event is Event.SPLIT_REQUESTED:
                means_nothing = phase not in SHARES
            assert accepted != means_nothing, (plan, phase, event)


@pytest.mark.parametrize("event", [Event.ACTIVE_DIED, Event.ROLLBACK_REQUESTED])
async def test_until_its_drain_begins_the_old_version_can_take_over(event: Event) -> None:
    assert run_in(Phase.DRAIN, begun=False).accepts(event)
    assert not run_in(Phase.DRAIN).accepts(event)
    world = World()
    async with driven(world) as run:

        def written(published: PublishedEvent, _journal_id: int | None) -> None:
            if published.event.target == Phase.DRAIN:
                assert run.offer(event, "just in time")

        world.publish = written
        await run.ended.wait()
    assert run.record.result == "rolled_back"
    assert run.record.reason == "drain: just in time"
    assert [step.name for step in run.record.steps][-2:] == ["guard", "drain"]


@pytest.mark.parametrize("activity", WAYS)
async def test_an_activity_may_end_in_any_event_and_the_deploy_still_ends(activity: str) -> None:
    for event in Event:
        world = world_on_the_way_to(activity)
        world.outcomes[activity] = [StepOutcome(event, "it ended so")]
        async with driven(world) as run:
            await to_the_end(run)


async def test_a_split_is_journaled_and_gives_way_to_what_comes_meanwhile() -> None:
    world = World()
    async with driven(world, Plan(auto_switch=False)) as run:
        await until_phase(run, Phase.AWAITING_SWITCH)
        await until(lambda: run.accepts(Event.SPLIT_REQUESTED))
        assert run.offer(Event.SPLIT_REQUESTED, "green gets 10 %")
        assert (await run.settled.wait()).result is Result.AWAITING_SWITCH
        assert (world.journaled[-1].source, world.journaled[-1].target) == ("awaiting_switch",) * 2
        assert run.waits
        assert run.offer(Event.SPLIT_REQUESTED, "green gets 20 %")
        assert run.offer(Event.STAGING_DIED, "it exited")
        assert (await run.settled.wait()).result is Result.FAILED


async def test_a_pause_that_is_accepted_counts_though_the_step_passes_in_the_same_moment() -> None:
    world = World()
    world.outcomes["ramp"] = [StepOutcome(Event.STEP_PASSED, "step 2"), FAIL]
    async with driven(world, Plan(ramp=(0.1, 0.5, 1.0))) as run:
        asked: list[bool] = []
        world.when_ending["ramp"] = lambda: asked.append(
            run.offer(Event.PAUSE_REQUESTED, "pause requested")
        )
        await run.ended.wait()
    assert asked == [True]
    ramps = [each for each in world.journaled if each.source == "ramp"]
    assert [each.event for each in ramps] == ["pause_requested", "failed"]
    assert run.record.ramp is not None
    assert (run.record.ramp.share, run.record.ramp.paused) == (0.1, True)
    assert (run.record.result, world.mode) == ("rolled_back", "single")
    assert ("rollback", "done") in world.audits


async def test_a_switch_that_failed_after_a_ramp_is_tried_again_without_another() -> None:
    world = World()
    world.outcomes["switch"] = [FAIL]
    async with driven(world, Plan(ramp=(0.1, 1.0))) as run:
        await until_phase(run, Phase.AWAITING_SWITCH)
        await run.settled.wait()
        assert run.offer(Event.SWITCH_REQUESTED, "once more")
        await run.ended.wait()
    assert world.done.count("ramp") == 1
    assert run.record.result == "switched"
