"""Runs one worker without the supervisor, for a machine that must serve while the daemon can't.

The worker runs the last active release on the last active port, in the same environment. There
is no public port, no restart and no deploy. The process becomes the worker.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import NoReturn

from atlas_supervisor.config import Settings
from atlas_supervisor.errors import StartRefusedError
from atlas_supervisor.model.deploy import Mode
from atlas_supervisor.model.socket_passing import SocketPassing
from atlas_supervisor.model.state import DeployState
from atlas_supervisor.store.database import active_release
from atlas_supervisor.store.state_keeper import StateFile, UnreadableStateError
from atlas_supervisor.system.procfs import tag_for
from atlas_supervisor.traffic.listeners import explain_bind_error, listen, refuse_foreign_listeners
from atlas_supervisor.workers.launch import (
    FIRST_DESCRIPTOR,
    launcher_command,
    new_instance_id,
    worker_environment,
)
from atlas_supervisor.workers.releases import Releases, UnknownReleaseError
from atlas_worker.contract import STATE_FILE

_LABEL = "the worker's port"


def become_worker(settings: Settings, environ: Mapping[str, str]) -> NoReturn:
    """Replace this process with the worker. Raises StartRefusedError."""
    port, name = _active(settings)
    slot = settings.slot_of_port(port)
    releases = Releases(directory=settings.worker_directory, releases_dir=settings.releases_dir)
    try:
        release = releases.find(name)
    except UnknownReleaseError as error:
        raise StartRefusedError(f"the active release can't be run: {error}") from error
    refuse_foreign_listeners(_LABEL, "127.0.0.1", port)
    instance = new_instance_id(slot)
    environment = worker_environment(
        settings,
        slot=slot,
        port=port,
        instance=instance,
        release=release,
        environ=environ,
    )
    descriptors: list[int] = []
    if settings.socket_passing is not SocketPassing.PORT:
        try:
            listener = listen("127.0.0.1", port)
        except OSError as error:
            raise explain_bind_error(_LABEL, "127.0.0.1", port, error) from error
        descriptors.append(listener.detach())
        os.set_inheritable(descriptors[0], True)
    announced = len(descriptors) if settings.socket_passing is SocketPassing.ACTIVATION else 0
    if announced:
        environment["LISTEN_FDNAMES"] = "private"
    command = settings.worker_argv(slot=slot, port=port, fd=FIRST_DESCRIPTOR)
    os.chdir(release.path)
    sys.stderr.write(f"version {release.version} on 127.0.0.1:{port}, without the supervisor\n")
    sys.stderr.flush()
    tag = tag_for(str(settings.state_dir), instance)
    launcher = launcher_command(descriptors, announced, tag, command)
    os.execve(launcher[0], launcher, environment)  # noqa: S606  # without a shell on purpose


def _active(settings: Settings) -> tuple[int, str | None]:
    """Return the last active port and release, or the settings' if deploys are off."""
    if settings.deploy_mode is not Mode.BLUEGREEN:
        return settings.active_port, None
    state = _last_state(settings)
    named = state.active_release if state else None
    name = named.name if named else active_release(settings.state_dir / "atlas.db")
    if state and state.active_port in {settings.active_port, settings.staging_port}:
        return state.active_port, name
    return settings.active_port, name


def _last_state(settings: Settings) -> DeployState | None:
    try:
        return StateFile(settings.state_dir / STATE_FILE).read()
    except (UnreadableStateError, OSError) as error:
        sys.stderr.write(f"the state file {error}; taking ACTIVE_PORT\n")
        return None
