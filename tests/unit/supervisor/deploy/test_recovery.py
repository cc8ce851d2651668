"""What a dead daemon left in file and database, and what the next one makes of it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from atlas_supervisor.deploy import initial_state
from atlas_supervisor.deploy.initial_state import read_state
from atlas_supervisor.deploy.machine import Event, Phase
from atlas_supervisor.deploy.recovery import recover
from atlas_supervisor.errors import StartRefusedError
from atlas_supervisor.model.actor import SUPERVISOR
from atlas_supervisor.model.deploy import AfterFailure, Cause, Mode
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.store.deploys import UnfinishedDeploy
from atlas_supervisor.store.state_keeper import StateFile
from atlas_worker.contract import STATE_FILE
from tests.unit.supervisor.deploy.support import (
    AFTER_SWITCH,
    BEFORE_SWITCH,
    BLUE,
    GREEN,
    PORT,
    left,
)
from tests.unit.supervisor.store.support import WHEN, a_deploy, a_state, moved

AFTER_REVERT = {Phase.GUARD, Phase.WARM, Phase.DRAIN, Phase.REVERT}


@pytest.mark.parametrize("phase", BEFORE_SWITCH)
async def test_before_the_switch_it_is_aborted_and_the_version_stays(
    tmp_path: Path, phase: Phase
) -> None:
    async with left(tmp_path) as it:
        await it.versions(("v1", BLUE))
        await it.deploy(phase)
        state, waiting = await it.recover(BLUE)
        assert (waiting, state.mode) == (None, Mode.BLUEGREEN)
        record = await it.ended()
        assert (record.result, record.reason) == ("aborted", f"the supervisor ended during {phase}")
        assert await it.stack() == [("v1", BLUE)]


@pytest.mark.parametrize(
    ("phase", "weight"), [(Phase.AWAITING_SWITCH, 0.5), (Phase.HEALTH, 0), (Phase.WARM, 0)]
)
async def test_a_share_of_the_traffic_goes_on_with_a_deploy_that_waits_alone(
    tmp_path: Path, phase: Phase, weight: float
) -> None:
    async with left(tmp_path, state_dir=tmp_path) as it:
        ports = {"active_port": PORT[BLUE], "staging_port": PORT[GREEN]}
        StateFile(tmp_path / STATE_FILE).write(a_state(**ports, staging_weight=0.5))
        await it.deploy(phase)
        keeper, _ = await recover(it.settings, it.database, lambda _seconds, _ok: None)
        assert keeper.state.staging_weight == weight


@pytest.mark.parametrize("noted", [True, False])
async def test_a_switch_that_the_state_file_shows_counts_and_its_version_is_added_once(
    tmp_path: Path, noted: bool
) -> None:
    async with left(tmp_path) as it:  # noted: by an earlier supervisor, before the transition
        await it.versions(("v1", BLUE), *([("v2", GREEN)] if noted else []))
        await it.deploy(Phase.SWITCH)
        await it.recover(GREEN)
        record = await it.ended()
        assert (record.result, record.active_port) == ("switched", PORT[GREEN])
        assert await it.stack() == [("v1", BLUE), ("v2", GREEN)]


async def test_a_durable_switch_counts_after_the_clock_went_back(tmp_path: Path) -> None:
    async with left(tmp_path) as it:
        await it.versions(("v1", BLUE))
        earlier = a_deploy("d0", started_ts=WHEN + timedelta(days=1))
        await it.database.deploys.begin(earlier, auto_switch=True)
        ended = earlier.model_copy(update={"phase": "ended", "ended_ts": WHEN})
        await it.database.deploys.write_transition(*moved(ended, source="smoke", event="failed"))
        await it.deploy(Phase.SWITCH)
        await it.recover(GREEN)
        assert (await it.ended()).result == "switched"
        assert await it.stack() == [("v1", BLUE), ("v2", GREEN)]


async def test_a_switch_that_the_state_file_does_not_show_is_none(tmp_path: Path) -> None:
    async with left(tmp_path) as it:
        await it.versions(("v1", BLUE))
        await it.deploy(Phase.SWITCH)
        await it.recover(BLUE)
        record = await it.ended()
        assert (record.result, record.active_port) == ("aborted", PORT[BLUE])
        assert await it.stack() == [("v1", BLUE)]


@pytest.mark.parametrize(
    ("phase", "active", "result"),
    [
        (Phase.SMOKE, BLUE, "aborted"),
        (Phase.SWITCH, BLUE, "aborted"),
        (Phase.SWITCH, GREEN, "switched"),
        (Phase.DRAIN, GREEN, "switched"),
        (Phase.REVERT, BLUE, "rolled_back"),
    ],
)
async def test_a_recycle_that_was_interrupted_leaves_one_version_and_the_mode(
    tmp_path: Path, phase: Phase, active: SlotName, result: str
) -> None:
    async with left(tmp_path) as it:
        await it.versions(("v0", GREEN), ("v1", BLUE))
        await it.deploy(phase, release="v1", cause=Cause.RECYCLED)
        state, waiting = await it.recover(active)
        assert ((await it.ended()).result, waiting, state.mode) == (result, None, Mode.BLUEGREEN)
        assert [name for name, _ in await it.stack()] == ["v0", "v1"]
        if phase is not Phase.DRAIN:  # its switch moved the version
            assert (await it.stack())[-1] == ("v1", active)


async def test_a_recycle_whose_new_worker_lives_goes_on_with_its_drain(tmp_path: Path) -> None:
    async with left(tmp_path) as it:
        await it.versions(("v1", BLUE))
        await it.deploy(Phase.SWITCH, release="v1", cause=Cause.RECYCLED)
        state, unfinished = await it.interrupted(GREEN)
        assert unfinished is not None
        record, release = await it.resume(unfinished, state, it.release("v1"))
        assert (record.phase, record.result) == (Phase.DRAIN, "switched")
        assert release == it.release("v1")
        assert await it.stack() == [("v1", GREEN)]


@pytest.mark.parametrize("source", [Phase.LAUNCH, Phase.SMOKE, Phase.HEALTH])
async def test_a_recycle_that_failed_before_the_kill_never_falls_back(
    tmp_path: Path, source: Phase
) -> None:
    async with left(tmp_path) as it:
        cause, failed = Cause.RECYCLED, Event.FAILED
        await it.deploy(Phase.UNSTAGE, source=source, event=failed, cause=cause, result="failed")
        state, _ = await it.recover(BLUE)
        assert state.mode is Mode.BLUEGREEN


@pytest.mark.parametrize("phase", AFTER_SWITCH)
async def test_after_the_switch_the_new_version_stays(tmp_path: Path, phase: Phase) -> None:
    async with left(tmp_path) as it:
        await it.versions(("v1", BLUE), ("v2", GREEN))
        await it.deploy(phase)
        await it.recover(GREEN)
        assert (await it.ended()).result == "switched"
        assert await it.stack() == [("v1", BLUE), ("v2", GREEN)]


@pytest.mark.parametrize("noted", [True, False])
@pytest.mark.parametrize("phase", [Phase.REVERT, Phase.GUARD, Phase.WARM])
async def test_a_revert_that_the_state_file_shows_counts_though_the_journal_lacks_it(
    tmp_path: Path, phase: Phase, noted: bool
) -> None:
    async with left(tmp_path) as it:
        await it.versions(("v1", BLUE), *([] if noted else [("v2", GREEN)]))
        await it.deploy(phase)
        await it.recover(BLUE)
        record = await it.ended()
        assert (record.result, record.active_port) == ("rolled_back", PORT[BLUE])
        assert await it.stack() == [("v1", BLUE)]


async def test_a_revert_that_was_only_intended_is_none(tmp_path: Path) -> None:
    async with left(tmp_path) as it:
        await it.versions(("v1", BLUE), ("v2", GREEN))
        await it.deploy(Phase.REVERT)
        await it.recover(GREEN)
        assert (await it.ended()).result == "switched"
        assert await it.stack() == [("v1", BLUE), ("v2", GREEN)]


async def test_the_same_version_deployed_again_is_noted_once_more(tmp_path: Path) -> None:
    async with left(tmp_path) as it:
        await it.versions(("v2", BLUE))
        await it.deploy(Phase.SWITCH)
        await it.recover(GREEN)
        assert await it.stack() == [("v2", BLUE), ("v2", GREEN)]


async def test_the_first_switch_of_all_is_noted_where_nothing_was(tmp_path: Path) -> None:
    async with left(tmp_path) as it:
        await it.deploy(Phase.SWITCH)
        await it.recover(GREEN)
        assert await it.stack() == [("v2", GREEN)]


async def test_of_two_unfinished_deploys_the_state_file_shows_the_later_one_s_switch(
    tmp_path: Path,
) -> None:
    async with left(tmp_path) as it:
        await it.versions(("v1", BLUE), ("v2", GREEN))
        await it.deploy(Phase.WARM, "d1")
        await it.deploy(
            Phase.SWITCH,
            "d2",
            release="v1",
            active_port=PORT[GREEN],
            staging_port=PORT[BLUE],
        )
        await it.recover(BLUE)
        assert (await it.ended("d1")).result == "switched"
        assert (await it.ended("d2")).result == "switched"
        assert await it.stack() == [("v1", BLUE), ("v2", GREEN), ("v1", BLUE)]


async def test_only_the_latest_waiting_deploy_goes_on_waiting(tmp_path: Path) -> None:
    async with left(tmp_path) as it:
        await it.deploy(Phase.AWAITING_SWITCH, "d1", result="awaiting_switch")
        await it.deploy(Phase.AWAITING_SWITCH, "d2", result="awaiting_switch")
        _, waiting = await it.recover(BLUE)
        assert waiting.record.deploy_id == "d2"
        assert (await it.ended("d1")).result == "aborted"


async def test_in_single_mode_by_the_settings_nothing_waits(tmp_path: Path) -> None:
    async with left(tmp_path, deploy_mode=Mode.SINGLE) as it:
        await it.deploy(Phase.AWAITING_SWITCH, result="awaiting_switch")
        _, waiting = await it.recover(BLUE, mode=Mode.SINGLE)
        assert waiting is None
        assert (await it.ended()).result == "aborted"


async def test_a_fallback_that_was_not_written_is_written_by_recovery(tmp_path: Path) -> None:
    async with left(tmp_path) as it:
        await it.deploy(Phase.UNSTAGE, event=Event.FAILED, result="failed", reason="health: 500")
        state, _ = await it.recover(BLUE)
        assert state.mode is Mode.SINGLE
        record = await it.ended()
        assert (record.result, record.reason) == ("failed", "health: 500")


async def test_a_fallback_is_audited_once_whether_or_not_it_was_performed(tmp_path: Path) -> None:
    for mode in (Mode.BLUEGREEN, Mode.SINGLE):
        folder = tmp_path / mode
        folder.mkdir()
        async with left(folder) as it:
            record = await it.deploy(
                Phase.UNSTAGE, event=Event.FAILED, result="failed", reason="health: 500"
            )
            if mode is Mode.SINGLE:  # the last daemon got that far
                await it.database.audit.write(
                    SUPERVISOR, "rollback", "not_needed", subject=record.deploy_id
                )
                await it.database.audit.write(
                    SUPERVISOR, "mode", "single", subject=record.deploy_id
                )
            await it.recover(BLUE, mode=mode)
            assert await it.audited() == [
                *(("rollback", "not_needed"), ("mode", "single"), ("deploy", "failed")),
            ]


async def test_a_fallback_that_was_written_and_not_audited_is_audited(tmp_path: Path) -> None:
    async with left(tmp_path) as it:
        await it.deploy(Phase.UNSTAGE, event=Event.FAILED, result="failed", reason="health: 500")
        await it.recover(BLUE, mode=Mode.SINGLE)
        assert ("mode", "single") in await it.audited()


async def test_recovery_does_not_undo_an_operators_reset_of_the_mode(tmp_path: Path) -> None:
    async with left(tmp_path) as it:
        record = await it.deploy(Phase.UNSTAGE, event=Event.FAILED, result="failed")
        audit = it.database.audit
        await audit.write(SUPERVISOR, "mode", "single", subject=record.deploy_id)
        await audit.write(SUPERVISOR, "mode", "bluegreen")  # while the deploy was unstaged
        state, _ = await it.recover(BLUE, mode=Mode.BLUEGREEN)
        assert state.mode is Mode.BLUEGREEN


async def test_a_result_whose_audit_entry_a_kill_prevented_is_audited(tmp_path: Path) -> None:
    async with left(tmp_path) as it:
        await it.deploy(Phase.ENDED, result="aborted", ended_ts=WHEN)
        await it.recover(BLUE)
        assert await it.audited() == [("deploy", "aborted")]
        await it.recover(BLUE)
        assert await it.audited() == [("deploy", "aborted")]


async def test_a_result_of_a_deploy_that_goes_on_is_audited_after_a_kill(tmp_path: Path) -> None:
    async with left(tmp_path) as it:
        await it.deploy(Phase.GUARD)
        await it.recover(GREEN)
        assert ("deploy", "switched") in await it.audited()


async def test_with_AFTER_FAILURE_stay_recovery_leaves_the_mode(tmp_path: Path) -> None:
    async with left(tmp_path, after_failure=AfterFailure.STAY) as it:
        await it.deploy(Phase.UNSTAGE, event=Event.FAILED, result="failed", reason="health: 500")
        state, _ = await it.recover(BLUE)
        assert state.mode is Mode.BLUEGREEN
        assert await it.audited() == [("rollback", "not_needed"), ("deploy", "failed")]


@pytest.mark.parametrize(("serving", "outcome"), [(BLUE, "done"), (GREEN, "failed")])
async def test_an_interrupted_revert_is_audited_with_its_true_outcome(
    tmp_path: Path, serving: SlotName, outcome: str
) -> None:
    async with left(tmp_path) as it:
        await it.versions(("v1", BLUE), ("v2", GREEN))
        await it.deploy(Phase.REVERT, source=Phase.GUARD, event=Event.FAILED)
        await it.recover(serving)
        assert ("rollback", outcome) in await it.audited()
        assert len([each for each in await it.audited() if each[0] == "rollback"]) == 1


async def test_a_failed_switch_that_was_not_audited_is_audited_by_recovery(tmp_path: Path) -> None:
    async with left(tmp_path) as it:
        await it.deploy(Phase.UNSTAGE, source=Phase.SWITCH, event=Event.STAGING_DIED)
        await it.recover(BLUE)
        assert ("switch", "failed") in await it.audited()


async def test_the_end_of_a_switch_is_one_transaction_with_its_version_and_the_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with left(tmp_path) as it:
        await it.versions(("v1", BLUE))
        await it.deploy(Phase.SWITCH)
        await it.recover(GREEN, generation=9)
        assert await it.audited() == [("deploy", "switched")]
        kept = await it.database.state.load()
        assert kept is not None
        assert (kept.generation, kept.active_port) == (9, PORT[GREEN])


@pytest.mark.parametrize("mode", [Mode.SINGLE, Mode.BLUEGREEN])
async def test_a_mode_that_was_set_without_its_audit_entry_gets_it_at_the_next_start_once(
    tmp_path: Path, mode: Mode
) -> None:
    async with left(tmp_path) as it:
        other = Mode.BLUEGREEN if mode is Mode.SINGLE else Mode.SINGLE
        await it.database.audit.write(SUPERVISOR, "mode", other.value)
        file = StateFile(tmp_path / "deploy_state.json")
        file.write(a_state(mode=mode))
        for _ in range(2):
            assert (await read_state(it.settings, file, it.database)).mode is mode
        assert await it.audited() == [("mode", other.value), ("mode", mode.value)]


async def test_a_mode_that_the_settings_overrule_is_audited_once(tmp_path: Path) -> None:
    async with left(tmp_path, deploy_mode=Mode.SINGLE) as it:
        file = StateFile(tmp_path / "deploy_state.json")
        file.write(a_state())
        file.write(await read_state(it.settings, file, it.database))
        assert await it.audited() == [("mode", "single")]
        assert (await read_state(it.settings, file, it.database)).mode is Mode.SINGLE
        assert await it.audited() == [("mode", "single")]


LATCHED = {
    "mode": Mode.SINGLE,
    "canary_disabled_fallback": True,
    "active_port": PORT[GREEN],
    "staging_port": PORT[BLUE],
}


@pytest.mark.parametrize("content", [None, b"", b"{"])
async def test_a_state_file_that_is_lost_is_rebuilt_from_its_copy_with_latches_and_port(
    tmp_path: Path, content: bytes | None
) -> None:
    async with left(tmp_path, canary_enabled=True) as it:
        await it.database.audit.write(SUPERVISOR, "daemon", "started")
        await it.database.audit.write(SUPERVISOR, "daemon", "started")
        lost = a_state(**LATCHED)
        await it.database.state.save(lost)
        file = StateFile(tmp_path / "deploy_state.json")
        if content is not None:
            file.path.write_bytes(content)
        assert await read_state(it.settings, file, it.database) == lost
        assert ("state_file", "rebuilt") in await it.audited()


@pytest.mark.parametrize("content", [None, b"{"])
async def test_a_state_file_that_is_lost_with_its_copy_follows_the_settings_and_is_audited(
    tmp_path: Path, content: bytes | None
) -> None:
    async with left(tmp_path, deploy_mode=Mode.BLUEGREEN) as it:
        for _ in range(2):
            await it.database.audit.write(SUPERVISOR, "daemon", "started")
        await it.database.statements.write(("save_state", {"state": '{"mode": "purple"}'}))
        file = StateFile(tmp_path / "deploy_state.json")
        if content is not None:
            file.path.write_bytes(content)
        state = await read_state(it.settings, file, it.database)
        assert (state.mode, state.active_port) == (Mode.BLUEGREEN, PORT[BLUE])
        assert ("state_file", "rebuilt") in await it.audited()


async def test_an_unreadable_state_file_that_can_not_be_set_aside_refuses_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(initial_state, "now", lambda: WHEN)
    async with left(tmp_path) as it:
        file = StateFile(tmp_path / "deploy_state.json")
        file.path.write_bytes(b"{")
        file.path.with_name(f"{file.path.name}.unreadable-{WHEN:%Y%m%dT%H%M%SZ}").mkdir()
        with pytest.raises(StartRefusedError, match=r"can't be set aside: .* Is a directory"):
            await read_state(it.settings, file, it.database)
        assert file.path.read_bytes() == b"{"


async def test_at_the_first_start_no_state_file_is_lost(tmp_path: Path) -> None:
    async with left(tmp_path) as it:
        await it.database.audit.write(SUPERVISOR, "daemon", "started")
        await read_state(it.settings, StateFile(tmp_path / "deploy_state.json"), it.database)
        assert await it.audited() == [("daemon", "started")]


async def test_a_waiting_release_goes_through_its_gates_again(tmp_path: Path) -> None:
    async with left(tmp_path) as it:
        record = await it.deploy(Phase.AWAITING_SWITCH, result="awaiting_switch")
        waiting = UnfinishedDeploy(record, auto_switch=False)
        again, release = await it.resume(waiting, a_state())
        assert release is not None
        assert (again.phase, again.result, release.name) == (Phase.LAUNCH, None, "v2")


async def test_a_waiting_release_that_is_gone_fails_its_deploy(tmp_path: Path) -> None:
    async with left(tmp_path) as it:
        record = await it.deploy(Phase.AWAITING_SWITCH, result="awaiting_switch")
        (tmp_path / "releases").rename(tmp_path / "elsewhere")
        waiting = UnfinishedDeploy(record, auto_switch=False)
        assert (await it.resume(waiting, a_state()))[1] is None
        ended = await it.ended()
        assert ended.result == "failed"
        assert "RELEASES_DIR" in (ended.reason or "")


@pytest.mark.parametrize(
    ("phase", "active", "goes_on"),
    [
        (Phase.AWAITING_SWITCH, BLUE, (Phase.AWAITING_SWITCH, "awaiting_switch")),
        # The disk took the file, and then refused to make it durable and to take it back.
        (Phase.AWAITING_SWITCH, GREEN, (Phase.GUARD, "switched")),
        (Phase.SWITCH, GREEN, (Phase.GUARD, "switched")),
        (Phase.GUARD, GREEN, (Phase.GUARD, "switched")),
        (Phase.WARM, GREEN, (Phase.WARM, "switched")),
        (Phase.DRAIN, GREEN, (Phase.DRAIN, "switched")),
        (Phase.REVERT, GREEN, (Phase.REVERT, "switched")),
        (Phase.REVERT, BLUE, (Phase.DRAIN_REVERTED, "rolled_back")),
    ],
)
async def test_with_its_worker_in_staging_alive_a_deploy_goes_on_in_its_phase(
    tmp_path: Path, phase: Phase, active: SlotName, goes_on: tuple[Phase, str]
) -> None:
    async with left(tmp_path) as it:
        await it.versions(("v1", BLUE), *([("v2", GREEN)] if phase in AFTER_REVERT else []))
        result = "awaiting_switch" if phase is Phase.AWAITING_SWITCH else None
        await it.deploy(phase, **{"result": result} if result else {})  # type: ignore[arg-type]
        state, unfinished = await it.interrupted(active)
        assert unfinished is not None
        record, release = await it.resume(unfinished, state, it.release("v1"))
        assert release is not None
        assert ((record.phase, record.result), record.ended_ts) == (goes_on, None)
        assert await it.database.deploys.find("d1") == record
        assert record.active_port == state.active_port
        serving = "v1" if active is BLUE else "v2"
        assert (await it.stack())[-1] == (serving, active)
        again, unfinished = await it.interrupted(active)  # killed once more, right away
        assert unfinished is not None
        assert (await it.resume(unfinished, again, it.release("v1")))[0] == record


@pytest.mark.parametrize(
    ("phase", "active"), [(Phase.SWITCH, BLUE), (Phase.GUARD, BLUE), (Phase.UNSTAGE, BLUE)]
)
async def test_a_deploy_whose_staging_worker_is_not_needed_any_more_ends(
    tmp_path: Path, phase: Phase, active: SlotName
) -> None:
    async with left(tmp_path) as it:
        await it.versions(("v1", BLUE))
        await it.deploy(phase)
        assert (await it.interrupted(active))[1] is None
        assert (await it.ended()).phase == "ended"


async def test_recovering_twice_changes_nothing_more(tmp_path: Path) -> None:
    async with left(tmp_path) as it:
        await it.versions(("v1", BLUE))
        await it.deploy(Phase.SWITCH)
        await it.recover(GREEN)
        once = (await it.ended(), await it.stack())
        await it.recover(GREEN)
        assert (await it.ended(), await it.stack()) == once


async def test_without_a_file_the_settings_say_where_to_begin(tmp_path: Path) -> None:
    async with left(tmp_path) as it:
        state = await read_state(it.settings, StateFile(tmp_path / "none.json"), it.database)
        assert (state.active_port, state.staging_port) == (PORT[BLUE], PORT[GREEN])
