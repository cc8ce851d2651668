"""What holds after every fault: one check for the tests of faults and for the soak.

`violations` looks once, from outside: files, `/proc`, the kernel's tables and the API. What the
daemon does a moment later (it reaps, drains, writes what was pending) may still be under way, so
`invariants_hold` looks again until everything holds, or reports what does not.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atlas_supervisor.system import procfs, sockdiag
from tests.harness import DaemonProcess
from tests.loadclient.report import Loss

CONNECTIONS = 4
"""So many are made to the public port: without a program the kernel would spread them."""
DESCRIPTORS_MOST = 150
RSS_MOST_BYTES = 300 << 20
LOG_MOST_BYTES = 17 << 20
SHARING = {"awaiting_switch", "ramp", "guard"}
"""Phases of a deploy in which both versions may have a part of the traffic."""
WAITING = {*SHARING, "warm"}
"""Phases in which the newest deploy may stay."""
DRAINING = {"drain", "drain_reverted"}
"""Phases in which a deploy may stay as long as one of its clients does."""


@dataclass(frozen=True)
class Seen:
    """What one look from outside has found."""

    daemon: DaemonProcess
    status: Mapping[str, Any]
    verified: Mapping[str, Any]
    file: Mapping[str, Any]
    database: sqlite3.Connection
    losses: Sequence[Loss]

    @property
    def active(self) -> dict[str, Any]:
        """The active slot as the status shows it."""
        return next(each for each in self.status["slots"] if each["role"] == "active")

    @property
    def is_split(self) -> bool:
        """Whether the active slot has not all of the traffic."""
        return bool(self.status["traffic"]["weights"].get(self.active["slot"], 1.0) != 1.0)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        return self.database.execute(query).fetchall()


def file_database_and_steering_agree(seen: Seen) -> Iterator[str]:
    """The state file, its copy, the newest version, the status and the kernel name one slot."""
    yield from _differences(seen)
    yield from _strayed_connections(seen)


def _differences(seen: Seen) -> Iterator[str]:
    named = ("active_port", "staging_port", "mode")
    for name in named:
        if seen.status[name] != seen.file[name]:
            yield f"{name} is {seen.status[name]} in the status, {seen.file[name]} in the file"
    if seen.active["port"] != seen.file["active_port"]:
        yield f"{seen.active['slot']} is active, and its port is not in the file"
    if seen.is_split and (seen.status["last_deploy"] or {}).get("phase") not in SHARING:
        yield f"the traffic is split: {seen.status['traffic']['weights']}"
    for (copy,) in seen.rows("SELECT state FROM last_state"):
        kept = json.loads(copy)
        for name in (*named, "canary_disabled_fallback"):
            if kept[name] != seen.file[name]:
                yield f"{name} is {kept[name]} in the database, {seen.file[name]} in the file"
    release = seen.file.get("active_release")
    versions = seen.rows(
        "SELECT directory, version FROM versions WHERE NOT undone ORDER BY id DESC LIMIT 1"
    )
    if release and versions and versions[0][1] != release["version"]:
        yield f"the newest version is {versions[0][1]}, and {release['version']} is in the file"


def _strayed_connections(seen: Seen) -> Iterator[str]:
    """Make connections to the public port, and yield those that another process accepts."""
    if seen.status["traffic"]["plane"] != "kernel" or seen.active["pid"] is None or seen.is_split:
        return
    host = str(seen.daemon.settings.get("PUBLIC_HOST", "127.0.0.1"))
    loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    with ExitStack() as stack:
        address = (loopback, seen.daemon.public_port)
        clients = [
            stack.enter_context(socket.create_connection(address, 5)) for _ in range(CONNECTIONS)
        ]
        for client in clients:
            inode = _accepted(client)
            if inode in procfs.sockets_of(seen.active["pid"]):
                continue  # all other processes need no look
            holders = [pid for pid in procfs.holders_of([inode]) if pid != os.getpid()]
            if inode and not any(procfs.session(pid) == seen.active["pid"] for pid in holders):
                who = ", ".join(procfs.describe(pid) for pid in holders) or "a process that is gone"
                yield f"{who} accepts connections of the active pid {seen.active['pid']}"


def _accepted(client: socket.socket) -> int:
    """Return the inode of the server's end; 0 if the client waits in a queue."""
    for _ in range(50):
        if inode := sockdiag.accepted_inode(client):
            return inode
        client.settimeout(0.01)
        try:
            client.recv(1)
        except OSError:
            continue
        return 0  # it was closed at once
    return 0


