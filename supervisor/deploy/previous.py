"""What a rollback goes back to when the version before is no longer warm."""

from __future__ import annotations

import anyio

from supervisor.deploy import refusals
from supervisor.model.release import Release
from supervisor.store.database import Database
from supervisor.workers.releases import Releases, UnknownReleaseError


async def previous_release(database: Database, releases: Releases) -> Release:
    """Return what ran before, if it can be launched again. Raises RefusedError."""
    rows = await database.versions()
    if len(rows) < 2:
        raise refusals.nothing_to_roll_back()
    before = rows[1].release
    try:
        found = await anyio.to_thread.run_sync(releases.find, before.name)
    except UnknownReleaseError as error:
        raise refusals.previous_gone(before, str(error)) from error
    if found.name is None and found.version != before.version:
        why = f"{found.path} now holds version {found.version}"
        raise refusals.previous_gone(before, why)
    return found
