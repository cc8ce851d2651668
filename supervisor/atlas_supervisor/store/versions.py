"""The versions that had the traffic, the active one last.

A flip changes them in the transaction of its transition, together with the copy of the state file:
the journal, the versions and the copy never contradict each other.
"""

from __future__ import annotations

from pathlib import Path

from atlas_supervisor.model.release import Release, Version, VersionChange
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.store.statements import Statement, Statements
from atlas_supervisor.system.clock import now

_VERSIONS_KEPT = 50


class VersionStore:
    """What ran when. A rollback goes back to the version before the last."""

    def __init__(self, statements: Statements) -> None:
        self._statements = statements

    async def push(self, slot: SlotName, release: Release) -> None:
        """Note that the release has the traffic from now on."""
        await self._statements.write(*versions_changed(VersionChange(Version(slot, release))))

    async def all(self) -> list[Version]:
        """Return the versions that had the traffic, the active one first."""
        return [
            Version(
                SlotName(row["slot"]),
                Release(name=row["release"], path=Path(row["directory"]), version=row["version"]),
            )
            for row in await self._statements.read("versions")
        ]


def versions_changed(change: VersionChange) -> list[Statement]:
    """Return the statements that change the versions."""
    if change.added is None:
        return [("pop_version", {})]
    slot, release = change.added
    row = {"ts": now().isoformat(), "slot": slot, "release": release.name}
    row |= {"directory": str(release.path), "version": release.version}
    return [("push_version", row), ("trim_versions", {"kept": _VERSIONS_KEPT})]
