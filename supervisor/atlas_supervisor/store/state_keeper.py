"""The state file, `deploy_state.json`, and the state in memory that the daemon acts on.

The file is replaced as a whole and durably: workers and people read it without a lock and never see
half of it. The state in memory is always the last one that reached the disk; if a write fails,
nothing has changed.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import structlog
from pydantic import ValidationError

from atlas_supervisor.model.state import SCHEMA_VERSION, DeployState
from atlas_supervisor.store.statements import Statement, Statements, StoreError, Timed, untimed
from atlas_supervisor.system.clock import Stopwatch, now
from atlas_supervisor.system.failpoints import seam
from atlas_supervisor.system.files import read_regular
from atlas_supervisor.system.threads import in_thread
from atlas_worker.contract import STATE_BYTES_LIMIT

log = structlog.get_logger(__name__)

_MODE = 0o640
_WATCH_SECONDS = 0.25
_REPORT_SECONDS = 60.0  # a program that does it again and again must not fill log and audit trail

_Identity = tuple[int, int, int]
"""Inode, size and time of the last change, which no program can set."""


def replace(path: Path, content: str, *, shared: bool = False) -> None:
    """Give the file this content: written beside it, fsync, rename. Blocks on the disk.

    `shared`: those that may enter the folder by its group may read it.

    Raises OSError, and then the file is as it was. That the new one stays, should the machine
    die now, takes an fsync of the folder besides.
    """
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)  # left by a crash; or not a regular file: never opened
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123  # a descriptor
            os.fchmod(file.fileno(), _MODE)  # independent of the umask
            if shared and os.geteuid() == 0:
                os.fchown(file.fileno(), -1, path.parent.stat().st_gid)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


@seam("state-folder-sync")
def sync_folder(folder: Path) -> None:
    """Let files stay that were renamed in it, should the machine die now. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _content(state: DeployState) -> str:
    return json.dumps(state.model_dump(mode="json"), indent=2) + "\n"


def _difference(found: bytes, state: DeployState) -> str:
    """Return the names of the fields that differ; a stranger's values are not shown."""
    try:
        other = json.loads(found)
    except (ValueError, RecursionError):
        other = None
    if not isinstance(other, dict):
        return "it to something else"
    own = state.model_dump(mode="json")
    names = [name for name in own if other.get(name) != own[name]]
    return ", ".join(names) or "its text"


class UnreadableStateError(Exception):
    """The file is there and can't be used; the text says why."""


