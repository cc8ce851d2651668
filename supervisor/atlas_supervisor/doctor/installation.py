"""Checks of one installation: its settings, its state folder, its ports, and its worker.

With a daemon of another user, root looks as that user: what may be read and written is its matter.
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import distributions, version
from pathlib import Path
from shlex import quote
from typing import NamedTuple

import anyio

from atlas_supervisor.config import Settings, warnings
from atlas_supervisor.config.smoke_file import load_smoke_file
from atlas_supervisor.doctor.finding import Finding, fail, looked, ok, warn
from atlas_supervisor.errors import StartRefusedError
from atlas_supervisor.health.daemon_checks import disk_free, history_lost
from atlas_supervisor.model.health import CheckStatus
from atlas_supervisor.model.release import Release
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.start_check import report as start_report
from atlas_supervisor.store import state_folder
from atlas_supervisor.store.database import set_aside_last
from atlas_supervisor.system import procfs, socket_keeper
from atlas_supervisor.system.files import short_name
from atlas_supervisor.system.program import own_version
from atlas_supervisor.traffic.listeners import foreign_listeners, refuse_unusable
from atlas_supervisor.workers.launch import worker_environment
from atlas_supervisor.workers.registry import find_survivors, pids_of
from atlas_supervisor.workers.standalone import last_state, release_to_start
from atlas_worker.contract import ENV_INSTANCE, ENV_STATE_DIR, SUPERVISOR_SOCKET

DISTRIBUTION = "atlas-supervisor"
_ANSWER_SECONDS = 2.0
_PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid
_LEVELS = {CheckStatus.FAIL: fail, CheckStatus.WARN: warn}


class Daemon(NamedTuple):
    """The running daemon, and its user."""

    pid: int
    uid: int
    gid: int


class HiddenError(Exception):
    """The state folder is another user's, and not ours to look into."""


def running_daemon(state_dir: Path) -> Daemon | None:
    """Return the daemon that listens in the state folder. Raises HiddenError."""
    try:
        with (
            short_name(state_dir / SUPERVISOR_SOCKET) as name,
            socket.socket(socket.AF_UNIX) as client,
        ):
            client.settimeout(_ANSWER_SECONDS)
            client.connect(name)
            peer = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    except PermissionError as error:
        raise HiddenError from error
    except OSError:
        return None
    return Daemon(*_PEER.unpack(peer))


@contextmanager
def as_user_of(settings: Settings, daemon: Daemon | None) -> Iterator[None]:
    """Look as the daemon's user, if root does; without a daemon as the state folder's owner."""
    uid, gid = (daemon.uid, daemon.gid) if daemon else (0, 0)
    if daemon is None and settings.state_dir.is_dir():
        found = settings.state_dir.stat()
        uid, gid = found.st_uid, found.st_gid
    if os.geteuid() != 0 or uid == 0:
        yield
        return
    own_version()  # read now, as that user may not be able to enter our environment
    before = os.getegid()
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(before)


def installation(settings: Settings, env_file: Path) -> Iterator[Finding]:
    """Yield what the installation is like; its settings are valid."""
    yield from settings_checked(settings, env_file)
    try:
        daemon = running_daemon(settings.state_dir)
    except HiddenError:
        message = f"STATE_DIR={settings.state_dir} is closed to this user"
        yield warn("daemon", message, f"sudo atlasctl doctor --env-file {quote(str(env_file))}")
        return
    yield daemon_found(settings, daemon, env_file)
    with as_user_of(settings, daemon):
        try:
            found = [*permissions(settings)]
        except OSError as error:  # a folder above is closed to that user
            mend = "Let the daemon's user enter the folders above it (namei -l)."
            found = [fail("permissions", f"{error.filename}: {error.strerror}", mend)]
    yield from found
    yield from looked("disk", lambda: [disk(settings.state_dir)])
    yield from looked("history", lambda: history(settings.state_dir))
    yield from looked("ports", lambda: ports(settings, daemon))
    yield from looked("worker", lambda: worker(settings))


