"""The versions that had the traffic, the active one last."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from atlas_supervisor.model.release import Release
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.model.state import DeployState
from atlas_supervisor.store.state_keeper import state_saved
from atlas_supervisor.store.statements import Statements
from atlas_supervisor.system.clock import now

_VERSIONS_KEPT = 50


class VersionRow(NamedTuple):
    """A version that had the traffic, and the slot that it ran in."""

    slot: SlotName
    release: Release


class VersionStore:
    """What ran when. A rollback goes back to what stands before the last."""

    def __init__(self, statements: Statements) -> None:
        self._statements = statements

    async def push(
        self, slot: SlotName, release: Release, state: DeployState | None = None
    ) -> None:
        """Note that the release has the traffic from now on, and the state that says so."""
        row = {"ts": now().isoformat(), "slot": slot, "release": release.name}
        row |= {"directory": str(release.path), "version": release.version}
        await self._statements.write(
            ("push_version", row),
            ("trim_versions", {"kept": _VERSIONS_KEPT}),
            *([state_saved(state)] if state else []),
        )

    async def pop(self, state: DeployState | None = None) -> None:
        """Note that the last version was rolled back, and the state that says so."""
        await self._statements.write(("pop_version", {}), *([state_saved(state)] if state else []))

    async def all(self) -> list[VersionRow]:
        """Return the versions that had the traffic, the active one first."""
        return [
            VersionRow(
                SlotName(row["slot"]),
                Release(name=row["release"], path=Path(row["directory"]), version=row["version"]),
            )
            for row in await self._statements.read("versions")
        ]