def no_request_is_lost(seen: Seen) -> Iterator[str]:
    """The clients of the load have an answer to everything they sent."""
    yield from (str(loss) for loss in seen.losses[:20])


def one_daemon_writes(seen: Seen) -> Iterator[str]:
    """No process but the daemon has the database open."""
    for pid in _having_open(str(seen.daemon.state_dir / "atlas.db")):
        if pid not in {seen.daemon.pid, os.getpid()}:
            yield f"{procfs.describe(pid)} has the database open"


def _having_open(path: str) -> Iterator[int]:
    for pid in procfs.pids():
        folder = f"/proc/{pid}/fd"
        try:
            descriptors = os.listdir(folder)  # noqa: PTH208  # a Path for each is the cost here
        except OSError:
            continue  # it has ended, or belongs to another user
        for descriptor in descriptors:
            try:
                if os.readlink(f"{folder}/{descriptor}") == path:  # noqa: PTH115  # see above
                    yield pid
                    break
            except OSError:
                continue


def no_process_is_left_over(seen: Seen) -> Iterator[str]:
    """Every process of a worker belongs to one in the status, and the daemon has no zombie."""
    known = {each["pid"] for each in (*seen.status["slots"], *seen.status["draining"])}
    for pid in workers_of(seen.daemon):
        if procfs.session(pid) not in known:
            yield f"{procfs.describe(pid)} belongs to no worker in the status"
    children = Path(f"/proc/{seen.daemon.pid}/task/{seen.daemon.pid}/children").read_text()
    for child in children.split():
        if _state_of(child) == "Z":
            yield f"pid {child} is a zombie of the daemon"


def workers_of(daemon: DaemonProcess) -> list[int]:
    """Return the pids of all processes that a daemon on this state folder has started."""
    return [pid for pid in daemon.leftovers() if procfs.variables(pid).get("ATLAS_INSTANCE")]


async def fresh_workers(daemon: DaemonProcess, before: Collection[int]) -> list[str]:
    """Return why a start has replaced a worker; `before` are the processes that were there."""
    status = await daemon.status()
    active = next(each for each in status["slots"] if each["role"] == "active")
    if active["pid"] in before:
        return []
    return [f"pid {active['pid']} serves, and none of {sorted(before)}"]


