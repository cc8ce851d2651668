"""Daemons and workers forked from a process that has imported theirs: a start costs a fork.

`tests/fork_server_process.py` is that process, one of each kind for a run of tests. The fork
becomes what `python -m …` would be, with its own session, environment, folder and files.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

PROGRAM = Path(__file__).with_name("fork_server_process.py")
CLOSE_SECONDS = 10.0


class ForkedProcess:
    """A forked process, used like an `asyncio.subprocess.Process`."""

    def __init__(self, pid: int, ended: asyncio.Task[int]) -> None:
        self.pid = pid
        self.stdout: asyncio.StreamReader | None = None
        self._ended = ended

    @property
    def returncode(self) -> int | None:
        """The exit status, or the negative number of the signal that ended it; None: it runs."""
        return self._ended.result() if self._ended.done() else None

    async def wait(self) -> int:
        """Wait until it has ended, and return its exit status."""
        return await asyncio.shield(self._ended)

    async def communicate(self) -> tuple[bytes, None]:
        """Read the rest of its output, wait until it has ended, and return that output."""
        output = b"" if self.stdout is None else await self.stdout.read()
        await self.wait()
        return output, None

    def send_signal(self, number: int) -> None:
        """Send a signal. Raises ProcessLookupError if it has ended."""
        if self.returncode is not None:
            raise ProcessLookupError
        os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """Starts the server at the first request, unless `start` was called.

    Ended by `close`, or by the end of this process. Forks of this process use the same server.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind  # which is what it imports
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._starter = 0

    @property
    def pid(self) -> int:
        """The server's process, once it was started."""
        assert self._process is not None
        return self._process.pid

    def start(self, environment: Mapping[str, str]) -> socket.socket:
        """Start the server if it was not, and return the socket for requests."""
        if self._control is None:
            self._control, theirs = pair()
            self._starter = os.getpid()
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, str(PROGRAM), str(theirs.fileno()), self._kind],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
        return self._control

    async def fork(
        self,
        program: Sequence[str],
        *,
        folder: Path,
        environment: Mapping[str, str],
        outputs: tuple[int, int],
        sockets: Sequence[int] = (),
    ) -> ForkedProcess:
        """Start a process in `folder`. `program` is what Python would be given: `-m` or `-c`, ….

        `outputs` are where it writes to, and it has `sockets` at descriptor 3 and up.
        """
        control = self.start(environment)
        ours, theirs = pair()
        ours.setblocking(False)
        request = {
            "program": list(program),
            "folder": str(folder),
            "environment": dict(environment),
        }
        files = [theirs.fileno(), *outputs, *sockets]
        with theirs:
            socket.send_fds(control, [json.dumps(request).encode()], files)
        try:
            pid = await _number(ours)
        except BaseException:
            ours.close()
            raise
        return ForkedProcess(pid, asyncio.create_task(_last_number(ours)))

    def close(self) -> None:
        """End the server, if this process has started it. Daemons that still run go on."""
        if self._control is None or self._process is None:
            return
        self._control.close()
        if self._starter == os.getpid():
            self._process.terminate()  # it may still be importing, and has nothing to finish
        self._process.wait(CLOSE_SECONDS)  # in a fork this returns at once: it is not its child


DAEMONS = ForkServer("daemon")
WORKERS = ForkServer("worker")


def pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected sockets that keep messages apart."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


async def _number(answers: socket.socket) -> int:
    """Return the next number that the server sends about a process."""
    answer = await asyncio.get_running_loop().sock_recv(answers, 4)
    if not answer:
        raise AssertionError("the fork server has ended")
    return int.from_bytes(answer, signed=True)


async def _last_number(answers: socket.socket) -> int:
    with answers:
        return await _number(answers)
