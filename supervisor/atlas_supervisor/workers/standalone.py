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
from atlas_supervisor.model.release import Release
from atlas_supervisor.model.socket_passing import SocketPassing
from atlas_supervisor.model.state import DeployState
from atlas_supervisor.store.database import recorded_releases
from atlas_supervisor.store.state_folder import DATABASE_FILE, refuse_planted
from atlas_supervisor.store.state_keeper import StateFile, UnreadableStateError
from atlas_supervisor.system.procfs import tag_for
from atlas_supervisor.traffic.listeners import explain_bind_error, listen, refuse_foreign_listeners
from atlas_supervisor.workers.launch import (
    FIRST_DESCRIPTOR,
    launcher_command,
    new_instance_id,
    worker_environment,
)
from atlas_supervisor.workers.releases import Releases, UnknownReleaseError, missing
from atlas_worker.contract import STATE_FILE

_LABEL = "the worker's port"


def become_worker(settings: Settings, environ: Mapping[str, str]) -> NoReturn:
    """Replace this process with the worker. Raises StartRefusedError."""
    refuse_planted(
        settings.state_dir, account=settings.worker_account
    )  # what is run is what these files name
    state = last_state(settings) if settings.deploy_mode is Mode.BLUEGREEN else None
    port = settings.active_port
    if state and state.active_port == settings.staging_port:
        port = settings.staging_port
    slot = settings.slot_of_port(port)
    release = release_to_start(settings, state)
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
    launcher = launcher_command(descriptors, announced, tag, command, settings.worker_account)
    os.execve(launcher[0], launcher, environment)  # noqa: S606  # without a shell on purpose


def nothing_recorded(settings: Settings) -> bool:
    """Return whether a start has no recorded release that is there; blocks on the disk."""
    try:
        state = StateFile(settings.state_dir / STATE_FILE).read()
    except (UnreadableStateError, OSError):
        state = None  # the database has what a start goes by
    releases = Releases.of(settings)
    recorded = _recorded(settings, state, releases)
    return not recorded or missing(releases.start(recorded).release) is not None


def release_to_start(settings: Settings, state: DeployState | None) -> Release:
    """Return the release that a daemon would start. Raises StartRefusedError."""
    releases = Releases.of(settings)
    has_deploys = settings.deploy_mode is Mode.BLUEGREEN
    recorded = _recorded(settings, state, releases) if has_deploys else []
    try:
        release = releases.start(recorded).release if recorded else releases.find(None)
    except UnknownReleaseError as error:
        raise StartRefusedError(f"the active release can't be run: {error}") from error
    if why := missing(release):
        raise StartRefusedError(f"the active release can't be run: {why}")
    if release.problem is not None:
        sys.stderr.write(f"{release.problem}\n")
    return release


def _recorded(settings: Settings, state: DeployState | None, releases: Releases) -> list[Release]:
    """Return the active release and those before it; none if nothing is recorded."""
    rows = recorded_releases(settings.state_dir / DATABASE_FILE)
    if state is None or state.active_release is None:
        return rows
    return [releases.active(state.active_release), *rows]


def last_state(settings: Settings) -> DeployState | None:
    """Return the content of the state file; None, and a line on standard error, without one."""
    try:
        return StateFile(settings.state_dir / STATE_FILE).read()
    except (UnreadableStateError, OSError) as error:
        sys.stderr.write(f"the state file {error}; taking ACTIVE_PORT\n")
        return None
