"""Launches a worker: its command, environment, output and descriptors.

The daemon does not start the worker's program directly: `launcher.py` places the descriptors
first, and then becomes the program.
"""

from __future__ import annotations

import os
import resource
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio

from atlas_supervisor.config import Settings
from atlas_supervisor.errors import SettingsError
from atlas_supervisor.model.release import Release
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.model.socket_passing import SocketPassing
from atlas_supervisor.system.procfs import describe_listeners
from atlas_supervisor.traffic import InheritedSockets
from atlas_supervisor.traffic.listeners import foreign_listeners
from atlas_supervisor.workers.environment import worker_environment
from atlas_supervisor.workers.notify import NotifySocket
from atlas_supervisor.workers.output import WorkerLog
from atlas_supervisor.workers.process import WorkerProcess
from atlas_worker.contract import ENV_NOTIFY_SOCKET

LAUNCHER = Path(__file__).with_name("launcher.py")
FIRST_DESCRIPTOR = 3

_OPEN_FILES = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
"""The limit that the daemon was started with. Workers get it; the daemon raises its own."""


class LaunchError(Exception):
    """The worker did not become ready; `detail` goes into the deploy's step."""

    def __init__(self, message: str, **detail: Any) -> None:
        super().__init__(message)
        self.detail = {"message": message, **detail}


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


async def launch_release(
    release: Release,
    *,
    name: str,
    slot: SlotName,
    port: int,
    settings: Settings,
    inherited: InheritedSockets,
    output: WorkerLog,
) -> WorkerProcess:
    """Start the settings' worker command in a release. Raises LaunchError and OSError."""
    if settings.socket_passing is SocketPassing.PORT:
        await anyio.to_thread.run_sync(_refuse_taken_port, port)
    command = settings.worker_argv(slot=slot, port=port, fd=FIRST_DESCRIPTOR)
    try:
        environment = worker_environment(
            settings, slot=slot, port=port, instance=name, release=release
        )
    except SettingsError as error:  # the file of extra variables was changed since the start
        raise LaunchError(f"the worker's environment can't be loaded: {error}") from error
    descriptor = await anyio.to_thread.run_sync(output.open)
    try:
        return await launch(
            slot=slot,
            release=release,
            name=name,
            command=command,
            environment=environment,
            inherited=inherited,
            announce=settings.socket_passing is SocketPassing.ACTIVATION,
            output=descriptor,
        )
    finally:
        os.close(descriptor)


def _refuse_taken_port(port: int) -> None:
    """Raise LaunchError if another process listens where the worker is going to bind."""
    if found := foreign_listeners("127.0.0.1", port):
        raise LaunchError(f"port {port} is taken: {describe_listeners(found)}")
