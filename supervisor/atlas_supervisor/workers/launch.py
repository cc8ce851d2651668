"""Launches a worker: its environment, command, output and descriptors, until it is ready.

The environment is an allow-list, the operator's variables for workers, and the contract's. The
daemon's own may hold secrets, sockets and addresses that are not for workers.

The daemon does not start the worker's program directly: `launcher.py` places the descriptors
first, and then becomes the program.
"""

from __future__ import annotations

import os
import resource
import secrets
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import anyio

from atlas_supervisor.config import Settings, load_worker_env
from atlas_supervisor.errors import SettingsError
from atlas_supervisor.model.release import Release
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.model.socket_passing import SocketPassing
from atlas_supervisor.probes.health_probe import HttpProber
from atlas_supervisor.system.procfs import describe_listeners, tag_for
from atlas_supervisor.telemetry.sanitize import is_secret, keep_secret
from atlas_supervisor.traffic import InheritedSockets
from atlas_supervisor.traffic.listeners import foreign_listeners
from atlas_supervisor.workers.output import WorkerLog
from atlas_supervisor.workers.process import NotifySocket, WorkerProcess
from atlas_supervisor.workers.releases import missing
from atlas_worker import contract

LAUNCHER = Path(__file__).with_name("launcher.py")
FIRST_DESCRIPTOR = 3

_OPEN_FILES = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
"""The limit that the daemon was started with. Workers get it; the daemon raises its own."""

_RETRY_SECONDS = 0.05

ALLOWED = (
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TERM",
    "XDG_RUNTIME_DIR", "SSL_CERT_FILE", "SSL_CERT_DIR",
)  # fmt: skip
ALLOWED_PREFIX = "LC_"


class LaunchError(Exception):
    """The worker did not become ready; `detail` goes into the deploy's step."""

    def __init__(self, message: str, **detail: Any) -> None:
        super().__init__(message)
        self.detail = {"message": message, **detail}


class ReleaseGoneError(LaunchError):
    """The release's folder is gone, or another one is in its place."""


def worker_environment(
    settings: Settings,
    *,
    slot: SlotName,
    port: int,
    instance: str,
    release: Release,
    environ: Mapping[str, str] = os.environ,
) -> dict[str, str]:
    """Return the environment of one instance.

    Raises SettingsError if `WORKER_ENV_FILE` can't be used any more.
    """
    values = {
        name: value
        for name, value in environ.items()
        if name in ALLOWED or name.startswith(ALLOWED_PREFIX)
    }
    if settings.worker_env_file is not None:
        own = load_worker_env(settings.worker_env_file)
        keep_secret(value for key, value in own.items() if is_secret(key))
        values |= own
    values["PATH"] = _path(release.path, values.get("PATH", os.defpath))
    values |= {
        contract.ENV_SLOT: slot.value,
        contract.ENV_PORT: str(port),
        contract.ENV_INSTANCE: instance,
        contract.ENV_VERSION: release.version,
        contract.ENV_CHANNEL: settings.channel,
        contract.ENV_STATE_DIR: str(settings.state_dir),
        contract.ENV_SUPERVISOR_SOCKET: str(settings.state_dir / contract.SUPERVISOR_SOCKET),
        contract.ENV_DRAIN_TIMEOUT: f"{settings.drain_timeout_seconds:g}",
        "LLM_URL": settings.llm_url,
        "LLM_MODEL": settings.llm_model,
        "LLM_API_KEY_FILE": str(settings.llm_api_key_file or ""),
        "SCHEDULER_ENABLED": str(settings.scheduler_enabled).lower(),
        "MEMORY_ENABLED": str(settings.memory_enabled).lower(),
    }
    return values


def _path(release: Path, inherited: str) -> str:
    """Put the release's own environment first, then the daemon's interpreter."""
    own = [str(release / ".venv" / "bin")] if (release / ".venv" / "bin").is_dir() else []
    return os.pathsep.join([*own, str(Path(sys.executable).parent), inherited])


def new_instance_id(slot: SlotName) -> str:
    """Return a name that no other process has or will have."""
    return f"{slot}-{secrets.token_hex(8)}"


def launcher_command(
    descriptors: list[int], announced: int, tag: int, command: list[str]
) -> list[str]:
    """Return the command line of a process that becomes `command` with these descriptors.

    They land at 3 and onwards; the first `announced` of them are for socket activation.
    """
    return [
        sys.executable,
        *("-I", "-S", str(LAUNCHER)),
        ",".join(map(str, descriptors)) or "-",
        str(announced),
        str(_OPEN_FILES),
        str(tag),
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
    stop_signal: signal.Signals = signal.SIGTERM,
    tag: int = 0,
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
                launcher_command(descriptors, announced, tag, command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=release.path,
                env={**environment, contract.ENV_NOTIFY_SOCKET: notify.address, **names},
                start_new_session=True,
                pass_fds=descriptors,
            )
    except BaseException:
        notify.close()
        raise
    return WorkerProcess(
        name=name,
        slot=slot,
        release=release,
        process=process,
        notify=notify,
        stop_signal=stop_signal,
        tag=tag,
    )


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
    if why := await anyio.to_thread.run_sync(missing, release):
        raise ReleaseGoneError(why)
    if settings.socket_passing is SocketPassing.PORT:
        await anyio.to_thread.run_sync(_refuse_taken_port, port)
    command = settings.worker_argv(slot=slot, port=port, fd=FIRST_DESCRIPTOR)
    try:
        environment = worker_environment(
            settings, slot=slot, port=port, instance=name, release=release
        )
    except SettingsError as error:  # the file of extra variables was changed since the start
        raise LaunchError(f"the worker's environment can't be loaded: {error}") from error
    descriptor = await anyio.to_thread.run_sync(output.open, name)
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
            stop_signal=settings.stop_signal_number,
            tag=tag_for(str(settings.state_dir), name),
        )
    except Exception:
        output.close(name)
        raise
    finally:
        os.close(descriptor)


def _refuse_taken_port(port: int) -> None:
    """Raise LaunchError if another process listens where the worker is going to bind."""
    if found := foreign_listeners("127.0.0.1", port):
        raise LaunchError(f"port {port} is taken: {describe_listeners(found)}")


async def until_ready(
    instance: WorkerProcess, port: int, output: WorkerLog, prober: HttpProber, settings: Settings
) -> str:
    """Wait until it reports ready or answers on its port, and return which came first.

    Raises LaunchError, with the last lines of its output, if it dies or takes too long.
    """
    allowed = settings.ready_timeout_seconds
    how: list[str] = []

    async def first(waiter: Callable[[], Awaitable[Any]], text: str) -> None:
        await waiter()
        how.append(text)
        race.cancel_scope.cancel()

    async def answers() -> None:
        await _first_answer(port, prober, settings)

    with anyio.move_on_after(allowed):
        async with anyio.create_task_group() as race:
            race.start_soon(first, instance.exited.wait, "exited")
            race.start_soon(first, instance.reported.ready.wait, "worker reported ready")
            race.start_soon(first, answers, "worker answered")
    if instance.alive and how:
        return how[0]
    if instance.alive:
        message = f"it was not ready within {allowed:g} s"
    else:
        message = f"it {instance.exit_text} before it was ready"
    raise LaunchError(message, output=output.last_lines())


async def _first_answer(port: int, prober: HttpProber, settings: Settings) -> None:
    """Wait for an HTTP response of any status; the listener is open, so the request waits."""
    while True:
        result = await prober.probe(
            port, settings.health_path, timeout_seconds=settings.ready_timeout_seconds
        )
        if result.status is not None:
            return
        await anyio.sleep(_RETRY_SECONDS)
