"""Checks of the fleet's etcd: that each endpoint is reached, of one cluster, and sound.

3.5.0 to 3.5.2 can lose or contradict what was committed, so a fleet is refused on them. The last
releases before those in `_SOUND` have faults that were mended since.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator

from atlas_supervisor.config import Settings
from atlas_supervisor.doctor.finding import Finding, fail, ok, warn
from atlas_supervisor.fleet.engine import EngineError
from atlas_supervisor.fleet.etcd import engine_of
from atlas_supervisor.fleet.etcd_messages import Status

_CORRUPTING = {(3, 5, 0), (3, 5, 1), (3, 5, 2)}
_SOUND = {(3, 5): 33, (3, 6): 14, (3, 7): 1}
"""The patch level from which each line has no known fault that concerns a fleet."""
_UPGRADE = "Upgrade etcd, one member after the other, to 3.6.14 or newer (3.5.33 on the way)."


def engine(settings: Settings) -> Iterator[Finding]:
    """Yield what the fleet's engine is like; nothing without a fleet."""
    if not settings.fleet_etcd_endpoints:
        return
    try:
        found, refusal = asyncio.run(_looked(settings))
    except EngineError as error:
        yield fail("engine", str(error), "Correct the FLEET_ETCD_… settings.")
        return
    for endpoint, status in found.items():
        if isinstance(status, EngineError):
            yield warn("engine", f"{endpoint}: {status}", "Until then this machine goes on alone.")
        else:
            yield version(endpoint, status.version)
    clusters = {each.header.cluster_id for each in found.values() if isinstance(each, Status)}
    if len(clusters) > 1:
        message = "the endpoints are members of different clusters"
        yield fail("engine", message, "Correct FLEET_ETCD_ENDPOINTS: all must be of one cluster.")
    if clusters and refusal is not None:
        mend = (
            f"Give its user read and write permission on the prefix /atlas/{settings.fleet_name}/."
        )
        yield fail("engine", f"the fleet's keys can't be read: {refusal}", mend)


async def _looked(
    settings: Settings,
) -> tuple[dict[str, Status | EngineError], EngineError | None]:
    """Return each endpoint's answer, and why the fleet's keys can't be read."""
    async with engine_of(settings) as opened:
        members = await opened.members()
        try:
            await opened.read("kill")
        except EngineError as error:
            return members, error
        return members, None


def version(endpoint: str, text: str) -> Finding:
    """Judge the version of one member."""
    message = f"{endpoint}: etcd {text}"
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", text)
    if found is None:
        return warn("engine", f"{message}, which is no version", _UPGRADE)
    major, minor, patch = map(int, found.groups())
    if (major, minor, patch) in _CORRUPTING:
        return fail("engine", f"{message}, which can corrupt its data", _UPGRADE)
    if (major, minor) < min(_SOUND):
        return warn("engine", f"{message}, a line that gets no more corrections", _UPGRADE)
    sound = _SOUND.get((major, minor), 0)
    if patch < sound:
        better = f"{major}.{minor}.{sound}"
        mend = f"Upgrade etcd, one member after the other, to {better} or newer."
        return warn("engine", f"{message}; faults were corrected up to {better}", mend)
    return ok("engine", message)
