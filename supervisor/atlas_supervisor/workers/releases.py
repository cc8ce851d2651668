"""Releases: the worker directory, or a folder of `RELEASES_DIR` by its name."""

from __future__ import annotations

import os
import re
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from atlas_supervisor.model.release import Release

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")
_GIT_SECONDS = 5.0


class UnknownReleaseError(Exception):
    """There is no such release; the text names the known ones."""


class Releases:
    """Looks up releases. Its calls read the disk: run them in a thread."""

    def __init__(self, *, directory: Path, releases_dir: Path | None) -> None:
        self._directory = directory
        self._releases_dir = releases_dir

    def find(self, name: str | None) -> Release:
        """Return the named release, or the worker directory. Raises UnknownReleaseError."""
        if name is None:
            if not self._directory.is_dir():
                raise UnknownReleaseError(f"WORKER_DIRECTORY {self._directory} is gone")
            return Release(name=None, path=self._directory, version=version_of(self._directory))
        if self._releases_dir is None:
            raise UnknownReleaseError("RELEASES_DIR is not set, so no release has a name")
        path = self._releases_dir / name
        # Only a plain folder is accepted: a link could lead anywhere, and a name is no path.
        if not _NAME.fullmatch(name) or path.is_symlink() or not path.is_dir():
            known = ", ".join(self.names()[:20]) or "none"
            raise UnknownReleaseError(f"there is no release {name!r}; there is: {known}")
        return Release(name=name, path=path, version=version_of(path))

    def all(self) -> list[Release]:
        """Return every named release, by name, without those removed meanwhile."""
        found = []
        for name in self.names():
            with suppress(UnknownReleaseError, OSError):
                found.append(self.find(name))
        return found

    def names(self) -> list[str]:
        """Return the names of all releases, sorted."""
        if self._releases_dir is None or not self._releases_dir.is_dir():
            return []
        return sorted(
            path.name
            for path in self._releases_dir.iterdir()
            if _NAME.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
        )


def version_of(path: Path) -> str:
    """Return the `VERSION` file's first line, else git's description, else the time of change."""
    try:
        first = (path / "VERSION").read_text(errors="replace").strip().splitlines()[:1]
    except OSError:
        first = []
    if first and first[0].isprintable():
        return first[0].strip()[:100]
    return _git_description(path) or _changed(path)


def _git_description(path: Path) -> str | None:
    if not (path / ".git").exists():  # a folder within a repository is no release of it
        return None
    command = ["git", "-C", str(path), "describe", "--tags", "--always", "--dirty"]
    # In a git hook, variables are set that name another repository.
    environment = {name: value for name, value in os.environ.items() if name[:4] != "GIT_"}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
            check=True,
            env=environment,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _changed(path: Path) -> str:
    moment = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
