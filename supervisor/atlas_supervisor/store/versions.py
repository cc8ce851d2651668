"""The versions that had the traffic, and the copy of the state file that belongs to them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from atlas_supervisor.model.release import Release
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.model.state import DeployState
from atlas_supervisor.store.statements import Statement, Statements
from atlas_supervisor.system.clock import now

_VERSIONS_KEPT = 50


class VersionRow(NamedTuple):
    """A version that had the traffic, and the slot that it ran in."""

    slot: SlotName
    release: Release


class VersionStore(Statements):
    """What ran when. A rollback goes back to what stands before the last."""

    async def push_version(
        self, slot: SlotName, release: Release, state: DeployState | None = None
    ) -> None:
        """Note that the release has the traffic from now on, and the state that says so."""
        row = {"ts": now().isoformat(), "slot": slot, "release": release.name}
        row |= {"directory": str(release.path), "version": release.version}
        await self._write(
            ("push_version", row), ("trim_versions", {"kept": _VERSIONS_KEPT}), *_saved(state)
        )

    async def pop_version(self, state: DeployState | None = None) -> None:
        """Note that the last version was rolled back, and the state that says so."""
        await self._write(("pop_version", {}), *_saved(state))

    async def versions(self) -> list[VersionRow]:
        """Return the versions that had the traffic, the active one first."""
        return [
            VersionRow(
                SlotName(row["slot"]),
                Release(name=row["release"], path=Path(row["directory"]), version=row["version"]),
            )
            for row in await self._read("versions")
        ]

    async def save_state(self, state: DeployState) -> None:
        """Keep a copy of the state file's content."""
        await self._write(*_saved(state))

    async def last_state(self) -> DeployState | None:
        """Return that copy."""
        rows = await self._read("last_state")
        return DeployState.model_validate_json(rows[0]["state"]) if rows else None


def _saved(state: DeployState | None) -> list[Statement]:
    return [("save_state", {"state": state.model_dump_json()})] if state else []