def _state_of(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def latches_stay(seen: Seen) -> Iterator[str]:
    """The mode and the canary's fallback are what the audit trail's last entries say."""
    last = {
        action: (outcome, number)
        for number, action, outcome in seen.rows(
            "SELECT id, action, outcome FROM audit WHERE action IN"
            " ('mode', 'canary_fallback', 'canary_reset') ORDER BY id"
        )
    }
    mode, _ = last.get("mode", (seen.file["mode"], 0))
    if mode in {"single", "bluegreen"} and mode != seen.file["mode"]:
        yield f"the mode was set to {mode}, and is {seen.file['mode']}"
    fell, reset = (last.get(action, ("", 0))[1] for action in ("canary_fallback", "canary_reset"))
    if fell > reset and not seen.file["canary_disabled_fallback"]:
        yield "the canary's fallback is off without a reset"


def every_deploy_reaches_an_end(seen: Seen) -> Iterator[str]:
    """No deploy but the newest is left in a phase, and each one's journal is one path."""
    yield from _unended(seen)
    yield from _broken_journals(seen)


def _unended(seen: Seen) -> Iterator[str]:
    deploys = seen.rows("SELECT deploy_id, phase, result, ended_ts FROM deploys ORDER BY rowid")
    for number, (deploy_id, phase, result, ended) in enumerate(deploys, 1):
        newest = number == len(deploys)
        if phase == "ended" and (result is None or ended is None):
            yield f"{deploy_id} has ended without a result"
        if phase not in {"ended", *DRAINING, *(WAITING if newest else ())}:
            yield f"{deploy_id} is in {phase}"
        known = seen.status["last_deploy"]
        if newest and (known is None or (known["phase"], known["result"]) != (phase, result)):
            yield f"{deploy_id} is in {phase}, and the status says {known and known['phase']}"


def _broken_journals(seen: Seen) -> Iterator[str]:
    last: dict[str, str] = {}
    for deploy_id, source, target in seen.rows(
        "SELECT deploy_id, phase, target FROM transitions ORDER BY id"
    ):
        if deploy_id in last and source != last[deploy_id]:
            yield f"the journal of {deploy_id} goes from {last[deploy_id]} to {source}"
        last[deploy_id] = target
    for deploy_id, phase in seen.rows("SELECT deploy_id, phase FROM deploys"):
        if last.get(deploy_id, phase) != phase:
            yield f"{deploy_id} is in {phase}, and its journal ends in {last[deploy_id]}"


def the_audit_trail_is_whole(seen: Seen) -> Iterator[str]:
    """Every entry is there and follows from the one before it."""
    if not seen.verified["ok"]:
        yield seen.verified["message"]


def resources_are_bounded(seen: Seen) -> Iterator[str]:
    """Descriptors and memory of the daemon, and every log, stay below a limit."""
    pid = seen.daemon.pid
    if (descriptors := len(os.listdir(f"/proc/{pid}/fd"))) > DESCRIPTORS_MOST:  # noqa: PTH208  # a number is wanted
        yield f"the daemon has {descriptors} descriptors"
    if (rss := rss_bytes(pid)) > RSS_MOST_BYTES:
        yield f"the daemon uses {rss >> 20} MB"
    for path in (seen.daemon.state_dir / "logs").glob("*"):
        if path.is_file() and path.stat().st_size > LOG_MOST_BYTES:
            yield f"{path.name} is too long"


def rss_bytes(pid: int) -> int:
    """Return the memory that a process has resident."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


Invariant = Callable[[Seen], Iterator[str]]

INVARIANTS: Mapping[str, Invariant] = {
    "file, database and steering agree": file_database_and_steering_agree,
    "no request is lost": no_request_is_lost,
    "one daemon writes": one_daemon_writes,
    "no process or zombie is left over": no_process_is_left_over,
    "a latch stays latched": latches_stay,
    "every deploy reaches an end": every_deploy_reaches_an_end,
    "the audit trail is whole": the_audit_trail_is_whole,
    "descriptors, memory and logs are bounded": resources_are_bounded,
}


async def violations(daemon: DaemonProcess, losses: Sequence[Loss] = ()) -> dict[str, list[str]]:
    """Look once; return the violations of each invariant that does not hold."""
    status = await daemon.status()
    verified = (await daemon.request("GET", "/deploy/audit/verify")).json

    def look() -> dict[str, list[str]]:
        file = json.loads((daemon.state_dir / "deploy_state.json").read_text())
        path = daemon.state_dir / "atlas.db"
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
            seen = Seen(daemon, status, verified, file, database, losses)
            return {name: list(check(seen)) for name, check in INVARIANTS.items()}

    found = await asyncio.to_thread(look)
    return {name: problems for name, problems in found.items() if problems}


async def lasting_violations(
    daemon: DaemonProcess, losses: Sequence[Loss] = (), *, within: float = 15.0
) -> dict[str, list[str]]:
    """Look until everything holds; return the violations that are left after so many seconds."""
    deadline = asyncio.get_running_loop().time() + within
    while found := await violations(daemon, losses):
        if asyncio.get_running_loop().time() > deadline:
            break
        await asyncio.sleep(0.1)
    return found


async def invariants_hold(daemon: DaemonProcess, losses: Sequence[Loss] = ()) -> None:
    """Fail with every violation that lasts."""
    found = await lasting_violations(daemon, losses)
    assert not found, "\n".join(
        f"{name}: {problem}" for name, problems in found.items() for problem in problems
    )
