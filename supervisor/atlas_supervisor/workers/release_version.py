"""The version of a release: its `VERSION` file, else git's description, else a name, else a digest.

A look-up that fails is never taken for "there is none": what follows it is used, and the note says
why. Nothing here can be made to wait or to grow without bound by what lies in the folder.
"""

from __future__ import annotations

import hashlib
import os
import re
import resource
import signal
import stat
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from atlas_supervisor.model.release import VersionSource
from atlas_supervisor.system.account import Account
from atlas_supervisor.system.clock import Stopwatch

_FILE = "VERSION"
_FILE_BYTES = 4096
_LINE_END = re.compile(r"\r\n|\r|\n")
_SHOWN_CHARACTERS = 100
_SECONDS = 5.0
"""How long git, or the digest, may take for a deploy."""
_GIT = ("git", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null")
_DESCRIBE = ("--git-dir=.git", "--work-tree=.", "describe", "--tags", "--always")
"""With its folder named, git neither searches above it nor refuses what another user owns."""
_GIT_ENVIRONMENT = {
    "LC_ALL": "C.UTF-8",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_ALLOW_PROTOCOL": "",
}
"""All that git gets besides `PATH`: no variable of ours names another repository or user."""
_GIT_BYTES = 1024**3
"""The memory that it may allocate: a repository can name a file without an end. What it maps, such
as its packs, does not count."""
_DIGEST_FILES = 100_000
_NOT_CODE = frozenset({"__pycache__", ".git"})


class Found(NamedTuple):
    """A version and its source."""

    version: str
    source: VersionSource
    note: str | None = None
    """Why no better source could be used; None if nothing failed."""


class LookupFailedError(Exception):
    """The source is there and gives no version; the text says why."""


def version_of(
    path: Path,
    name: str | None,
    *,
    ignored: frozenset[Path] = frozenset(),
    account: Account | None = None,
) -> Found:
    """Return the version of the release in a folder, from the best source that has one.

    `name` is what to call it if neither file nor git does; None: its folder's name is the same
    for any code. `ignored` are folders below it that are not part of the release.
    """
    notes: list[str] = []
    for source in (VersionSource.FILE, VersionSource.GIT):
        try:
            if (version := from_source(path, source, account=account)) is not None:
                return Found(version, source, "; ".join(notes) or None)
        except LookupFailedError as error:
            notes.append(str(error))
    if name is None:
        try:
            digest = from_source(path, VersionSource.DIGEST, ignored=ignored)
            return Found(digest or path.name, VersionSource.DIGEST, "; ".join(notes) or None)
        except LookupFailedError as error:
            notes.append(str(error))
    return Found(name or path.name or "unknown", VersionSource.NAME, "; ".join(notes) or None)


def from_source(
    path: Path,
    source: VersionSource,
    *,
    ignored: frozenset[Path] = frozenset(),
    seconds: float | None = None,
    account: Account | None = None,
) -> str | None:
    """Return the version that one source gives; None if there is none of the kind.

    With an account, git runs as that user. Raises LookupFailedError, also if it takes longer than
    `seconds`.
    """
    seconds = _SECONDS if seconds is None else seconds
    if source is VersionSource.FILE:
        return _from_file(path)
    if source is VersionSource.GIT:
        return _from_git(path, seconds, account)
    return _from_files(path, ignored, seconds) if source is VersionSource.DIGEST else path.name


def has_file(path: Path) -> bool:
    """Return whether the folder has something called `VERSION`."""
    return os.path.lexists(path / _FILE)


def has_repository(path: Path) -> bool:
    """Return whether the folder is a git checkout; one within a checkout is none."""
    return os.path.lexists(path / ".git")


# The file.


def _from_file(folder: Path) -> str | None:
    if not has_file(folder):
        return None
    try:
        content = _read_a_little(folder)
    except OSError as error:
        raise LookupFailedError(f"{_FILE} can't be read: {error.strerror}") from error
    if len(content) > _FILE_BYTES:
        raise LookupFailedError(f"{_FILE} is larger than {_FILE_BYTES // 1024} KiB")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise LookupFailedError(f"{_FILE} is UTF-16, and UTF-8 is read")
    try:
        text = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise LookupFailedError(f"{_FILE} is not UTF-8") from error
    if not text:
        raise LookupFailedError(f"{_FILE} is empty")
    return _shown(_LINE_END.split(text)[0], _FILE)


def _read_a_little(folder: Path) -> bytes:
    """Return the file's first bytes, one more than it may have. Never waits, as for a FIFO.

    A link that leads out of the release is refused: a version is shown to everyone, and the daemon
    can read what the release's author can't.
    """
    path = folder / _FILE
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):  # before it is opened: opening a device may do something
        raise LookupFailedError(f"{path.name} is {_kind(mode)} and not a file")
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise LookupFailedError(f"{path.name} is not a file")
        if not Path(f"/proc/self/fd/{descriptor}").readlink().is_relative_to(folder.resolve()):
            raise LookupFailedError(f"{path.name} is a link to a file outside of the release")
        return file.read(_FILE_BYTES + 1)


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def _shown(text: str, origin: str) -> str:
    version = text.strip()[:_SHOWN_CHARACTERS]
    if not version.isprintable():
        raise LookupFailedError(f"{origin} has characters that can't be shown")
    return version


