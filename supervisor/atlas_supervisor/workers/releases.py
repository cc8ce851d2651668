"""Releases: the worker directory, or a folder of `RELEASES_DIR` by its name; and recorded ones.

`find` looks a release up for a deploy and pins it: real path, identity of the folder, version. A
restart and a rollback use what was recorded of it, and `missing` says if that is no longer there.
"""

from __future__ import annotations

import ctypes
import os
import re
import stat
import struct
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import structlog

from atlas_supervisor.config import Settings
from atlas_supervisor.model.release import Release, VersionSource
from atlas_supervisor.model.state import ActiveRelease
from atlas_supervisor.system.account import Account
from atlas_supervisor.system.clock import Stopwatch
from atlas_supervisor.workers.release_file import (
    RELEASE_FILE,
    ReleaseFileError,
    read_release_file,
)
from atlas_supervisor.workers.release_version import (
    Found,
    LookupFailedError,
    from_source,
    has_file,
    has_repository,
    newest_file,
    version_of,
)

log = structlog.get_logger(__name__)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")
_NAME_IS = (
    "up to 128 ASCII letters, digits, '.', '_', '+' and '-', and begins with a letter or digit: "
    "rename the folder"
)
_NAMES_SHOWN = 20
_LIST_SECONDS = 5.0
"""After this time the list of releases goes on without git."""
_RESTART_SECONDS = 1.0
"""How long a restart may wait to learn the version of its release."""


class UnknownReleaseError(Exception):
    """There is no such release; the text names the known ones."""


class Start(NamedTuple):
    """A release to start, and its position among those that were recorded."""

    release: Release
    position: int
    why: str | None
    """Why it is not exactly the first one."""