def settings_checked(settings: Settings, env_file: Path) -> Iterator[Finding]:
    """Yield the warnings of `--check`, and the smoke tests."""
    found = warnings(settings)
    for warning in found:
        yield warn("settings", warning, f"Change it in {env_file}, then: atlasctl reload")
    if not found:
        yield ok("settings", f"{env_file} is valid")
    if settings.smoke_file is None:
        return  # among the warnings
    plan = load_smoke_file(settings.smoke_file)
    count = len(plan.http) + len(plan.command)
    yield ok("smoke", f"{count} test{'s' * (count != 1)} in {settings.smoke_file}")


def daemon_found(settings: Settings, daemon: Daemon | None, env_file: Path) -> Finding:
    """Report whether a daemon runs, or has left workers behind."""
    if daemon is not None:
        return ok("daemon", f"{procfs.describe(daemon.pid)}, uid {daemon.uid}")
    start = f"atlas-supervisor --env-file {quote(str(env_file))}"
    if left := pids_of(find_survivors(settings.state_dir, ())):
        pids = ", ".join(map(str, left))
        message = f"none runs, and workers of an earlier one serve on (pid {pids})"
        return warn("daemon", message, f"{start} takes them over")
    return ok("daemon", f"none runs; {start} starts one")


def permissions(settings: Settings) -> Iterator[Finding]:
    """Yield what a start would refuse in the state folder, its token and its log."""
    faults = start_report(settings).faults
    for fault in faults:
        message, _, mend = fault.partition("; ")
        yield fail("permissions", message, mend or "See its mode and owner (ls -la).")
    for why in state_folder.insecure_parents(settings.state_dir):
        yield warn("permissions", why, "Put STATE_DIR below folders that only root writes.")
    if not faults:
        there = "is the daemon's alone" if settings.state_dir.is_dir() else "is made at the start"
        yield ok("permissions", f"STATE_DIR={settings.state_dir} {there}")


def disk(folder: Path) -> Finding:
    """Check the room in the state folder, or in the one that it will be made in."""
    while not folder.is_dir():
        folder = folder.parent
    found = anyio.run(disk_free, folder)
    message = f"{found.value or 0:,.0f} MiB {found.message}"
    if found.status in _LEVELS:
        return _LEVELS[found.status](
            "disk", message, f"du -xh {quote(str(folder))} | sort -h | tail"
        )
    return ok("disk", message)


def history(folder: Path) -> Iterator[Finding]:
    """Yield that the history before a damage of the database is missing, if it is."""
    if (lost := set_aside_last(folder)) is not None:
        mend = f"Restore a backup, or go on without: mv {quote(str(lost))}* somewhere else"
        yield warn("history", history_lost(lost), mend)


def ports(settings: Settings, daemon: Daemon | None) -> Iterator[Finding]:
    """Yield who has each port, or whether it can be had."""
    if daemon is not None and not os.access(f"/proc/{daemon.pid}/fd", os.R_OK):
        mend = f"Run it as root, or as uid {daemon.uid}."
        yield warn("ports", "whose they are is hidden from this user", mend)
        return
    family = procfs.family_of(
        environment=f"{ENV_STATE_DIR}={settings.state_dir}".encode(),
        beside=f"{ENV_INSTANCE}=".encode(),
        tag=procfs.tag_for(str(settings.state_dir), ""),
        tag_mask=procfs.TAG_OF_DAEMON,
    )
    roles = {pid: f"worker {pid}" for pid in family}
    if daemon is not None:
        roles[daemon.pid] = f"daemon {daemon.pid}"
    roles |= {pid: f"keeper {pid}" for pid in keepers(roles)}
    ours = _sockets_of(roles)
    addresses = {
        "PUBLIC_PORT": (str(settings.public_host), settings.public_port),
        "ACTIVE_PORT": ("127.0.0.1", settings.active_port),
        "STAGING_PORT": ("127.0.0.1", settings.staging_port),
        "CONTROL_PORT": (str(settings.control_host), settings.control_port),
    }
    for label, (host, port) in addresses.items():
        if port == 0:
            yield ok("ports", f"{label}=0 is off")
            continue
        found = _port(label, host, port, ours)
        yield found or ok("ports", f"{label}={port} is ours: {_holders(host, port, roles)}")


