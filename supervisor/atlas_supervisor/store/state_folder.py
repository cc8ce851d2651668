"""The state folder: made, or refused if another user could have planted what is in it.

The daemon acts on these files: the state file names the program that is run, and the token is all
that a command needs. A planted link or a hard link would have it truncate another file, a FIFO hang
the start. So each file that it opens is looked at first, before anything is opened or created.

Root is trusted, since it may do everything, and so is the daemon's own group: a member may read the
token anyway (docs/security.md).
"""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

from atlas_supervisor.errors import StartRefusedError
from atlas_supervisor.store.audit import HEAD_FILE
from atlas_supervisor.system.account import Account, make_folder
from atlas_supervisor.system.lock import LOCK_FILE
from atlas_supervisor.system.socket_store import KEEPER_SOCKET
from atlas_worker.contract import (
    BUNDLED_WORKER_DIRECTORY,
    RINGS_DIRECTORY,
    STATE_FILE,
    SUPERVISOR_SOCKET,
)

DATABASE_FILE = "atlas.db"
LOGS_DIRECTORY = "logs"
_FOLDER_MODE = 0o750
_ACCESS_LIST = "system.posix_acl_access"

_WRITTEN = (LOCK_FILE, *(f"{DATABASE_FILE}{suffix}" for suffix in ("", "-wal", "-shm", "-journal")))
"""Files that are written in place, so that they must have no other name."""
_REPLACED = (STATE_FILE, HEAD_FILE)
"""Files that are replaced as a whole; what is no file is set aside or ignored."""


def prepare(folder: Path, token_file: Path | None = None, account: Account | None = None) -> None:
    """Make the folder and that of the logs. Raises StartRefusedError, also for what is planted.

    Workers of another account read the state file, by their group.
    """
    try:
        folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        names = {path.name for path in folder.iterdir()}
        refuse_planted(folder, token_file, account)
        (folder / LOGS_DIRECTORY).mkdir(mode=_FOLDER_MODE, exist_ok=True)
        if account is not None:
            os.chown(folder, -1, account.gid)
            make_folder(folder / BUNDLED_WORKER_DIRECTORY, account)
        if not names or names & {LOCK_FILE, DATABASE_FILE}:  # else other programs use it, too
            folder.chmod(_FOLDER_MODE)
    except OSError as error:
        raise StartRefusedError(f"STATE_DIR={folder} can't be used: {error}") from error


def refuse_planted(
    folder: Path, token_file: Path | None = None, account: Account | None = None
) -> None:
    """Raise StartRefusedError if another user could have planted a file, or could change one.

    The folder of the rings is the account's, where workers have one; each ring is looked at.
    """
    faults = list(_faults(folder, token_file, account))
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise StartRefusedError(f"STATE_DIR={folder} can't be used: {faults[0]}{more}")


def insecure_parents(folder: Path) -> list[str]:
    """Return why the folder could be exchanged as a whole, one line for each folder above it."""
    found = []
    for parent in folder.resolve().parents:
        try:
            why = _not_ours(parent.stat()) or _writable(parent, parent.stat(), sticky=True)
        except OSError:
            continue
        if why:
            found.append(f"STATE_DIR={folder} could be exchanged: the folder {parent} {why[0]}")
    return found


def _faults(folder: Path, token_file: Path | None, account: Account | None) -> Iterator[str]:
    """Yield a line for each fault: what it is, and what to do."""
    if folder.is_symlink():  # ours may lead to another place
        if why := _not_ours(folder.lstat()):
            yield f"the link {why[0]}; remove it"
        folder = folder.resolve()
    logs, rings = folder / LOGS_DIRECTORY, folder / RINGS_DIRECTORY
    for path in (folder, logs):
        yield from _fault(path)
    if account is None or not rings.is_dir() or rings.lstat().st_uid != account.uid:
        yield from _fault(rings)
    for name in _WRITTEN:
        yield from _fault(folder / name, is_file=True, written=True)
    for name in _REPLACED:
        yield from _fault(folder / name)
    yield from _fault(folder / SUPERVISOR_SOCKET, socket=True)
    yield from _fault(folder / KEEPER_SOCKET, socket=True)
    if token_file is not None and token_file.parent == folder:
        yield from _fault(token_file, is_file=True)
    if logs.is_dir() and not logs.is_symlink():
        for path in sorted(logs.iterdir()):
            yield from _fault(path, is_file=True, written=not path.suffix[1:].isdigit())


def _fault(
    path: Path, *, is_file: bool = False, written: bool = False, socket: bool = False
) -> Iterator[str]:
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        yield f"{path}: {error.strerror}"
        return
    if stat.S_ISLNK(found.st_mode):
        yield f"{path} is a link, which could lead anywhere; put what it leads to in its place"
    elif why := _not_ours(found) or (None if socket else _writable(path, found)):
        yield f"{path} {why[0]}; {why[1].format(path)}"
    elif is_file and not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        yield f"{path}: it is not a regular file; remove it"
    elif written and stat.S_ISREG(found.st_mode) and found.st_nlink > 1:
        yield (
            f"{path} is a file that has another name elsewhere (a hard link), and would be written "
            f"there too; replace it by a copy: cp -p '{path}' '{path}.copy' && "
            f"mv '{path}.copy' '{path}'"
        )


def _not_ours(found: os.stat_result) -> tuple[str, str] | None:
    """Return why a file is another user's, and what to do."""
    own = os.geteuid()
    if found.st_uid in {own, 0}:
        return None
    owner, me = _user(found.st_uid), _user(own)
    remedy = f"run it as {owner}, or, if you trust what is there: chown -R {own} '{{}}'"
    return f"belongs to {owner}, and this program runs as {me}", remedy


def _writable(path: Path, found: os.stat_result, *, sticky: bool = False) -> tuple[str, str] | None:
    """Return why other users may write it, and what to do. `sticky`: a sticky folder is none."""
    if sticky and found.st_mode & stat.S_ISVTX:
        return None
    if found.st_mode & stat.S_IWOTH:
        return "is writable by every user", "chmod o-w '{}'"
    if not found.st_mode & stat.S_IWGRP:
        return None
    if found.st_gid != os.getegid():
        return f"is writable by the group {found.st_gid}, which is not ours", "chmod g-w '{}'"
    try:
        os.getxattr(path, _ACCESS_LIST)
    except OSError:  # it has no list: the bits are those of its group alone
        return None
    return "is writable by those in its access list", "setfacl -b '{}' && chmod g-w '{}'"


def _user(uid: int) -> str:
    try:
        return f"uid {uid} ({pwd.getpwuid(uid).pw_name})"
    except KeyError:
        return f"uid {uid}"