class Releases:
    """Looks up releases. Its calls read the disk: run them in a thread."""

    def __init__(
        self,
        *,
        directory: Path,
        releases_dir: Path | None,
        state_dir: Path | None = None,
        account: Account | None = None,
    ) -> None:
        self._directory = directory
        self._releases_dir = releases_dir
        self._account = account
        """The user that a release's code runs as; None: the daemon's."""
        others = (folder for folder in (releases_dir, state_dir) if folder is not None)
        self._not_released = frozenset(map(_real, others))
        """Folders that are no part of the worker directory, although they may lie in it."""
        self._looked_up: dict[tuple[Path, VersionSource | None], str] = {}
        """The version that a folder without a name held at the last look, by this daemon."""

    @classmethod
    def of(cls, settings: Settings) -> Releases:
        """Return those that the settings name."""
        return cls(
            directory=settings.worker_directory,
            releases_dir=settings.releases_dir,
            state_dir=settings.state_dir,
            account=settings.worker_account,
        )

    def find(self, name: str | None) -> Release:
        """Return the named release, or the worker directory. Raises UnknownReleaseError."""
        path = self._folder(name)
        found = self._version_of(path, name or self._name_of(path))
        irreversible, fault = _said(path)
        if name is None:
            self._looked_up[path, found.source] = found.version
        return Release(
            name=name,
            path=path,
            version=found.version,
            source=found.source,
            identity=_identity(path),
            note=found.note,
            irreversible=irreversible,
            fault=fault,
        )

    def _version_of(self, path: Path, name: str | None) -> Found:
        return version_of(path, name, ignored=self._not_released, account=self._account)

    def _folder(self, name: str | None) -> Path:
        """Return the real path of a release's folder. Raises UnknownReleaseError."""
        path = self._directory if name is None else self._named(name)
        subject = f"release {name!r}" if name is not None else f"WORKER_DIRECTORY {path}"
        if name is None and path.is_symlink():
            subject += f" (a link to {path.readlink()})"
        try:
            real = Path(os.path.realpath(path, strict=True))
        except FileNotFoundError as error:
            raise UnknownReleaseError(f"{subject} is gone") from error
        except OSError as error:
            raise UnknownReleaseError(f"{subject} can't be used: {error.strerror}") from error
        if not real.is_dir():
            raise UnknownReleaseError(f"{subject} can't be used: it is no folder")
        return real

    def _named(self, name: str) -> Path:
        if self._releases_dir is None:
            raise UnknownReleaseError("RELEASES_DIR is not set, so no release has a name")
        path = self._releases_dir / name
        # Only a plain folder is accepted: a link could lead anywhere, and a name is no path.
        if _NAME.fullmatch(name) and path.is_symlink():
            raise UnknownReleaseError(
                f"{name!r} in RELEASES_DIR is a link to {path.readlink()}, and only a folder is a "
                "release: name the folder itself"
            )
        names = self.names()
        if name not in names:
            problem = f"there is no release {name!r}"
            there = (each.name for each in self._releases_dir.iterdir())
            if not _NAME.fullmatch(name) and name in there:
                problem = f"{name!r} in RELEASES_DIR is no name of a release, which has {_NAME_IS}"
            known = ", ".join(names[:_NAMES_SHOWN]) or "none"
            raise UnknownReleaseError(f"{problem}; there is: {known}")
        return path

    def _name_of(self, path: Path) -> str | None:
        """Return the name that the worker directory gives to its code; None: it never changes."""
        is_release = self._releases_dir is not None and path.parent == _real(self._releases_dir)
        is_linked = self._directory.is_symlink() and path.name != self._directory.name
        return path.name if (is_release or is_linked) and path.name.isprintable() else None

    def all(self, *, with_git: bool) -> list[Release]:
        """Return every named release, by name, without those removed meanwhile.

        A version that only git knows is empty without git, and once git has taken too long for
        those before. Raises UnknownReleaseError.
        """
        found, watch = [], Stopwatch()
        note = "git was too slow for the releases before" if with_git else "git describes it"
        for name in self.names():
            with suppress(UnknownReleaseError, OSError):
                path = self._folder(name)
                asked = with_git and watch.seconds < _LIST_SECONDS
                unknown = not asked and has_repository(path) and not has_file(path)
                release = Release(name=name, path=path, version="", note=note)
                found.append(release if unknown else self.find(name))
        return found

    def names(self) -> list[str]:
        """Return the names of all releases, sorted. Raises UnknownReleaseError."""
        if self._releases_dir is None:
            return []
        try:
            with os.scandir(self._releases_dir) as entries:
                return sorted(
                    entry.name
                    for entry in entries
                    if _NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
                )
        except OSError as error:
            folder, why = self._releases_dir, error.strerror
            raise UnknownReleaseError(f"RELEASES_DIR {folder} can't be read: {why}") from error

    # Recorded releases.

    def active(self, named: ActiveRelease) -> Release:
        """Return the release that a state file names; one without a path is where its name is."""
        path = named.path or self._directory
        if named.path is None and named.name is not None and self._releases_dir is not None:
            path = self._releases_dir / named.name
        return Release(**{**named.model_dump(), "path": path})

    def recorded(self, release: Release) -> Release:
        """Return a recorded release, if it is there exactly as recorded.

        One of an earlier version, without identity, is looked up by its name. Raises
        UnknownReleaseError.
        """
        if release.identity is None:
            return self.find(release.name)
        if why := missing(release):
            raise UnknownReleaseError(why)
        return release

    def unchanged(self, release: Release) -> Release:
        """Return a recorded release that still has its version. Raises UnknownReleaseError."""
        found = self.recorded(release)
        if release.identity is not None:
            found = self.checked(found)
        is_other = found.version != release.version and release.name is None
        if found.problem is not None or is_other:
            raise UnknownReleaseError(f"{found.path} now holds version {found.version}")
        return found

    def why_gone(self, release: Release, *, thorough: bool) -> str | None:
        """Return why a recorded release can't be launched again; None if it can.

        Unless it is to be thorough, versions that take time to find out are not looked up: a folder
        without a name holds what it did at the last look. Not the active version: after a rollback
        that is the older one, and the folder still holds the newer.
        """
        if not thorough and release.source in {VersionSource.GIT, VersionSource.DIGEST}:
            held = self._looked_up.get((release.path, release.source), release.version)
            if release.name is None and held != release.version:
                return f"{release.path} held version {held} when it was last looked up"
            return missing(release)
        try:
            self.unchanged(release)
        except UnknownReleaseError as error:
            return str(error)
        return None

    def start(self, recorded: list[Release]) -> Start:
        """Return the release to start, by the records: the active release, then those before it.

        In order: the active one; the newest one before it that is there and unchanged; what is in
        the active one's place now, because a machine that was set up anew must serve.
        """
        why: str | None = None
        for position, candidate in enumerate(recorded):
            try:
                release = self.unchanged(candidate) if position else self.recorded(candidate)
            except UnknownReleaseError as error:
                why = why or str(error)
                continue
            if why is not None:
                instead = f"version {release.version}, an earlier one, was started instead"
                release = release.model_copy(update={"problem": f"{why}; {instead}"})
            return Start(release, position, why)
        return Start(self._in_its_place(recorded[0], why), 0, why)

    def _in_its_place(self, release: Release, why: str | None) -> Release:
        """Return the release at the place of one that is gone; that one if there is none."""
        if not release.path.is_dir():
            return release
        found = self._version_of(release.path, release.name)
        now = {"version": found.version, "source": found.source, "note": found.note}
        now["identity"] = _identity(release.path)
        problem = f"{why}; version {found.version}, which is there now, has passed no gate"
        return release.model_copy(update={**now, "problem": problem})

    def checked(self, release: Release) -> Release:
        """Return the release about to be restarted, with the version that its folder now holds.

        Whether it is another than the recorded one is said only if that can be known.
        """
        if release.source is None or missing(release):  # the launch says why it is gone
            return release
        recorded, name = release.recorded_version or release.version, release.label
        try:
            version = from_source(
                release.path,
                release.source,
                ignored=self._not_released,
                seconds=_RESTART_SECONDS,
                account=self._account,
            )
        except (LookupFailedError, OSError) as error:
            log.warning("release_version_unknown", release=name, why=str(error))
            return release
        if release.name is None and version:
            self._looked_up[release.path, release.source] = version
        if version == recorded:
            unchanged = {"version": recorded, "recorded_version": None, "problem": None}
            return release.model_copy(update=unchanged if release.recorded_version else {})
        what = f"version {version}" if version else f"no {release.source} any more"
        problem = (
            f"{release.path} now holds {what}, and version {recorded} was deployed from it: what "
            "runs has passed no gate"
        )
        if release.source is VersionSource.DIGEST:
            newest = newest_file(release.path, self._not_released)
            problem += f" (the file that changed last is {newest})" if newest else ""
        changed = {"version": version or recorded, "recorded_version": recorded}
        return release.model_copy(update={**changed, "problem": problem})


