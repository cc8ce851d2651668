"""A real daemon on free ports and throw-away state, for tests, benchmarks and the demo.

The daemon is a process of its own, reached the way its users reach it. It is an async context
manager to be used inside a test, so that its end, with its checks, is part of the test.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, ClassVar, Self

import aiohttp

from tests.fork_server import ForkedProcess, ForkServer

Setting = str | int | float | Path

PROGRAM = ("-m", "atlas_supervisor")
INHERITED = ("PATH", "HOME", "LANG", "SSL_CERT_FILE", "SSL_CERT_DIR")
START_SECONDS = 20.0
FUZZ_SECONDS = float(os.environ.get("ATLAS_FUZZ_SECONDS", "0"))
"""How long `scripts/fuzz` has each fuzzer go on; 0 in the suite."""
STOP_SECONDS = 20.0
_CURVE = ("-pkeyopt", "ec_paramgen_curve:P-256")
# Below what Linux hands out to clients by itself: no outgoing connection takes a port away.
PORTS = range(10240, 32768)
# Processes that run side by side each choose from ports of their own: between choosing and
# binding a port, another one could take it.
SHARES = 64
_RECENT_PORTS: deque[int] = deque(maxlen=128)
DEFAULTS: Mapping[str, Setting] = {
    "DEPLOY_MODE": "bluegreen",
    "HEALTH_INTERVAL_SECONDS": 0.05,
    "KEEP_WARM_SECONDS": 0,
    "GUARD_SECONDS": 0,
    "SMOKE_FILE": "",
}


def inherited() -> dict[str, str]:
    """Return the part of this process's environment that daemons are started with."""
    return {key: os.environ[key] for key in INHERITED if key in os.environ}


def bundled_worker(*, idle_grace: float) -> dict[str, Setting]:
    """Return the setting that runs the bundled worker with this idle grace, in seconds.

    By way of `env`, because WORKER_ENV_FILE takes no variable that the supervisor's own prefix
    reserves.
    """
    return {"WORKER_COMMAND": f"env ATLAS_IDLE_GRACE_SECONDS={idle_grace} python -m atlas_worker"}


def free_ports(count: int) -> list[int]:
    """Return that many different TCP ports without a listener, on any address.

    None of them was returned just before: its daemon may not have bound it yet.
    """
    found: list[int] = []
    share, _ = _claim_share()
    while len(found) < count:
        port = random.choice(PORTS[share::SHARES])  # noqa: S311 - two runs at once must differ, no more
        with socket.socket() as trial:
            try:
                trial.bind(("", port))
            except OSError:
                continue
        if port not in found and port not in _RECENT_PORTS:
            found.append(port)
    _RECENT_PORTS.extend(found)
    return found


@cache
def _claim_share() -> tuple[int, socket.socket]:
    """Claim a share of the ports for this process, whichever run of the suite it belongs to.

    The claim is an abstract Unix socket: it leaves no file and ends with the process.
    """
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    atexit.register(claim.close)
    for share in range(SHARES):
        with suppress(OSError):
            claim.bind(f"\0atlas-test-ports-{share}")
            return share, claim
    raise AssertionError(f"{SHARES} processes with daemons under test run already")


def write_release(folder: Path, version: str, files: Mapping[str, str] | None = None) -> Path:
    """Make a folder that a worker can run from: `VERSION`, and what else is given. Returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in {"VERSION": f"{version}\n", **(files or {})}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Make a self-signed certificate and its key; return their files."""
    certificate, key = folder / "certificate.pem", folder / "certificate-key.pem"
    subject = ("-subj", "/CN=worker", "-keyout", str(key), "-out", str(certificate))
    subprocess.run(
        ("openssl", "req", "-x509", "-nodes", "-newkey", "ec", *_CURVE, *subject),
        check=True,
        capture_output=True,
    )
    return certificate, key


def processes_with(variable: str, value: str) -> list[int]:
    """Return the pids of all living processes that were started with this in their environment."""
    wanted = f"{variable}={value}".encode()
    found = []
    for name in os.listdir("/proc"):  # noqa: PTH208  # hundreds, in each look of a test that waits
        if not name.isdecimal():
            continue
        try:
            with open(f"/proc/{name}/environ", "rb", buffering=0) as file:  # noqa: PTH123  # see above
                environment = file.read()
        except OSError:
            continue  # it is gone, or not ours
        if wanted in environment and wanted in environment.split(b"\0"):
            found.append(int(name))
    return found


