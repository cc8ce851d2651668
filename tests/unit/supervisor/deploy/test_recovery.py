"""What a dead daemon left in file and database, and what the next one makes of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from atlas_supervisor.config import Settings
from atlas_supervisor.deploy.initial_state import read_state
from atlas_supervisor.deploy.machine import Event, Phase
from atlas_supervisor.deploy.recovery import finish_interrupted, resumed
from atlas_supervisor.model.actor import SUPERVISOR
from atlas_supervisor.model.deploy import DeployRecord, Mode
from atlas_supervisor.model.release import Release
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.model.state import DeployState
from atlas_supervisor.store.database import Database, open_database
from atlas_supervisor.store.deploys import UnfinishedDeploy
from atlas_supervisor.store.state_keeper import StateFile
from atlas_supervisor.workers.releases import Releases
from tests.harness import write_release
from tests.unit.supervisor.deploy.memory import World
from tests.unit.supervisor.store.samples import WHEN, a_deploy, a_state, moved

BLUE, GREEN = SlotName.BLUE, SlotName.GREEN
PORT = {BLUE: 8791, GREEN: 8792}
BEFORE_SWITCH = [Phase.PREFLIGHT, Phase.LAUNCH, Phase.SMOKE, Phase.HEALTH]
AFTER_SWITCH = [Phase.GUARD, Phase.WARM, Phase.DRAIN]


@dataclass
class Left:
    """What was left, in a real database."""

    database: Database
    settings: Settings
    folder: Path

    def release(self, name: str) -> Release:
        return Release(name=name, path=self.folder / "releases" / name, version=name)

    async def versions(self, *names: tuple[str, SlotName]) -> None:
        for name, slot in names:
            await self.database.versions.push(slot, self.release(name))

    async def deploy(
        self,
        phase: Phase,
        deploy_id: str = "d1",
        *,
        release: str = "v2",
        source: Phase = Phase.HEALTH,
        event: Event = Event.PASSED,
        rollback: bool = False,
        **changes: Any,
    ) -> DeployRecord:
        record = a_deploy(deploy_id, release=release, version=release)
        await self.database.deploys.begin(record, auto_switch=True, rollback=rollback)
        if phase in {*AFTER_SWITCH, Phase.REVERT}:
            ports = {"active_port": PORT[GREEN], "staging_port": PORT[BLUE], "result": "switched"}
            changes = {**ports, **changes}
        record = DeployRecord(**{**record.model_dump(), "phase": phase.value, **changes})
        await self.database.deploys.write_transition(*moved(record, source=source, event=event))
        return record

    async def recover(self, active: SlotName, **changes: Any) -> tuple[DeployState, Any]:
        ports = {"active_port": PORT[active], "staging_port": PORT[active.other]}
        state = a_state(**ports, **changes)
        return await finish_interrupted(self.database, state, self.settings)

    async def stack(self) -> list[tuple[str | None, SlotName]]:
        """Return the versions, the first one last, as they were pushed."""
        return [
            (row.release.name, row.slot) for row in reversed(await self.database.versions.all())
        ]

    async def audited(self) -> list[tuple[str, str]]:
        """Return action and outcome of every entry, in order."""
        entries = await self.database.trail.entries(
            limit=100, before=None, action=None, subject=None
        )
        return [(each.action, each.outcome) for each in reversed(entries)]

    async def ended(self, deploy_id: str = "d1") -> DeployRecord:
        record = await self.database.deploys.find(deploy_id)
        assert record is not None
        assert record.phase == "ended"
        assert record.ended_ts is not None
        assert record.reason
        return record


@asynccontextmanager
async def left(folder: Path, **changes: Any) -> AsyncIterator[Left]:
    for name in ("v1", "v2"):
        write_release(folder / "releases" / name, name)
    settings = Settings(
        base_dir=folder,
        **{
            "active_port": PORT[BLUE],
            "staging_port": PORT[GREEN],
            "releases_dir": folder / "releases",
            "deploy_mode": Mode.BLUEGREEN,
            **changes,
        },
    )
    async with open_database(folder / "atlas.db") as (database, _):
        yield Left(database, settings, folder)


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
                    SUPERVISOR, "rollback", "done", subject=record.deploy_id
                )
                await it.database.audit.write(SUPERVISOR, "mode", "single")
            await it.recover(BLUE, mode=mode)
            assert await it.audited() == [
                *(("rollback", "done"), ("mode", "single"), ("deploy", "failed")),
            ]


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


async def test_a_mode_that_the_settings_overrule_is_audited_once(tmp_path: Path) -> None:
    async with left(tmp_path, deploy_mode=Mode.SINGLE) as it:
        file = StateFile(tmp_path / "deploy_state.json")
        file.write(a_state())
        file.write(await read_state(it.settings, file, it.database))
        assert await it.audited() == [("mode", "single")]
        assert (await read_state(it.settings, file, it.database)).mode is Mode.SINGLE
        assert await it.audited() == [("mode", "single")]


async def test_a_waiting_release_goes_through_its_gates_again(tmp_path: Path) -> None:
    async with left(tmp_path) as it:
        record = await it.deploy(Phase.AWAITING_SWITCH, result="awaiting_switch")
        releases = Releases(directory=tmp_path, releases_dir=tmp_path / "releases")
        waiting = UnfinishedDeploy(record, auto_switch=False)
        run = await resumed(it.database, waiting, releases, effects=World(), transitions=World())
        assert run is not None
        assert (run.phase, run.record.result, run.release.name) == (Phase.LAUNCH, None, "v2")
        assert not run.settled.is_set()


async def test_a_waiting_release_that_is_gone_fails_its_deploy(tmp_path: Path) -> None:
    async with left(tmp_path) as it:
        record = await it.deploy(Phase.AWAITING_SWITCH, result="awaiting_switch")
        releases = Releases(directory=tmp_path, releases_dir=tmp_path / "elsewhere")
        waiting = UnfinishedDeploy(record, auto_switch=False)
        assert (
            await resumed(it.database, waiting, releases, effects=World(), transitions=World())
            is None
        )
        ended = await it.ended()
        assert ended.result == "failed"
        assert "no release 'v2'" in (ended.reason or "")


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