def missing(release: Release) -> str | None:
    """Return why the release can't be run as it was recorded; None if its folder is there."""
    subject = f"release {release.label}"
    try:
        if not stat.S_ISDIR(release.path.stat().st_mode):
            return f"{subject} is gone: {release.path} is no folder any more"
        identity = _identity(release.path)
    except (FileNotFoundError, NotADirectoryError):
        return f"{subject} is gone: its folder {release.path} does not exist any more"
    except OSError as error:
        return f"{subject} can't be looked at: {error}"
    if release.identity not in (None, identity):
        return f"{subject} is gone: its folder {release.path} was replaced by another one"
    return None


def _said(path: Path) -> tuple[bool, str | None]:
    """Return whether the release calls itself irreversible, and what is wrong with that file."""
    if not os.path.lexists(path / RELEASE_FILE):
        return False, None
    try:
        return read_release_file(path).irreversible, None
    except ReleaseFileError as error:
        return False, str(error)


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


_AT_FDCWD, _BIRTH, _STATX_BYTES, _BIRTH_AT = -100, 0x800, 256, 80


def _identity(path: Path) -> str:
    """Return the folder's inode number and, since those are used again, its time of birth.

    Without the device: its number may change when the machine is started again.
    """
    inode = str(path.stat().st_ino)
    statx = getattr(ctypes.CDLL(None), "statx", None)
    found = ctypes.create_string_buffer(_STATX_BYTES)
    if statx is None or statx(_AT_FDCWD, os.fsencode(path), 0, _BIRTH, found) != 0:
        return inode
    (mask,) = struct.unpack_from("I", found)
    seconds, nanoseconds = struct.unpack_from("qI", found, _BIRTH_AT)
    return f"{inode}-{seconds}.{nanoseconds:09}" if mask & _BIRTH else inode
