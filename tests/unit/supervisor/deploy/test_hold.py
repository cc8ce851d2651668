"""A hold begins as a whole or not at all, and ends in every failure."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import anyio
import pytest
from anyio.abc import TaskGroup

from atlas_supervisor.config import Settings
from atlas_supervisor.deploy import hold as holding
from atlas_supervisor.deploy.hold import Holds
from atlas_supervisor.deploy.recorder import Runs
from atlas_supervisor.errors import RefusedError
from atlas_supervisor.model.actor import Actor
from atlas_supervisor.model.socket_passing import SocketPassing
from atlas_supervisor.model.state import Hold
from atlas_supervisor.store.database import Database, open_database
from atlas_supervisor.store.state_keeper import StateFile, StateKeeper
from atlas_supervisor.system.clock import now
from atlas_supervisor.traffic import Plane
from tests.harness import eventually
from tests.unit.supervisor.store.support import a_state
from tests.unit.supervisor.traffic.support import opened

OPERATOR = Actor(name="operator", origin="unix")


@dataclass
class Held:
    """A hold's parts, on real sockets and files."""

    plane: Plane
    state: StateKeeper
    database: Database
    settings: Settings
    tasks: TaskGroup
    runs: Runs = field(default_factory=Runs)
    kept: list[list[str]] = field(default_factory=list)
    """The names of what was kept, each time."""

    def holds(self) -> Holds:
        return Holds(
            settings=self.settings,
            plane=self.plane,
            state=self.state,
            runs=self.runs,
            audit=self.database.audit,
            tasks=self.tasks,
            keep=self._keep,
        )

    async def _keep(self) -> None:
        assert not self.plane.held
        self.kept.append(list(self.plane.sockets()))

    @property
    def is_quiet(self) -> bool:
        """Whether nothing says that anything is held."""
        state = self.state.state
        return not (self.plane.held or state.hold or state.announce_close)

    async def audited(self) -> list[tuple[str, str | None]]:
        entries = await self.database.trail.entries(
            limit=10, before=None, action="hold", subject=None
        )
        return [(each.outcome, each.detail.get("reason")) for each in reversed(entries)]


@asynccontextmanager
async def parts(folder: Path, *, public: bool = True) -> AsyncIterator[Held]:
    async with (
        opened(SocketPassing.ACTIVATION) as (plane, at),
        open_database(folder / "atlas.db") as (database, _),
        anyio.create_task_group() as tasks,
    ):
        state = StateKeeper(StateFile(folder / "deploy_state.json"), database.state, a_state())
        await state.change()
        port = at.public_port if public else 0
        settings = Settings(base_dir=folder, state_dir=folder, public_port=port)
        yield Held(plane, state, database, settings, tasks)
        tasks.cancel_scope.cancel()


def failing(times: int, call: Callable[[], None]) -> Callable[[], None]:
    """Return a call that the kernel refuses so many times."""
    left = [OSError(12, "Cannot allocate memory")] * times

    def fails() -> None:
        if left:
            raise left.pop()
        call()

    return fails


async def test_it_begins_kept_and_written_and_ends_when_released(tmp_path: Path) -> None:
    async with parts(tmp_path) as it:
        holds = it.holds()
        begun = await holds.hold(30, OPERATOR)
        assert it.plane.held
        assert it.kept == [[*it.plane.sockets()]]
        assert (begun.by, begun.until - begun.since) == ("operator", timedelta(seconds=30))
        state = it.state.state
        assert state.hold == Hold(**begun.model_dump(exclude={"waiting"}))
        assert state.announce_close
        for refused in (holds.hold(5, OPERATOR), holds.release(OPERATOR, "another")):
            with pytest.raises(RefusedError) as error:
                await refused
            assert error.value.status == 409
        ended = await holds.release(OPERATOR, begun.hold_id)
        assert ended.until < begun.until
        await eventually(lambda: it.is_quiet)
        assert await it.audited() == [("held", None), ("released", "released by operator")]
        with pytest.raises(RefusedError, match="no such hold"):
            await holds.release(OPERATOR)


