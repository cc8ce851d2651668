"""`atlasctl prune`: removes old folders of RELEASES_DIR that neither run nor can be gone back to.

A deploy may start at any moment. So each folder is looked at twice: before it is renamed, to a name
that can't be deployed, and after that; a deploy in between gets it back. Then it is removed.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import click

from atlas_supervisor.cli.endpoint import ConnectionOptions, env_file_of
from atlas_supervisor.cli.errors import FailedError
from atlas_supervisor.cli.listing import listing
from atlas_supervisor.cli.program import checked_settings
from atlas_supervisor.cli.session import Session, verb
from atlas_supervisor.cli.terminal import BAD, NOTE, OK, safe, write_json
from atlas_supervisor.cli.units import age, size
from atlas_supervisor.cli.words import mapping, objects
from atlas_supervisor.output import see_through
from atlas_worker.contract import STATE_FILE

_PRUNED = ".pruned"
"""The end of the name that a folder gets before it is removed; it begins with a dot."""


class Folder(NamedTuple):
    """A folder of RELEASES_DIR."""

    name: str
    changed: float
    """When, in seconds since 1970."""
    size: int
    """Bytes on the disk."""


@dataclass(frozen=True)
class Releases:
    """RELEASES_DIR, held open: what is renamed and removed is in this very folder."""

    path: Path
    descriptor: int
    worker_directory: Path
    state_file: Path

    def folders(self, names: Iterable[str]) -> Iterator[Folder]:
        """Yield those of these names that are folders themselves, on the same file system."""
        device = os.fstat(self.descriptor).st_dev
        for name in sorted(names):
            with suppress(FileNotFoundError):
                found = os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
                if stat.S_ISDIR(found.st_mode) and found.st_dev == device and "/" not in name:
                    yield Folder(name, found.st_mtime, self._size(name))

    def _size(self, name: str) -> int:
        return sum(
            os.stat(each, dir_fd=folder, follow_symlinks=False).st_blocks * 512
            for _, folders, files, folder in os.fwalk(name, dir_fd=self.descriptor)
            for each in (*folders, *files)
        )

    def names(self) -> set[str]:
        """Return all names in it."""
        return set(os.listdir(self.descriptor))  # noqa: PTH208  # of a descriptor

    def pointed_at(self) -> Iterator[str]:
        """Yield the names that settings, the state file and links in it lead to."""
        yield self.name_of(self.worker_directory)
        with suppress(OSError, ValueError):
            state = mapping(json.loads(self.state_file.read_bytes()))
            yield self.name_of(Path(str(mapping(state.get("active_release")).get("path"))))
        for path in map(self.path.joinpath, self.names()):
            if path.is_symlink():
                yield self.name_of(path)

    def name_of(self, path: Path) -> str:
        """Return the folder of RELEASES_DIR that a path leads into; empty if it is none."""
        with suppress(OSError, ValueError):
            return path.resolve().relative_to(self.path).parts[0]
        return ""

    def rename(self, name: str, to: str) -> None:
        """Rename one of its folders."""
        os.rename(name, to, src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)

    def remove(self, name: str) -> None:
        """Remove a folder; links in it are removed, and not followed."""
        shutil.rmtree(name, dir_fd=self.descriptor)


@verb
@click.option(
    "--keep",
    type=click.IntRange(min=0),
    default=5,
    show_default=True,
    help="Keep that many of the newest folders as well.",
)
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
@click.option("--yes", "-y", is_flag=True, help="Remove without asking.")
async def prune(session: Session, *, keep: int, dry_run: bool, yes: bool) -> None:
    """Remove old release folders.

    Kept are releases that run (active, staging or warm), the last five versions that served, the
    newest ones (--keep), and all that links or settings lead to.
    """
    if session.daemon.endpoint.socket is None:
        raise click.UsageError("prune removes folders of this machine; it can't by --url.")
    with _releases_of() as releases:
        needed = await _used(session, releases) | await _served(session)
        versions = await _versions(session)
        with session.screen.waiting(lambda: "looking"):
            found = sorted(releases.folders(versions), key=lambda each: -each.changed)
            old = [each for each in found[keep:] if not {each.name, versions[each.name]} & needed]
            old += releases.folders(filter(_was_interrupted, releases.names()))
        if not session.json:
            _show(session, old, kept=len(found) - len(old))
        removed = []
        if old and not dry_run and _confirmed(session, len(old), yes=yes):
            removed = [each for each in old if await _removed(session, releases, each.name)]
        _report(session, removed, old, dry_run=dry_run)


def _was_interrupted(name: str) -> bool:
    return name.startswith(".") and name.endswith(_PRUNED)


@contextmanager
def _releases_of() -> Iterator[Releases]:
    """Open RELEASES_DIR. Raises FailedError without one."""
    given = click.get_current_context().ensure_object(ConnectionOptions)
    env_file = env_file_of(given)
    settings = checked_settings(env_file)
    if not settings["RELEASES_DIR"]:
        raise FailedError(
            "RELEASES_DIR is not set, so there are no release folders.",
            f"It is a setting of {env_file}: docs/worker-contract.md, a release and its version.",
        )
    path = Path(settings["RELEASES_DIR"]).resolve()
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise FailedError(f"RELEASES_DIR={path} can't be read: {error.strerror}.") from error
    try:
        directory = Path(settings["WORKER_DIRECTORY"])
        yield Releases(path, descriptor, directory, Path(settings["STATE_DIR"]) / STATE_FILE)
    except OSError as error:
        raise FailedError(
            f"{error.filename or path} can't be removed: {error.strerror}."
        ) from error
    finally:
        os.close(descriptor)


async def _versions(session: Session) -> dict[str, str]:
    """Return the releases that the daemon knows by name, with their versions."""
    listed = session.expect(await session.daemon.get("/deploy/releases"), "releases")
    return {str(each.get("name")): str(each.get("version")) for each in objects(listed["releases"])}


async def _used(session: Session, releases: Releases) -> set[str]:
    """Return names, or versions, of what runs or is deployed now, and of what anything leads to."""
    listed = session.expect(await session.daemon.get("/deploy/releases"), "releases")
    status = session.expect(await session.daemon.get("/deploy/status"), "slots")
    workers = [*objects(status["slots"]), *objects(status.get("draining"))]
    used = {str(each.get("name")) for each in objects(listed["releases"]) if each.get("slots")}
    for each in workers:
        used |= {str(each.get("version")), releases.name_of(Path(f"/proc/{each.get('pid')}/cwd"))}
    if status.get("deploy_in_progress"):
        used.add(str(mapping(status.get("last_deploy")).get("release")))
    return used.union(releases.pointed_at())


async def _served(session: Session) -> set[str]:
    """Return names, or versions, of what can be gone back to."""
    earlier = session.expect(await session.daemon.get("/deploy/rollback"), "versions")
    return {
        str(each.get("release") or each.get("version")) for each in objects(earlier["versions"])
    }


def _confirmed(session: Session, count: int, *, yes: bool) -> bool:
    if yes:
        return True
    if session.json or not sys.stdin.isatty():
        raise click.UsageError("Nothing was removed; --yes removes without asking.")
    return click.confirm(f"Remove {'it' if count == 1 else f'these {count}'}?")


async def _removed(session: Session, releases: Releases, name: str) -> bool:
    """Remove a folder unless it is used by now; return whether it was."""
    see_through()
    was_hidden = _was_interrupted(name)
    hidden = name if was_hidden else f".{name}{_PRUNED}"
    name = hidden[1 : -len(_PRUNED)]
    is_used = bool({name, hidden} & await _used(session, releases))
    if not (is_used or was_hidden):
        releases.rename(name, hidden)
        try:
            is_used = bool({name, hidden} & await _used(session, releases))
        except FailedError:
            is_used = True
            raise
        finally:
            if is_used:
                releases.rename(hidden, name)
    if is_used:
        session.screen.print(session.screen.line(NOTE, f"{name} is used by now: kept"))
        return False
    releases.remove(hidden)
    return True


def _show(session: Session, old: list[Folder], *, kept: int) -> None:
    if not old:
        what = "1 release is" if kept == 1 else f"{kept} releases are"
        session.screen.print(session.screen.line(OK, f"nothing to remove; {what} kept"))
        return
    rows = [
        [
            safe(each.name),
            safe(age(datetime.fromtimestamp(each.changed, UTC).isoformat()), "dim"),
            safe(size(each.size)),
        ]
        for each in old
    ]
    session.screen.print(listing(session.screen, ("release", "age", "size"), rows))


def _report(session: Session, removed: list[Folder], old: list[Folder], *, dry_run: bool) -> None:
    freed = sum(each.size for each in removed or old)
    if session.json:
        names = [each.name for each in (old if dry_run else removed)]
        answer = {"removed": names, "bytes": freed, "dry_run": dry_run}
        write_json(json.dumps(answer).encode() + b"\n")
    elif dry_run and old:
        session.screen.print(safe(f"{size(freed)} would be free; nothing was removed", "dim"))
    elif removed:
        text = f"removed {len(removed)} of {len(old)}, {size(freed)} are free"
        session.screen.conclude(session.screen.line(OK if len(removed) == len(old) else BAD, text))
