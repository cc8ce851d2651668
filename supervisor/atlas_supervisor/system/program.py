"""The program that this process runs: how it was started, and how it is executed anew.

An exec keeps the pid, the children, the session, blocked and waiting signals, the lock, and every
descriptor that is passed. Everything else begins anew: threads, memory, descriptors that are closed
on exec. What the daemon changed of its process in between is given back: the limit of open files,
and the environment with the variables of `passed_sockets`.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from typing import NoReturn

from atlas_supervisor.system.failpoints import remaining, seam
from atlas_supervisor.system.passed_sockets import passing

_RELOADED = "ATLAS_RELOAD"
"""Our own pid, after a reload."""


@cache
def own_version() -> str:
    """Return the version that this process runs; an upgrade replaces what is read for it."""
    return version("atlas-supervisor")


def is_reloaded() -> bool:
    """Return whether this process ran an earlier daemon."""
    return os.environ.get(_RELOADED) == str(os.getpid())


class Program:
    """How this process was started; to be made before anything changes."""

    def __init__(self) -> None:
        self.reloaded = is_reloaded()
        # Not by the name that was typed: that may lead to another interpreter, without our modules.
        self.command = (sys.executable, *sys.orig_argv[1:])
        os.environ.pop(_RELOADED, None)
        self.environ = dict(os.environ)
        self._open_files = resource.getrlimit(resource.RLIMIT_NOFILE)

    @seam("exec", returns=False)
    def execute(self, descriptors: Mapping[str, int]) -> NoReturn:
        """Execute it anew in this process, with these descriptors by name.

        Raises OSError, and then nothing has changed.
        """
        raised = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            with passing(descriptors) as variables:
                resource.setrlimit(resource.RLIMIT_NOFILE, self._open_files)
                environ = {**self.environ, **variables, **remaining(), _RELOADED: str(os.getpid())}
                os.execve(self.command[0], self.command, environ)  # noqa: S606  # no shell wanted
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, raised)
