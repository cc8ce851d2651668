"""Finds what a start would refuse, without starting and without changing anything.

A daemon that reloads runs this first, in a process of the program that is about to replace it: that
program knows best what it refuses, and after the exec it is too late. Ports are no part of it: the
daemon has them open, and passes them on.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing

from pydantic import BaseModel

from atlas_supervisor.api.options import api_options
from atlas_supervisor.api.token import load_or_create_token
from atlas_supervisor.config import Settings
from atlas_supervisor.config.describe import as_text
from atlas_supervisor.config.settings import FIELD_OF_KEY
from atlas_supervisor.errors import StartRefusedError
from atlas_supervisor.fleet.access import check_access
from atlas_supervisor.store import state_folder
from atlas_supervisor.store.migrations import refuse_newer
from atlas_supervisor.system.files import open_regular
from atlas_supervisor.system.program import own_version
from atlas_supervisor.telemetry.logging_setup import OWN_LOG

FIXED = ("PUBLIC_HOST", "PUBLIC_PORT", "ACTIVE_PORT", "STAGING_PORT", "STATE_DIR")
"""What a reload can't change."""


_LINES, _LINE_LENGTH = 12, 500


class CheckReport(BaseModel):
    """What the new program says about a start. Printed as one line of JSON."""

    version: str
    faults: list[str] = []
    shown: dict[str, str] = {}
    """Values that are compared, and named if they differ; none of them is a secret."""
    digests: dict[str, str] = {}
    """Of every setting, by its key: they tell what changes, and not to what."""


def report(settings: Settings) -> CheckReport:
    """Return the report on these settings, which are valid."""
    if faults := list(_faults(settings)):
        return refused(faults)
    return CheckReport(version=own_version(), shown=shown(settings), digests=digests(settings))


def refused(faults: Sequence[str]) -> CheckReport:
    """Return a report of these faults: the first of them, since its reader has a limit."""
    cut = [fault[:_LINE_LENGTH] for fault in faults[:_LINES]]
    return CheckReport(version=own_version(), faults=cut)


def shown(settings: Settings) -> dict[str, str]:
    """Return the values on which both daemons must agree, and the addresses that are bound anew."""
    values = {key: as_text(getattr(settings, FIELD_OF_KEY[key])) for key in FIXED}
    return values | {
        "CONTROL_HOST": str(settings.control_host),
        "CONTROL_PORT": str(settings.control_port),
        "FLEET_AGENT_PORT": str(settings.fleet_agent_port),
        "FLEETLOCK_PORT": str(settings.fleetlock_port),
        "WORKER_COMMAND": settings.socket_passing.value,
        "RELAY_PROXY_PROTOCOL": as_text(settings.relay_proxy_protocol),
    }


def digests(settings: Settings) -> dict[str, str]:
    """Return a digest of each setting's value."""
    values = {key: repr(getattr(settings, name)) for key, name in FIELD_OF_KEY.items()}
    return {
        key: hashlib.blake2b(value.encode(), digest_size=8).hexdigest()
        for key, value in values.items()
    }


def refused_changes(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each change that only a restart can make."""
    for key in FIXED:
        if before[key] != after.get(key):
            yield f"{key}={after.get(key)}: a reload can't change it; it is {before[key]}"
    if before["WORKER_COMMAND"] != after.get("WORKER_COMMAND"):
        yield (
            "WORKER_COMMAND: a reload can't change how workers get their sockets (LISTEN_FDS, "
            "{fd} or {port})"
        )
    if before["RELAY_PROXY_PROTOCOL"] != after.get("RELAY_PROXY_PROTOCOL"):
        yield "RELAY_PROXY_PROTOCOL: a reload can't change what running workers expect"


def _faults(settings: Settings) -> Iterator[str]:
    checks: tuple[Callable[[Settings], object], ...] = (
        _state_folder,
        _api,
        check_access,
        _log,
        _database,
    )
    for check in checks:
        try:
            check(settings)
        except StartRefusedError as refused:
            yield str(refused)


def _state_folder(settings: Settings) -> None:
    folder = settings.state_dir
    state_folder.refuse_planted(folder, settings.control_token_file, settings.worker_account)
    if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
        raise StartRefusedError(f"STATE_DIR={folder} can't be used: it is not writable")


def _api(settings: Settings) -> None:
    """Look at the tokens and the certificate; a start would make a token that is not there."""
    missing = False
    for key in ("CONTROL_TOKEN_FILE", "CONTROL_VIEW_TOKEN_FILE"):
        path = getattr(settings, FIELD_OF_KEY[key])
        if path is None:
            continue
        if path.exists():
            load_or_create_token(path, key)
            continue
        missing = True
        if path.parent.is_dir() and not os.access(path.parent, os.W_OK | os.X_OK):
            raise StartRefusedError(
                f"{key}: {path} can't be made in its folder, which this user may not write; name a "
                "file in STATE_DIR"
            )
    if not missing:
        api_options(settings)


def _log(settings: Settings) -> None:
    path = settings.state_dir / state_folder.LOGS_DIRECTORY / OWN_LOG
    try:
        os.close(open_regular(path, os.O_WRONLY | os.O_APPEND))
    except FileNotFoundError:
        return
    except OSError as error:
        raise StartRefusedError(f"the log {path} can't be written: {error.strerror}") from error


def _database(settings: Settings) -> None:
    path = settings.state_dir / state_folder.DATABASE_FILE
    if not path.is_file():
        return
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            ((present,),) = connection.execute("PRAGMA user_version")
    except sqlite3.Error as error:
        raise StartRefusedError(f"{path} can't be read: {error}") from error
    refuse_newer(present, path)
