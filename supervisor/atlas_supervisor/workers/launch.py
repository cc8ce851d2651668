"""Launches a worker: its environment, command, output and descriptors, until it is ready.

The environment is an allow-list, the operator's variables for workers, and the contract's. The
daemon's own may hold secrets, sockets and addresses that are not for workers.

The daemon does not start the worker's program directly: `launcher.py` places the descriptors
first, and then becomes the program.

A worker is ready once it has answered a request on its slot's own port. `READY=1` alone is a
claim: a program may listen elsewhere, or send it before its processes can answer.
"""

from __future__ import annotations

import hashlib
import os
import re
import resource
import secrets
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio

from atlas_supervisor.config import Settings, Sticky, load_worker_env
from atlas_supervisor.errors import SettingsError
from atlas_supervisor.model.release import Release
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.model.socket_passing import SocketPassing
from atlas_supervisor.probes.health_probe import HttpProber
from atlas_supervisor.system import procfs
from atlas_supervisor.system.account import Account
from atlas_supervisor.system.procfs import tag_for
from atlas_supervisor.system.text import escaped, keep_secret, secrets_in
from atlas_supervisor.system.threads import in_thread
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

_LONGEST_KEY = 8 * 1024
_RETRY_SECONDS = 0.05
_BOOT_SECONDS, _LATE_RETRY_SECONDS = 5.0, 0.5  # what is not up by then need not be seen at once
_REACHED_BY_LOOPBACK = {"127.0.0.1", "0.0.0.0", "::", "::ffff:127.0.0.1"}  # noqa: S104  # compared

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
    if settings.worker_account is not None:
        values.pop("XDG_RUNTIME_DIR", None)
        values |= settings.worker_account.environment
    if settings.worker_env_file is not None:
        own = load_worker_env(settings.worker_env_file)
        keep_secret(secrets_in(own))
        values |= own
    if settings.llm_api_key_file is not None:
        keep_secret([_beginning(settings.llm_api_key_file)])
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
    if settings.traffic_testers:
        values[contract.ENV_TESTERS] = ",".join(map(str, settings.traffic_testers))
    if settings.socket_passing is not SocketPassing.PORT:  # those see the relay's address
        secret = address_secret(settings).hex()
        keep_secret([secret])
        values |= {contract.ENV_ADDRESS_KEY: secret} if secret else {}
    return values


def address_secret(settings: Settings) -> bytes:
    """Return the secret for hashing clients' addresses; empty if they are not drawn.

    It is the same for all workers, over restarts, and does not tell the token that it is made of.
    """
    if settings.traffic_sticky is not Sticky.ADDRESS:
        return b""
    token = _beginning(settings.control_token_file)
    digest = hashlib.blake2b(token.encode(), digest_size=16, person=b"atlas addresses")
    return digest.digest() if token else b""


class LaunchSettings:
    """What a launch takes from the settings; the daemon's environment and releases are no part.

    The content of `WORKER_ENV_FILE` is that of the daemon's start, or of the last launch.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._nowhere = Release(name=None, path=settings.worker_directory, version="")
        self._variables: dict[str, str] = {}
        with suppress(SettingsError):  # it was changed since the settings were checked
            self.refresh()

    def refresh(self) -> None:
        """Read `WORKER_ENV_FILE` again. Raises SettingsError if it can't be used."""
        self._variables = worker_environment(
            self._settings,
            slot=SlotName.BLUE,
            port=0,
            instance="",
            release=self._nowhere,
            environ={},
        )

    def digest(self, release: Release) -> str:
        """Return a digest of the settings for a launch of the release."""
        settings = self._settings
        directory = str(settings.worker_directory) if release.name is None else ""
        variables = sorted(item for item in self._variables.items() if item[0] != "PATH")
        parts = (settings.worker_command, settings.worker_user, directory, variables)
        return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def _beginning(path: Path) -> str:
    """Return the text of a short file; of one that can't be read, nothing."""
    try:
        with path.open("rb") as file:
            return file.read(_LONGEST_KEY).decode(errors="replace").strip()
    except OSError:
        return ""


def _path(release: Path, inherited: str) -> str:
    """Put the release's own environment first, then the daemon's interpreter."""
    own = [str(release / ".venv" / "bin")] if (release / ".venv" / "bin").is_dir() else []
    return os.pathsep.join([*own, str(Path(sys.executable).parent), inherited])


def new_instance_id(slot: SlotName) -> str:
    """Return a name that no other process has or will have."""
    return f"{slot}-{secrets.token_hex(8)}"


def launcher_command(
    descriptors: list[int],
    announced: int,
    tag: int,
    command: list[str],
    account: Account | None,
) -> list[str]:
    """Return the command line of a process that becomes `command` with these descriptors.

    They land at 3 and onwards; the first `announced` of them are for socket activation. The
    process takes the account's rights, as root; the daemon's own program need not be open to it.
    """
    user = (account.uid, account.gid, *account.groups) if account else ()
    return [
        sys.executable,
        *("-I", "-S", str(LAUNCHER)),
        ",".join(map(str, descriptors)) or "-",
        str(announced),
        str(_OPEN_FILES),
        str(tag),
        ",".join(map(str, user)) or "-",
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
    account: Account | None = None,
) -> WorkerProcess:
    """Start a worker process and return it, not yet ready. Raises OSError.

    It prints to the descriptor `output`, which the caller closes.
    """
    notify = NotifySocket(name, account=account, held=True)  # until it is known who may report
    descriptors = [sock.fileno() for sock in (*inherited.named.values(), *inherited.spare)]
    names = {"LISTEN_FDNAMES": ":".join(inherited.named)} if announce and inherited.named else {}
    announced = len(inherited.named) if announce else 0
    try:
        with anyio.CancelScope(shield=True):  # else a process could be started and not be recorded
            process = await anyio.open_process(
                launcher_command(descriptors, announced, tag, command, account),
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
    if why := await in_thread(missing, release):
        raise ReleaseGoneError(why)
    if settings.socket_passing is SocketPassing.PORT:
        await in_thread(_refuse_taken_port, port)
    command = settings.worker_argv(slot=slot, port=port, fd=FIRST_DESCRIPTOR)
    try:
        environment = worker_environment(
            settings, slot=slot, port=port, instance=name, release=release
        )
    except SettingsError as error:  # the file of extra variables was changed since the start
        raise LaunchError(f"the worker's environment can't be loaded: {error}") from error
    descriptor = await in_thread(output.open, name)
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
            account=settings.worker_account,
        )
    except Exception:
        output.close(name)
        raise
    finally:
        os.close(descriptor)


