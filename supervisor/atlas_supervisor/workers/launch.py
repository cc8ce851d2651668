"""Starts a worker process: its command, its descriptors, and the launcher that places them."""

from __future__ import annotations

import resource
import secrets
import subprocess
import sys
from pathlib import Path

import anyio

from atlas_supervisor.model.release import Release
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.traffic import InheritedSockets
from atlas_supervisor.workers.notify import NotifySocket
from atlas_supervisor.workers.process import WorkerProcess
from atlas_worker.contract import ENV_NOTIFY_SOCKET

LAUNCHER = Path(__file__).with_name("launcher.py")
FIRST_DESCRIPTOR = 3

_OPEN_FILES = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
"""The limit that the daemon was started with. Workers get it; the daemon raises its own."""


def new_instance_id(slot: SlotName) -> str:
    """Return a name that no other process has or will have."""
    return f"{slot}-{secrets.token_hex(8)}"


def launcher_command(descriptors: list[int], announced: int, command: list[str]) -> list[str]:
    """Return the command line of a process that becomes `command` with these descriptors.

    They land at 3 and onwards; the first `announced` of them are for socket activation.
    """
    return [
        sys.executable,
        *("-I", "-S", str(LAUNCHER)),
        ",".join(map(str, descriptors)) or "-",
        str(announced),
        str(_OPEN_FILES),
        *command,
    ]


async def launch(
    *,
    slot: SlotName,
    release: Release,
    name: str,
    command: list[str],
    environment: dict[str, str],
    inherited: InheritedSockets,
    announce: bool,
    output: int,
) -> WorkerProcess:
    """Start a worker process and return it, not yet ready. Raises OSError.

    It prints to the descriptor `output`, which the caller closes.
    """
    notify = NotifySocket(name)
    descriptors = [sock.fileno() for sock in (*inherited.named.values(), *inherited.spare)]
    names = {"LISTEN_FDNAMES": ":".join(inherited.named)} if announce and inherited.named else {}
    announced = len(inherited.named) if announce else 0
    try:
        with anyio.CancelScope(shield=True):  # else a process could be started and not be recorded
            process = await anyio.open_process(
                launcher_command(descriptors, announced, command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=release.path,
                env={**environment, ENV_NOTIFY_SOCKET: notify.address, **names},
                start_new_session=True,
                pass_fds=descriptors,
            )
    except BaseException:
        notify.close()
        raise
    return WorkerProcess(name=name, slot=slot, release=release, process=process, notify=notify)