# Git.


def _from_git(folder: Path, seconds: float, account: Account | None) -> str | None:
    if not has_repository(folder):
        return None
    code, output, errors = _described(folder, seconds, account)
    if code != 0:
        last = errors.decode(errors="replace").strip().splitlines()[-1:] or [f"exit status {code}"]
        why = "".join(character for character in last[0] if character.isprintable())[:200]
        raise LookupFailedError(f"git does not describe it: {why}")
    try:
        text = output.decode().strip()
    except UnicodeDecodeError as error:
        raise LookupFailedError("git's description is not UTF-8") from error
    if not text:
        raise LookupFailedError("git's description is empty")
    return _shown(text, "git's description")


def _described(folder: Path, seconds: float, account: Account | None) -> tuple[int, bytes, bytes]:
    """Run git; a checkout's configuration can name programs, so root is not who looks for changes.

    Root runs git as the folder's owner. Where that one can't reach the folder, root runs it without
    looking for changed files, which starts none of those programs.
    """
    status = folder.stat()
    owner = {"user": status.st_uid, "group": status.st_gid, "extra_groups": []}
    if account is not None or os.geteuid() != 0 or status.st_uid == 0:
        return _run_git(folder, seconds, "--dirty", **(account.privileges if account else {}))
    described = _run_git(folder, seconds, "--dirty", **owner)
    return described if described[0] == 0 else _run_git(folder, seconds)


def _run_git(folder: Path, seconds: float, *options: str, **user: Any) -> tuple[int, bytes, bytes]:
    """Return git's exit status and both of its outputs. Raises LookupFailedError."""
    try:
        git = subprocess.Popen(
            [*_GIT, "-c", f"safe.directory={folder}", *_DESCRIBE, *options],
            cwd=folder,
            env={**_GIT_ENVIRONMENT, "PATH": os.environ.get("PATH", os.defpath)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            **user,
        )
    except FileNotFoundError as error:
        raise LookupFailedError("git is not installed") from error
    except (OSError, subprocess.SubprocessError) as error:
        raise LookupFailedError(f"git can't be run: {error}") from error
    with git:
        with suppress(OSError):  # it may have ended already
            resource.prlimit(git.pid, resource.RLIMIT_DATA, (_GIT_BYTES, _GIT_BYTES))
        try:
            output, errors = git.communicate(timeout=seconds)
        except BaseException as error:
            os.killpg(git.pid, signal.SIGKILL)  # and its descendants
            if isinstance(error, subprocess.TimeoutExpired):
                raise LookupFailedError(f"git took longer than {seconds:g} s") from error
            raise
    return git.returncode, output, errors


# All files.


def _from_files(folder: Path, ignored: frozenset[Path], seconds: float) -> str:
    """Return a digest of all names, sizes and times; a copy that keeps the times has the same."""
    digest, watch, files = hashlib.sha256(), Stopwatch(), 0
    try:
        for entry in _walk(folder, ignored):
            files += 1
            if files > _DIGEST_FILES:
                raise LookupFailedError(f"it has more than {_DIGEST_FILES} files")
            if watch.seconds > seconds:
                raise LookupFailedError(f"its files took longer than {seconds:g} s to read")
            with suppress(FileNotFoundError):  # removed meanwhile
                digest.update(_line(entry, folder))
    except OSError as error:
        raise LookupFailedError(f"its files can't be read: {error}") from error
    return f"files-{digest.hexdigest()[:12]}"


def newest_file(folder: Path, ignored: frozenset[Path]) -> str | None:
    """Return the file of a release that changed last, relative to its folder; None if unknown."""
    newest: tuple[int, str] | None = None
    with suppress(OSError):
        for entry in islice(_walk(folder, ignored), _DIGEST_FILES):
            changed = entry.stat(follow_symlinks=False).st_mtime_ns
            newest = max(newest or (0, ""), (changed, os.path.relpath(entry.path, folder)))
    return newest[1] if newest else None


def _walk(folder: Path, ignored: frozenset[Path]) -> Iterator[os.DirEntry[str]]:
    """Yield all files and links, in a fixed order. Links are not followed."""
    pending = [folder]
    while pending:
        found: list[os.DirEntry[str]] = []
        with suppress(FileNotFoundError), os.scandir(pending.pop()) as entries:
            found = sorted(islice(entries, _DIGEST_FILES + 1), key=lambda entry: entry.name)
        for entry in found:
            if entry.name in _NOT_CODE or Path(entry.path) in ignored:
                continue
            if entry.is_dir(follow_symlinks=False):
                pending.append(Path(entry.path))
            elif entry.is_file(follow_symlinks=False) or entry.is_symlink():
                yield entry


def _line(entry: os.DirEntry[str], folder: Path) -> bytes:
    """Return one entry's part of the digest; the time of a link is rarely kept by a copy."""
    name = os.fsencode(os.path.relpath(entry.path, folder))
    if entry.is_symlink():
        return b"%s\0link\0%s\0" % (name, os.fsencode(Path(entry.path).readlink()))
    status = entry.stat(follow_symlinks=False)
    return b"%s\0%d\0%d\0" % (name, status.st_size, status.st_mtime_ns)
