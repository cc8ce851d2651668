"""Processes that are not our children: copies of their descriptors, and their end.

Worker processes outlive a daemon that is killed. The next daemon is not their parent: it can't
wait for them as for a child, and gets the listening sockets back by copying their descriptors.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
from contextlib import suppress

from atlas_supervisor.system import procfs
from atlas_supervisor.system.procfs import ProcessIdentity

_PIDFD_GETFD = 438  # the same number on every architecture but Alpha


def copy_descriptor(pid: int, number: int) -> int:
    """Return a copy of another process's descriptor, closed on exec.

    It takes the right to trace the process. Raises OSError.
    """
    handle = os.pidfd_open(pid)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        copy = int(libc.syscall(_PIDFD_GETFD, handle, number, 0))
        if copy < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
    finally:
        os.close(handle)
    return copy


class ForeignProcess:
    """A process that we did not start. It satisfies what `WorkerProcess` asks of a child."""

    def __init__(self, pid: int, identity: ProcessIdentity | None = None) -> None:
        """Watch the process. Raises ProcessLookupError if it is gone, or another one by now.

        Its identity is checked once it is held: from then on its pid is not used again.
        """
        self.pid = pid
        self.returncode: int | None = None
        """Negative for the signal that ended it; None while it lives, and if it is unknown."""
        self._ended = asyncio.Event()
        self._handle = os.pidfd_open(pid)
        if identity is not None and not identity.exists:
            os.close(self._handle)
            raise ProcessLookupError(pid)
        asyncio.get_running_loop().add_reader(self._handle, self._end)

    def send_signal(self, number: int) -> None:
        """Signal it; no process that has its pid later."""
        if not self._ended.is_set():
            with suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(self._handle, number)

    async def wait(self) -> None:
        """Wait until it has ended; it may still be a zombie that its parent has not reaped."""
        await self._ended.wait()

    def _end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._handle)
        self.returncode = self._status()
        os.close(self._handle)
        self._ended.set()

    def _status(self) -> int | None:
        """Return its exit status; after a reload it is a child of this process."""
        with suppress(ChildProcessError):
            if found := os.waitid(os.P_PIDFD, self._handle, os.WEXITED | os.WNOHANG):
                exited = found.si_code == os.CLD_EXITED
                return found.si_status if exited else -found.si_status
        status = procfs.exit_status(self.pid)
        return None if status is None else os.waitstatus_to_exitcode(status)
