"""What a start runs: the release that was deployed, or the next best, by what is recorded."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from atlas_supervisor.config import Settings
from atlas_supervisor.deploy.initial_state import active_release
from atlas_supervisor.deploy.recovery import finish_interrupted, resumed
from atlas_supervisor.deploy.service import launchable
from atlas_supervisor.errors import RefusedError
from atlas_supervisor.model.deploy import Mode
from atlas_supervisor.model.release import Release
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.model.state import ActiveRelease
from atlas_supervisor.store.database import Database, open_database
from atlas_supervisor.store.state_keeper import StateFile, StateKeeper
from atlas_supervisor.workers.releases import Releases
from tests.harness import write_release
from tests.unit.supervisor.store.support import a_deploy, a_state

BLUE, GREEN = SlotName.BLUE, SlotName.GREEN


@dataclass
class Machine:
    """What a daemon finds: folders, a database and a state file."""

    folder: Path
    settings: Settings
    database: Database
    state: StateKeeper

    @property
    def releases(self) -> Releases:
        return Releases.of(self.settings)

    async def switched(self, name: str | None) -> Release:
        """Record that a release has the traffic, as a switch does."""
        release = self.releases.find(name)
        await self.database.versions.push(GREEN, release)
        await self.state.change(active_release=ActiveRelease(**release.record))
        return release

    async def start(self) -> Release:
        return await active_release(self.settings, self.database, self.state, self.releases, BLUE)

    async def recorded(self) -> list[str]:
        """Return the labels of all versions, the active one first."""
        return [each.release.label for each in await self.database.versions.all()]

    @property
    def named(self) -> ActiveRelease | None:
        return self.state.state.active_release


@asynccontextmanager
async def machine(folder: Path, mode: Mode = Mode.BLUEGREEN) -> AsyncIterator[Machine]:
    for name in ("r1", "r2"):
        write_release(folder / "releases" / name, name)
    write_release(folder / "work", "v1")
    settings = Settings(
        base_dir=folder,
        worker_directory=folder / "work",
        releases_dir=folder / "releases",
        deploy_mode=mode,
    )
    async with open_database(folder / "atlas.db") as (database, _):
        keeper = StateKeeper(StateFile(folder / "state.json"), database.state, a_state())
        yield Machine(folder, settings, database, keeper)


def replace(folder: Path, version: str) -> None:
    folder.rename(folder.with_name(f".{folder.name}"))
    write_release(folder, version)


async def test_the_first_start_records_the_worker_directory_with_its_folder(
    tmp_path: Path,
) -> None:
    async with machine(tmp_path) as it:
        started = await it.start()
        assert (started.name, started.path, started.version) == (None, tmp_path / "work", "v1")
        assert it.named == ActiveRelease(**started.record)
        assert [each.release for each in await it.database.versions.all()] == [started]
        assert await it.start() == started
        assert await it.recorded() == ["v1"]


async def test_the_recorded_folder_is_started_whatever_the_settings_name_by_now(
    tmp_path: Path,
) -> None:
    async with machine(tmp_path) as it:
        started = await it.start()
        elsewhere = {"worker_directory": tmp_path / "gone", "releases_dir": None}
        it.settings = it.settings.model_copy(update=elsewhere)
        assert await it.start() == started


async def test_a_record_without_a_folder_is_found_by_its_name_and_gets_one(
    tmp_path: Path,
) -> None:
    async with machine(tmp_path) as it:
        await it.database.versions.push(
            GREEN, Release(name="r1", path=Path("releases/r1"), version="of then")
        )
        await it.state.change(active_release=ActiveRelease(name="r1", version="of then"))
        started = await it.start()
        assert started == it.releases.find("r1")
        assert it.named == ActiveRelease(**started.record)
        assert [each.release for each in await it.database.versions.all()] == [started]


async def test_a_release_that_is_gone_gives_way_to_the_newest_one_before_it(
    tmp_path: Path,
) -> None:
    async with machine(tmp_path) as it:
        for name in (None, "r1", "r2"):
            await it.switched(name)
        (tmp_path / "releases" / "r2").rename(tmp_path / "aside")
        (tmp_path / "releases" / "r1" / "VERSION").write_text("another")
        started = await it.start()
        assert started.version == "v1"
        assert "release r2 is gone" in str(started.problem)
        assert "version v1, an earlier one, was started instead" in str(started.problem)
        assert await it.recorded() == ["v1"]
        assert it.named is not None
        assert it.named.name is None
        (entry,) = await it.database.trail.entries(
            limit=1, before=None, action="release", subject=None
        )
        assert (entry.outcome, entry.detail["version"]) == ("fell_back", "v1")
        assert (await it.start()).problem is None, "it is what is recorded now"


async def test_without_any_version_before_what_is_in_its_place_serves_and_says_so(
    tmp_path: Path,
) -> None:
    """As in a container with a new image and the old state."""
    async with machine(tmp_path) as it:
        recorded = await it.start()
        replace(tmp_path / "work", "v2")
        for _ in range(2):  # until it is deployed
            started = await it.start()
            assert started.version == "v2"
            assert "version v2, which is there now, has passed no gate" in str(started.problem)
            assert it.named == ActiveRelease(**recorded.record)


async def test_if_nothing_is_left_the_recorded_release_is_tried_and_says_that_it_is_gone(
    tmp_path: Path,
) -> None:
    async with machine(tmp_path) as it:
        recorded = await it.start()
        (tmp_path / "work").rename(tmp_path / "aside")
        assert await it.start() == recorded
        assert await it.recorded() == ["v1"]


async def test_without_deploys_a_start_follows_the_settings(tmp_path: Path) -> None:
    async with machine(tmp_path, Mode.SINGLE) as it:
        await it.start()
        replace(tmp_path / "work", "v2")
        started = await it.start()
        assert (started.version, started.problem) == ("v2", None)
        assert await it.recorded() == ["v2", "v1"]


@pytest.mark.parametrize("change", ["version", "folder", "nothing"])
async def test_a_rollback_launches_exactly_what_was_deployed_or_says_why_not(
    tmp_path: Path, change: str
) -> None:
    async with machine(tmp_path) as it:
        before = await it.switched("r1")
        await it.switched("r2")
        if change == "nothing":
            assert (await launchable(it.database, it.releases))[1] == before
            return
        if change == "version":
            (before.path / "VERSION").write_text("another")
        else:
            replace(before.path, "r1")
        with pytest.raises(RefusedError) as refused:
            await launchable(it.database, it.releases)
        expected = {
            "version": f"{before.path} now holds version another",
            "folder": f"its folder {before.path} was replaced by another one",
        }
        assert expected[change] in str(refused.value)


async def test_a_start_does_not_go_back_past_an_irreversible_version(tmp_path: Path) -> None:
    async with machine(tmp_path) as it:
        await it.switched("r1")
        (tmp_path / "releases" / "r2" / "release.toml").write_text("irreversible = true")
        gone = await it.switched("r2")
        shutil.rmtree(gone.path)
        assert (await it.start()).label == "r2"
        assert await it.recorded() == ["r2", "r1"]


async def test_a_switch_that_was_not_noted_is_noted_with_its_folder(tmp_path: Path) -> None:
    """The supervisor ended between the state file and the transition."""
    async with machine(tmp_path) as it:
        await it.switched("r1")
        release = it.releases.find("r2")
        record = a_deploy(release="r2", version="r2", phase="switch")
        await it.database.deploys.begin(record, auto_switch=True, release=release)
        changes: dict[str, Any] = {"active_release": ActiveRelease(**release.record)}
        state = a_state(active_port=record.staging_port, staging_port=record.active_port, **changes)
        _, left = await finish_interrupted(it.database, state, it.settings)
        assert left is not None
        await resumed(it.database, left, it.releases, state, it.settings, lives=None)
        assert (await it.database.versions.all())[0].release == release