def _holders(host: str, port: int, roles: dict[int, str]) -> str:
    inodes = {each.inode for each in foreign_listeners(host, port)}
    return ", ".join(roles.get(pid) or procfs.describe(pid) for pid in procfs.holders_of(inodes))


def keepers(known: Iterable[int]) -> list[int]:
    """Return the processes that keep our listening sockets: with these processes, or alone."""
    program, ours = Path(socket_keeper.__file__).stem, _sockets_of(known)
    every = {pid for pid in procfs.pids() if program in procfs.command_of(pid)}
    kept = {pid: procfs.sockets_of(pid) for pid in every}
    # One whose sockets others have is that of another daemon.
    return [
        pid for pid, has in kept.items() if has & ours or every.issuperset(procfs.holders_of(has))
    ]


def _sockets_of(pids: Iterable[int]) -> set[int]:
    return {inode for pid in pids for inode in procfs.sockets_of(pid)}


def _port(label: str, host: str, port: int, ours: set[int]) -> Finding | None:
    """Return why the port can't be had, or that it is free; None if it is ours alone."""
    held = [each for each in foreign_listeners(host, port) if each.inode in ours]
    mend = f"Stop that program, or set another {label}."
    try:
        # Where we listen already, a bind would show what this user may do, not what the daemon may.
        if not held:
            refuse_unusable(label, host, port, ours)
        elif foreign := foreign_listeners(host, port, ours):
            who = procfs.describe_listeners(foreign)
            return fail("ports", f"{label}={port} is shared with another program: {who}", mend)
    except StartRefusedError as error:
        return fail(
            "ports", str(error).removesuffix(f". Stop it, or choose another {label}."), mend
        )
    return None if held else ok("ports", f"{label}={port} is free")


def worker(settings: Settings) -> Iterator[Finding]:
    """Yield whether the worker's program and its kit are there."""
    try:
        release = release_to_start(settings, last_state(settings))
    except StartRefusedError as error:
        yield fail("worker", str(error), "atlasctl releases shows what can be deployed.")
        return
    words = [*settings.worker_command]
    if words[0] == "env":
        words = [word for word in words[1:] if "=" not in word] or words
    program = words[0]
    path = worker_environment(
        settings,
        slot=SlotName.BLUE,
        port=settings.active_port,
        instance="",
        release=release,
    )["PATH"]
    found = shutil.which(str(release.path / program) if "/" in program else program, path=path)
    if found is None:
        mend = f"Install it into {release.path / '.venv'}, or name it with its path."
        if (release.path / program).is_file():
            mend = f"Write ./{program}, and see that it is executable (chmod +x)."
        yield fail("worker", f"{program} of WORKER_COMMAND is in no folder of {path}", mend)
        return
    yield ok("worker", f"{release.path}, by {found}")
    yield kit(settings, release)


def kit(settings: Settings, release: Release) -> Finding:
    """Compare the kit in the worker's own environment with the daemon's; nothing is run for it."""
    own = version(DISTRIBUTION)
    environment = release.path / ".venv"
    if not environment.is_dir():
        return ok("kit", f"{own}, the daemon's own: {release.path} has no .venv")
    folders = [str(path) for path in environment.glob("lib/python*/site-packages")]
    there = next((each.version for each in distributions(name=DISTRIBUTION, path=folders)), None)
    mend = f"{environment}/bin/pip install FOLDER, which is that of ATLAS {own}"
    if there is None and any("atlas_worker" in part for part in settings.worker_command):
        return fail("kit", f"WORKER_COMMAND uses the kit, and {environment} does not have it", mend)
    if there is None:
        return ok("kit", f"{environment} has none: a worker without the kit is drained at once")
    if there != own:
        return warn("kit", f"{there} in {environment}, and the daemon is {own}", mend)
    return ok("kit", f"{there}, as the daemon")