def _refuse_taken_port(port: int) -> None:
    """Raise LaunchError if another process listens where the worker is going to bind."""
    if found := foreign_listeners("127.0.0.1", port):
        raise LaunchError(f"port {port} is taken: {procfs.describe_listeners(found)}")


class _FirstAnswer:
    """Waits for an HTTP response of any status, and keeps what was seen instead."""

    def __init__(self, port: int, prober: HttpProber, settings: Settings) -> None:
        self._port = port
        self._prober = prober
        self._settings = settings
        self.last_failure: str | None = None

    async def wait(self) -> None:
        """Return once there is an answer; the listener is open, so the request waits."""
        began = anyio.current_time()
        while True:
            result = await self._prober.probe(
                self._port,
                self._settings.health_path,
                timeout_seconds=self._settings.ready_timeout_seconds,
            )
            if result.status is not None:
                return
            self.last_failure = result.message
            soon = anyio.current_time() - began < _BOOT_SECONDS
            await anyio.sleep(_RETRY_SECONDS if soon else _LATE_RETRY_SECONDS)


_PORT_TAKEN = re.compile(r"address already in use|EADDRINUSE", re.IGNORECASE)


async def until_ready(
    instance: WorkerProcess, port: int, output: WorkerLog, prober: HttpProber, settings: Settings
) -> str:
    """Wait until it answers on its slot's port, and return how it became ready.

    Raises LaunchError, with the last lines of its output, if it dies or takes too long.
    """
    allowed, answered = settings.ready_timeout_seconds, False
    answer = _FirstAnswer(port, prober, settings)

    async def first(waiter: Callable[[], Awaitable[Any]]) -> None:
        await waiter()
        race.cancel_scope.cancel()

    async def answers() -> None:
        nonlocal answered
        await answer.wait()
        answered = True

    with anyio.move_on_after(allowed):
        async with anyio.create_task_group() as race:
            race.start_soon(first, instance.exited.wait)
            race.start_soon(first, answers)
    reported = instance.reported.ready.is_set()
    if instance.alive and answered:
        return "worker reported ready and answered" if reported else "worker answered"
    if instance.alive:
        seen = await in_thread(_where_it_listens, instance, port, settings)
        parts = [f"it was not ready within {allowed:g} s"]
        parts += ["it reported ready and did not answer"] if reported else []
        parts += [answer.last_failure] if answer.last_failure else []
        message = "; ".join((*parts, seen))
    else:
        message = f"it {instance.exit_text} before it was ready"
        left = await in_thread(instance.family)
        if left and instance.exit_status == 0:
            message += "; it went on in the background, and must stay in the foreground"
        if any(map(_PORT_TAKEN.search, output.last_lines())):
            message += f"; {_why_taken(port, settings)}"
    raise LaunchError(message, output=output.last_lines())


def _why_taken(port: int, settings: Settings) -> str:
    """Return why a worker could not bind a port, as it printed, and its remedy.

    No list of listeners shows why: the supervisor holds the port and does not listen.
    """
    own = "it must serve on the sockets that it inherits"
    if settings.socket_passing is SocketPassing.PORT:
        own = f"for {port}, which the supervisor reserves, it must set SO_REUSEADDR"
    return f"a port that it binds is taken: {own}; any other may be taken by the version that runs"


def _where_it_listens(instance: WorkerProcess, port: int, settings: Settings) -> str:
    """Return where the worker's processes listen, and where they should."""
    kind, expected = settings.socket_passing, f"127.0.0.1:{port}"
    if kind is not SocketPassing.PORT:
        what = "descriptors 3 and 4 (LISTEN_FDS), which lead"
        what = "descriptor 3, which leads" if kind is SocketPassing.FD else what
        expected = f"its inherited {what} to {expected}"
    try:
        found, paths = instance.foreign_listeners()
    except OSError as error:
        return f"where it listens is unknown ({error}); expected {expected}"
    if any(each.port == port and each.address in _REACHED_BY_LOOPBACK for each in found):
        return f"it listens on {expected} as expected"
    if not (found or paths):
        nowhere = "it listens nowhere" if kind is SocketPassing.PORT else "it listens nowhere else"
        return f"{nowhere}; expected {expected}"
    unix = [f"the Unix socket {escaped(path)}" for path in paths]
    places = ", ".join((*sorted({each.place for each in found}), *sorted(unix)))
    own = procfs.sockets_of(instance.pid)
    if kind is SocketPassing.ACTIVATION and found and not any(each.inode in own for each in found):
        places += " (in a child process: a start script must exec its server)"
    return f"it listens on {places}; expected {expected}"