async def test_it_ends_by_itself_and_never_the_next_one(tmp_path: Path) -> None:
    async with parts(tmp_path) as it:
        holds = it.holds()
        await holds.hold(0.05, OPERATOR)
        await eventually(lambda: not it.plane.held)
        await holds.hold(0.3, OPERATOR)
        await holds.release(OPERATOR)
        third = await holds.hold(60, OPERATOR)
        await anyio.sleep(0.4)  # the second one's time is over
        assert it.plane.held
        assert it.state.state.announce_close
        assert it.state.state.hold == Hold(**third.model_dump(exclude={"waiting"}))
        assert [why for _, why in await it.audited() if why] == [
            "its time was over",
            "released by operator",
        ]


async def test_a_hold_that_can_not_be_written_or_steered_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with parts(tmp_path) as it:
        holds = it.holds()
        in_the_way = tmp_path / ".deploy_state.json.new"
        in_the_way.mkdir()
        with pytest.raises(RefusedError, match="nothing is held") as error:
            await holds.hold(30, OPERATOR)
        assert error.value.code == "hold_failed"
        in_the_way.rmdir()
        monkeypatch.setattr(it.plane, "hold", failing(1, it.plane.hold))
        with pytest.raises(RefusedError, match="Cannot allocate memory"):
            await holds.hold(30, OPERATOR)
        await eventually(lambda: it.is_quiet)
        await holds.hold(30, OPERATOR)
        assert it.plane.held


async def test_a_release_that_fails_hands_on_and_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holding, "_RETRY_SECONDS", 0.02)
    async with parts(tmp_path) as it:
        holds = it.holds()
        await holds.hold(30, OPERATOR)
        monkeypatch.setattr(it.plane, "release", failing(3, it.plane.release))
        in_the_way = tmp_path / ".deploy_state.json.new"
        in_the_way.mkdir()
        await holds.release(OPERATOR)
        assert it.plane.held
        in_the_way.rmdir()
        await eventually(lambda: it.is_quiet)


async def test_a_stop_ends_it_and_lets_none_begin(tmp_path: Path) -> None:
    async with parts(tmp_path) as it:
        holds = it.holds()
        await holds.hold(30, OPERATOR)
        await holds.stop()
        assert not it.plane.held
        with pytest.raises(RefusedError, match="stopping"):
            await holds.hold(30, OPERATOR)
        assert (await it.audited())[-1] == ("released", "the supervisor stops")


async def test_without_a_public_port_it_is_refused(tmp_path: Path) -> None:
    async with parts(tmp_path, public=False) as it:
        with pytest.raises(RefusedError, match="PUBLIC_PORT=0") as error:
            await it.holds().hold(30, OPERATOR)
        assert (error.value.status, error.value.code) == (409, "nothing_to_hold")


@pytest.mark.parametrize("seconds", [60.0, -1.0])
async def test_after_a_reload_it_goes_on_to_its_end(tmp_path: Path, seconds: float) -> None:
    async with parts(tmp_path) as it:
        until = now() + timedelta(seconds=seconds)
        before = Hold(hold_id="h1", since=now(), until=until, by="operator")
        await it.state.change(hold=before, announce_close=True)
        it.plane.hold()
        holds = it.holds()
        await holds.take_in()
        if seconds > 0:
            assert it.plane.held
            await holds.release(OPERATOR, "h1")
        await eventually(lambda: it.is_quiet)


@pytest.mark.parametrize("hold_id", ["h1", None])
async def test_the_successor_of_a_killed_daemon_ends_it(
    tmp_path: Path, hold_id: str | None
) -> None:
    async with parts(tmp_path) as it:
        if hold_id:
            before = Hold(hold_id=hold_id, since=now(), until=now(), by="operator")
            await it.state.change(hold=before)
        await it.state.change(announce_close=True)
        holds = it.holds()
        await holds.take_in()
        await eventually(lambda: it.is_quiet)
        ended = [("released", "the supervisor was started again")] if hold_id else []
        assert await it.audited() == ended