async def eventually(condition: Callable[[], Any], *, within: float = 10.0, what: str = "") -> None:
    """Wait until a condition holds, or fail with `what` was waited for."""
    deadline = asyncio.get_running_loop().time() + within
    while not condition():
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"not within {within} s: {what or condition}")
        await asyncio.sleep(0.02)


@dataclass(frozen=True)
class Answer:
    """What the control API answered."""

    status: int
    json: Any
    headers: Mapping[str, str]


class DaemonProcess:
    """`python -m atlas_supervisor` with settings of its own below `folder`.

    `settings` are keys of atlas.env over the quick defaults, `worker_env` is what the workers get
    besides, `version` and `files` what is in their directory. `code` runs in place of the program,
    which it changes and runs. `program` are arguments that make Python run the daemon: with them
    it is always a Python of its own, started anew.
    Use `running()`; `start` and `stop` are for tests that restart it.
    """

    fork_server: ClassVar[ForkServer | None] = None
    """Where there is one (tests/conftest.py), daemons without a `program` are forked from it."""
    check_at_end: ClassVar[Callable[[DaemonProcess], Awaitable[None]] | None] = None
    """What `running` has to check before it stops the daemon (tests/faults/conftest.py)."""

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Setting] | None = None,
        *,
        worker_env: Mapping[str, Setting] | None = None,
        version: str = "v1",
        files: Mapping[str, str] | None = None,
        program: Sequence[str] | None = None,
        code: str | None = None,
    ) -> None:
        self.program = program
        self.code = code
        self.folder = folder.resolve()
        self.state_dir = self.folder / "state"
        self.worker_directory = write_release(self.folder / "work", version, files)
        ports = free_ports(4)
        self.settings: dict[str, Setting] = {
            "ACTIVE_PORT": ports[0],
            "STAGING_PORT": ports[1],
            "PUBLIC_PORT": ports[2],
            "CONTROL_PORT": ports[3],
            "STATE_DIR": self.state_dir,
            "WORKER_DIRECTORY": self.worker_directory,
            **DEFAULTS,
            **(settings or {}),
        }
        if worker_env is not None:
            path = self.folder / "worker.env"
            path.write_text("".join(f"{key}={value}\n" for key, value in worker_env.items()))
            self.settings["WORKER_ENV_FILE"] = path
        self.env_file = self.folder / "atlas.env"
        self.environment: dict[str, str] = {}
        """Variables that the next daemon gets besides."""
        self.process: asyncio.subprocess.Process | ForkedProcess | None = None
        self._open = AsyncExitStack()
        self._unix: aiohttp.ClientSession | None = None

    @classmethod
    @asynccontextmanager
    async def running(
        cls, folder: Path, settings: Mapping[str, Setting] | None = None, **more: Any
    ) -> AsyncIterator[Self]:
        """Start a daemon, and stop it at the end: in time, with exit code 0, nothing left over."""
        daemon = cls(folder, settings, **more)
        try:
            await daemon.start()
            yield daemon
            if cls.check_at_end is not None and daemon.runs:
                await cls.check_at_end(daemon)
            await daemon.stop()
        except BaseException as error:
            error.add_note(daemon.story())
            raise
        finally:
            await daemon.clean_up()

    @property
    def pid(self) -> int:
        assert self.process is not None, "the daemon has not been started"
        return self.process.pid

    @property
    def runs(self) -> bool:
        """Whether the daemon was started and has not ended."""
        return self.process is not None and self.process.returncode is None

    @property
    def public_port(self) -> int:
        return int(str(self.settings["PUBLIC_PORT"]))

    @property
    def control_port(self) -> int:
        return int(str(self.settings["CONTROL_PORT"]))

    @property
    def token(self) -> str:
        """The bearer token for TCP."""
        return (self.state_dir / "control.token").read_text().strip()

    # The process.

    def write_settings(self) -> None:
        """Write the env file as `start` does."""
        lines = (f'{key}="{value}"\n' for key, value in self.settings.items())
        self.env_file.write_text("".join(lines))

    async def start(self) -> None:
        """Start the daemon and wait until an active worker takes traffic."""
        await self.launch()
        await self.until_ready()

    async def launch(self) -> asyncio.subprocess.Process | ForkedProcess:
        """Start the daemon, and return its process at once."""
        await self.stop_clients()  # of the daemon before
        self.write_settings()
        with (self.folder / "daemon.out").open("ab") as output:
            self.process = await self._launch(output)
        return self.process

    async def _launch(self, output: IO[bytes]) -> asyncio.subprocess.Process | ForkedProcess:
        environment = {**inherited(), **self.environment}
        arguments = ("--env-file", str(self.env_file))
        code = None if self.code is None else ("-c", self.code)
        if self.program is None and self.fork_server is not None:
            return await self.fork_server.fork(
                (*(code or PROGRAM), *arguments),
                folder=self.folder,
                environment=environment,
                outputs=(output.fileno(), output.fileno()),
            )
        return await asyncio.create_subprocess_exec(
            *(sys.executable, *(self.program or code or PROGRAM), *arguments),
            cwd=self.folder,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )

    async def until_ready(self) -> None:
        assert self.process is not None
        deadline = asyncio.get_running_loop().time() + START_SECONDS
        last = "no answer yet"
        while True:
            if self.process.returncode is not None:
                raise AssertionError(f"the daemon ended with {self.process.returncode}")
            if asyncio.get_running_loop().time() > deadline:
                raise AssertionError(f"not ready within {START_SECONDS} s: {last}")
            try:
                answer = await self.request("GET", "/readyz")
            except (OSError, aiohttp.ClientError) as error:
                last = repr(error)
            else:
                # A worker of the daemon before may serve already.
                if answer.status == 200 and await self._has_fresh_worker():
                    return
                last = f"{answer.status} {answer.json}"
            await asyncio.sleep(0.02)

    async def _has_fresh_worker(self) -> bool:
        slots = (await self.status())["slots"]
        return any((slot["role"], slot["state"]) == ("active", "running") for slot in slots)

    async def kill(self) -> None:
        """Kill the daemon by SIGKILL. Its workers live on."""
        assert self.process is not None, "the daemon has not been started"
        self.process.kill()
        await self.process.wait()
        await self.stop_clients()

    async def stop_clients(self) -> None:
        """Let go of connections to the daemon, for instance because it is gone."""
        await self._open.aclose()
        self._unix = None

    async def stop(self) -> None:
        """End the daemon as its users do, and check that nothing is left of it."""
        await self.stop_clients()
        if self.process is None:
            return
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = await asyncio.wait_for(self.process.wait(), STOP_SECONDS)
        except TimeoutError:
            raise AssertionError(f"the daemon did not stop within {STOP_SECONDS} s") from None
        self.process = None
        assert code == 0, f"the daemon ended with {code}"
        left = self.leftovers()
        assert not left, f"processes left over: {left}"
        assert not self.end_keeper(), "the keeper of the sockets is left over"

    async def clean_up(self) -> None:
        """Leave nothing behind, whatever happened; what should be gone by now is killed."""
        await self.stop_clients()
        if self.process is not None and self.process.returncode is None:
            self.process.terminate()
            try:
                await asyncio.wait_for(self.process.wait(), STOP_SECONDS)
            except TimeoutError:
                self.process.kill()
                await self.process.wait()
        self.end_keeper()
        for pid in self.leftovers():
            try:
                handle = os.pidfd_open(pid)
                try:
                    if pid in self.leftovers():  # still the one that was meant
                        signal.pidfd_send_signal(handle, signal.SIGKILL)
                finally:
                    os.close(handle)
            except ProcessLookupError:
                continue

    def end_keeper(self) -> bool:
        """End the process that keeps the sockets for the next daemon; return whether there is one.

        A daemon that stops has ended it.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as keeper:
            keeper.settimeout(STOP_SECONDS)
            try:
                folder = os.open(self.state_dir, os.O_PATH | os.O_DIRECTORY)
                try:
                    keeper.connect(f"/proc/self/fd/{folder}/keeper.sock")
                finally:
                    os.close(folder)
            except OSError:
                return False
            keeper.send(b"end")
            with suppress(ConnectionResetError):
                while keeper.recv(4096):
                    pass
        return True

    def leftovers(self) -> list[int]:
        """Return the pids of this daemon's workers that are alive."""
        return processes_with("ATLAS_STATE_DIR", str(self.state_dir))

    def story(self) -> str:
        """Return the ends of what the daemon and its workers wrote, for a failure's report."""
        paths = [self.folder / "daemon.out", *sorted((self.state_dir / "logs").glob("*"))]
        return "\n".join(f"--- {path.name}\n{last_lines(path)}" for path in paths if path.is_file())

    # The control API.

    async def request(self, method: str, path: str, **more: Any) -> Answer:
        """Ask over the Unix socket. `more` goes to aiohttp: `json`, `params`, `headers`."""
        if self._unix is None:
            # A socket's path may have 107 bytes; by way of a descriptor any folder is near.
            folder = os.open(self.state_dir, os.O_PATH | os.O_DIRECTORY)
            self._open.callback(os.close, folder)
            connector = aiohttp.UnixConnector(f"/proc/self/fd/{folder}/supervisor.sock")
            session = aiohttp.ClientSession("http://localhost", connector=connector)
            self._unix = await self._open.enter_async_context(session)
        return await answered(self._unix, method, path, **more)

    async def request_tcp(
        self, method: str, path: str, *, token: str | None = None, **more: Any
    ) -> Answer:
        """Ask over TCP; with no token given, the daemon's own one."""
        headers = {"Authorization": f"Bearer {self.token if token is None else token}"}
        base = f"http://127.0.0.1:{self.control_port}"
        async with aiohttp.ClientSession(base, headers=headers) as session:
            return await answered(session, method, path, **more)

    async def status(self) -> dict[str, Any]:
        """Return `GET /deploy/status`."""
        answer = await self.request("GET", "/deploy/status")
        assert answer.status == 200, answer
        status: dict[str, Any] = answer.json
        return status

    async def deploy(self, release: str | None = None, **query: Any) -> Answer:
        """Deploy, wait for the outcome (unless `wait="false"`) and return it, good or bad."""
        body = {} if release is None else {"json": {"release": release}}
        return await self.request("POST", "/deploy/bluegreen", params=query, **body)

    async def ended(self, deploy_id: str, *, within: float = 60.0) -> dict[str, Any]:
        """Wait until the last of a deploy is over, the drain included, and return its record."""
        deadline = asyncio.get_running_loop().time() + within
        while True:
            answer = await self.request("GET", f"/deploy/{deploy_id}")
            assert answer.status == 200, answer
            record: dict[str, Any] = answer.json
            if record["phase"] == "ended":
                return record
            if asyncio.get_running_loop().time() > deadline:
                raise AssertionError(f"not ended within {within} s: {record}")
            await asyncio.sleep(0.05)


