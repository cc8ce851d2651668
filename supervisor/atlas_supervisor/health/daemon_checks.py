"""Checks the daemon itself: its database, its disk, and whether steering matches the state file.

None of the checks raises for what it finds: an error is the result.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import anyio

from atlas_supervisor.model.health import Check, CheckStatus
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.model.state import DeployState
from atlas_supervisor.store.database import Database
from atlas_supervisor.store.state_keeper import StateFile, StateKeeper, UnreadableStateError
from atlas_supervisor.store.statements import StoreError
from atlas_supervisor.system.clock import Stopwatch
from atlas_supervisor.system.threads import in_thread
from atlas_supervisor.traffic import Plane

MIB = 1024 * 1024
LITTLE_FREE = 256 * MIB
"""Bytes free in `STATE_DIR`, below which it warns."""
TOO_LITTLE_FREE = 64 * MIB
"""Bytes free, below which it fails: a switch must be written down, and logs go on growing."""
FEW_FILES = 100
"""Files that can still be created, below which it fails: each state file write creates one."""

SWITCH_SECONDS = 1.0
"""In a switch, steering runs ahead of the state file; a difference for so long is no fault."""


async def database(keeper: StateKeeper, store: Database) -> Check:
    """Write the copy of the state into the database, and read it back.

    Writing the copy is always right: this needs no table of its own and repairs a failed copy.
    """
    watch = Stopwatch()
    try:
        await store.state.save(keeper.state)
        read = await store.state.load()
    except StoreError as error:
        return Check(status=CheckStatus.FAIL, unit="ms", message=str(error))
    if read is None:
        message = "missing or unreadable read-back: what was written is not there"
        return Check(status=CheckStatus.FAIL, unit="ms", message=message)
    if not store.is_in_place():
        message = "atlas.db was removed or replaced; what is written is lost with the next start"
        return Check(status=CheckStatus.FAIL, unit="ms", message=message)
    if (lost := await in_thread(store.look_for_lost)) is not None:
        return Check(
            status=CheckStatus.WARN, value=watch.milliseconds, unit="ms", message=history_lost(lost)
        )
    message = "write and read-back OK"
    return Check(status=CheckStatus.PASS, value=watch.milliseconds, unit="ms", message=message)


def history_lost(lost: Path) -> str:
    """Return the message about a database that was set aside."""
    return (
        "atlas.db was damaged or gone, and is empty since: what is left of history and audit "
        f"before is in {lost.name}"
    )


async def disk_free(folder: Path) -> Check:
    """Check how much can still be written to the folder's file system."""
    try:
        found = await in_thread(os.statvfs, folder)
    except OSError as error:
        return Check(status=CheckStatus.FAIL, unit="MiB", message=f"STATE_DIR: {error.strerror}")
    free = found.f_bavail * found.f_frsize
    status, message = CheckStatus.PASS, "free in STATE_DIR"
    if free < LITTLE_FREE:
        status = CheckStatus.FAIL if free < TOO_LITTLE_FREE else CheckStatus.WARN
        message = "free in STATE_DIR, which is little: make room"
    if found.f_files and found.f_favail < FEW_FILES:  # some file systems count no files
        status, message = CheckStatus.FAIL, f"STATE_DIR has room for {found.f_favail} files only"
    return Check(status=status, value=float(free // MIB), unit="MiB", message=message)


async def steering(
    plane: Plane,
    file: StateFile,
    ports: dict[SlotName, int],
    watched: Callable[[], Check | None] = lambda: None,
) -> Check:
    """Compare the slot that gets new connections with the state file on the disk.

    `watched` returns what is wrong with where connections really arrive.
    """
    watch = Stopwatch()
    while True:
        try:
            state = await in_thread(file.read)
        except UnreadableStateError as error:
            return _steering(CheckStatus.FAIL, f"the state file {error}")
        status, message = _compared(plane.active, state, ports)
        if status is CheckStatus.PASS and (found := watched()) is not None:
            return found
        if status is CheckStatus.PASS or watch.seconds > SWITCH_SECONDS:
            return _steering(status, message)
        await anyio.sleep(SWITCH_SECONDS / 10)


def _compared(
    active: SlotName, state: DeployState | None, ports: dict[SlotName, int]
) -> tuple[CheckStatus, str]:
    if state is None:
        return CheckStatus.FAIL, "there is no state file"
    if state.active_port != ports[active]:
        message = (
            f"new connections go to {active} (port {ports[active]}), and the state file names port "
            f"{state.active_port}"
        )
        return CheckStatus.FAIL, message
    return CheckStatus.PASS, f"new connections go to {active}, as in the state file"


def _steering(status: CheckStatus, message: str) -> Check:
    return Check(status=status, message=message)