class StateFile:
    """The state file at `path`. Its calls block on the disk; run them in a thread."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> DeployState | None:
        """Return the file's content, or None if there is no file.

        Raises UnreadableStateError.
        """
        try:
            content = read_regular(self.path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UnreadableStateError(f"can't be read: {error.strerror}") from error
        if not content.strip():
            raise UnreadableStateError("is empty")
        try:
            state = DeployState.model_validate_json(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the whole"
            raise UnreadableStateError(f"is no valid state: {where}: {first['msg']}") from error
        if state.schema_version > SCHEMA_VERSION:
            raise UnreadableStateError(
                f"was written by a newer version (schema {state.schema_version}, "
                f"this one knows {SCHEMA_VERSION})"
            )
        return state

    @seam("state-file")
    def write(self, state: DeployState) -> None:
        """Replace the file's content durably.

        Raises OSError; the file then holds what it held before, or, if the very last step
        failed, what was to be written.
        """
        content = _content(state)
        if len(content) > STATE_BYTES_LIMIT:
            raise OSError(
                errno.EFBIG, f"more than {STATE_BYTES_LIMIT} bytes, which no worker reads"
            )
        replace(self.path, content, shared=True)
        sync_folder(self.path.parent)

    def set_aside(self, stamp: str) -> Path:
        """Rename the file out of the way, keeping it for a person to look at."""
        aside = self.path.with_name(f"{self.path.name}.unreadable-{stamp}")
        self.path.rename(aside)
        sync_folder(self.path.parent)
        return aside


class StateCopy:
    """The copy of the state in the database, from which a damaged file is rebuilt."""

    def __init__(self, statements: Statements) -> None:
        self._statements = statements

    async def save(self, state: DeployState) -> None:
        """Replace the copy. Raises StoreError."""
        await self._statements.write(state_saved(state))

    async def load(self) -> DeployState | None:
        """Return the copy; None if there is none that can be used. Raises StoreError."""
        rows = await self._statements.read("last_state")
        try:
            return DeployState.model_validate_json(rows[0]["state"]) if rows else None
        except ValidationError as error:
            log.error("state_copy_unreadable", why=str(error))
            return None


def state_saved(state: DeployState) -> Statement:
    """Return the statement that replaces the copy."""
    return "save_state", {"state": state.model_dump_json()}


class StateKeeper:
    """The one writer of the state file. What another program writes there is undone."""

    def __init__(
        self, file: StateFile, copy: StateCopy, state: DeployState, timed: Timed = untimed
    ) -> None:
        self._file = file
        self._copy = copy
        self._state = state
        self._timed = timed
        self._changing = anyio.Lock()
        self._seen: _Identity | None = None
        """Of the file that was last found to have the state."""
        self._copy_is_late = False

    @property
    def state(self) -> DeployState:
        """The state as it stands on the disk."""
        return self._state

    @property
    def busy(self) -> bool:
        """Whether the file is written at this moment."""
        return self._changing.locked()

    async def change(self, **changes: Any) -> DeployState:
        """Change the state durably and return it. Raises OSError, and then nothing changed."""
        with anyio.CancelScope(shield=True):
            async with self._changing:
                before = self._state
                after = before.model_copy(update={**changes, "generation": before.generation + 1})
                watch = Stopwatch()
                try:
                    await in_thread(self._file.write, after)
                except OSError:
                    self._timed(watch.seconds, False)
                    await self._restore(before)
                    raise
                self._timed(watch.seconds, True)
                self._state = after
        return after

    async def _restore(self, before: DeployState) -> None:
        """Put the old content back if the new one is in place but could not be made durable."""
        try:
            if await in_thread(self._file.read) != before:
                await in_thread(self._file.write, before)
        except (OSError, UnreadableStateError) as error:
            log.critical("state_file_uncertain", why=str(error))

    async def watch(self, audit: Callable[..., Awaitable[None]]) -> None:
        """Undo changes that another program makes to the file, until cancelled.

        Also copy the state to the database, where that has failed.
        """
        reported: Stopwatch | None = None
        left_out = 0
        while True:
            await anyio.sleep(_WATCH_SECONDS)
            if self._copy_is_late:
                await self.copy_to_database()
            try:
                why = await self.put_back()
            except OSError as error:
                why = f"it can't be put back: {error.strerror}"
            if why is None:
                continue
            if reported is not None and reported.seconds < _REPORT_SECONDS:
                left_out += 1
                continue
            log.error("state_file_changed", why=why, left_out=left_out)
            await audit(reason=why, left_out=left_out)
            reported, left_out = Stopwatch(), 0

    async def put_back(self) -> str | None:
        """Write the state again if the file has another content; return the difference in words.

        Raises OSError if that is not possible.
        """
        if self._seen is not None and await in_thread(self._identity) == self._seen:
            return None
        async with self._changing:
            return await in_thread(self._put_back)

    def _put_back(self) -> str | None:
        identity = self._identity()
        try:
            found = read_regular(self._file.path)
        except OSError as error:
            found, why = None, f"it can't be read: {error.strerror}"
        if found == _content(self._state).encode():
            self._seen = identity
            return None
        if found is not None:
            why = f"another program has changed {_difference(found, self._state)}"
        if self._file.path.is_dir():
            self._file.set_aside(now().strftime("%Y%m%dT%H%M%S%fZ"))
        self._file.write(self._state)
        return why

    def _identity(self) -> _Identity | None:
        try:
            found = self._file.path.lstat()
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_ctime_ns

    async def copy_to_database(self) -> None:
        """Keep a copy where the file can be rebuilt from; if that fails, `watch` tries it again."""
        try:
            await self._copy.save(self._state)
        except StoreError as error:
            if not self._copy_is_late:
                log.error("state_copy_failed", why=str(error))
            self._copy_is_late = True
        else:
            self._copy_is_late = False
