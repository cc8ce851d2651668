"""Processes that are not our children: copies of their descriptors, and their end.

Worker processes outlive a daemon that is killed. The next daemon is not their parent: it can't
wait for them as for a child, and gets the listening sockets back by copying their descriptors.
"""

from __future__ import annotations

import asyncio
import ctypes
import os

from atlas_supervisor.system import procfs

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
    """A process that another one has started. It satisfies what `WorkerProcess` asks of a child."""

    def __init__(self, pid: int) -> None:
        """Watch the process. Raises ProcessLookupError if it is gone."""
        self.pid = pid
        self.returncode: int | None = None
        """Negative for the signal that ended it; 0 if that can't be known."""
        self._ended = asyncio.Event()
        self._handle = os.pidfd_open(pid)
        asyncio.get_running_loop().add_reader(self._handle, self._end)

    async def wait(self) -> int:
        """Wait until it has ended; it may still be a zombie that its parent has not reaped."""
        await self._ended.wait()
        return self.returncode or 0

    def _end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._handle)
        os.close(self._handle)
        status = procfs.exit_status(self.pid)
        self.returncode = 0 if status is None else os.waitstatus_to_exitcode(status)
        self._ended.set()