async def answered(session: aiohttp.ClientSession, method: str, path: str, **more: Any) -> Answer:
    """Send one request of the control API; the answer's body is parsed where it is JSON."""
    async with session.request(method, path, **more) as response:
        parsed = response.content_type == "application/json"
        content = await response.json() if parsed else await response.text()
        return Answer(response.status, content, dict(response.headers))


def last_lines(path: Path, count: int = 40) -> str:
    """Return the end of a log, without what the harness's own wait for readiness left in it."""
    lines = path.read_text(errors="replace").splitlines()
    return "\n".join([line for line in lines if "/readyz" not in line][-count:])


def missing(*programs: str) -> list[str]:
    """Return which of these programs are not installed."""
    return [program for program in programs if shutil.which(program) is None]


def fuzzed(cases: int, at_once: int = 1) -> Iterator[dict[int, random.Random]]:
    """Yield seeded generators in groups; `scripts/fuzz` has it go on for a time, from any seed.

    A failing test names its seed: the key in the group.
    """
    seed = int(os.environ.get("ATLAS_FUZZ_SEED", "1"))
    deadline, done = time.monotonic() + FUZZ_SECONDS, 0
    while done < cases or time.monotonic() < deadline:
        numbers = range(seed + done, seed + done + at_once)
        done += at_once
        yield {number: random.Random(number) for number in numbers}  # noqa: S311 - no secrets
