"""Runs the daemon's own program for a verb that needs its knowledge of files and settings.

The client imports nothing of the daemon: it starts quickly, and works from anywhere. What only the
daemon's code can say is asked of it in a process of its own (docs/adr/0079).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

from dotenv import dotenv_values

from atlas_supervisor.cli.errors import FailedError
from atlas_supervisor.cli.terminal import BAD, Screen

DAEMON, DOCTOR = "atlas_supervisor", "atlas_supervisor.doctor"
_SECONDS = 60.0


def checked_settings(env_file: Path) -> dict[str, str]:
    """Return the effective settings as the daemon's check prints them.

    Raises FailedError, after a line for each fault, if they are refused.
    """
    done = run_program(DAEMON, "--check", "--env-file", env_file)
    if done.returncode:
        screen = Screen(sys.stderr)
        screen.print(*(screen.line(BAD, fault) for fault in done.stderr.splitlines()))
        raise FailedError(
            f"{env_file} is refused, see above.", "Correct it, then: atlas-supervisor --check"
        )
    values = dotenv_values(stream=StringIO(done.stdout), interpolate=False)
    return {key: value or "" for key, value in values.items()}


def run_program(module: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a module of the daemon to its end. Raises FailedError after a minute."""
    # -P: a file of the application in the current folder is not taken for a module.
    command: Sequence[str | Path] = (sys.executable, "-P", "-m", module, *arguments)
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise FailedError(f"{module} did not end within {_SECONDS:.0f} s.") from error
