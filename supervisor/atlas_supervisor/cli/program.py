"""Runs the daemon's own program for a verb that needs its knowledge of files and settings.

The client imports nothing of the daemon: it starts quickly, and works from anywhere. What only the
daemon's code can say is asked of it in a process of its own (docs/adr/0079).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

DAEMON, DOCTOR = "atlas_supervisor", "atlas_supervisor.doctor"
_SECONDS = 60.0


def run_program(
    module: str, *arguments: str | Path, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a module of the daemon to its end. Raises `subprocess.TimeoutExpired` after a minute."""
    # -P: a file of the application in the current folder is not taken for a module.
    command: Sequence[str | Path] = (sys.executable, "-P", "-m", module, *arguments)
    return subprocess.run(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
