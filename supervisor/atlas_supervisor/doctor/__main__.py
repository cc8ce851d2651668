"""`python -m atlas_supervisor.doctor`: prints a report as JSON; `atlasctl doctor` shows it."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from shlex import quote

from atlas_supervisor.config import load_settings
from atlas_supervisor.config.settings import FIELD_OF_KEY
from atlas_supervisor.doctor.engine import engine
from atlas_supervisor.doctor.finding import Finding, Report, fail, report, warn
from atlas_supervisor.doctor.installation import HiddenError, installation, running_daemon
from atlas_supervisor.doctor.machine import machine
from atlas_supervisor.errors import SettingsError
from atlas_supervisor.workers.standalone import nothing_recorded


def examine(env_file: Path | None) -> Report:
    """Return the report on this machine and, with an env file, on its installation."""
    if env_file is None:
        mend = "atlasctl init writes one for the application in this folder."
        return report([warn("settings", "there is no atlas.env here", mend), *machine(None)])
    try:
        settings = load_settings(env_file.absolute(), os.environ, nothing_recorded)
    except SettingsError as error:
        faults = [fail("settings", fault, _mend(fault, env_file)) for fault in error.faults]
        return report([*faults, *machine(None)])
    try:
        daemon = running_daemon(settings.state_dir)
    except HiddenError:
        daemon = None
    found = [*overridden(), *installation(settings, env_file), *engine(settings)]
    return report([*found, *machine(daemon.pid if daemon else None)])


def _mend(fault: str, env_file: Path) -> str:
    if os.strerror(errno.EACCES) in fault and os.geteuid() != 0:
        command = f"sudo atlasctl doctor --env-file {quote(str(env_file))}"
        return f"If the daemon is another user's: {command}"
    return f"Correct it in {env_file}; atlas-supervisor --check checks it again."


def overridden() -> Iterator[Finding]:
    """Yield a finding if this shell's variables win over the file; a service does not get them."""
    if keys := [key for key in FIELD_OF_KEY if key in os.environ]:
        message = f"the environment of this shell wins over the file: {', '.join(keys)}"
        yield warn("settings", message, f"unset {' '.join(keys)}")


def main(arguments: list[str]) -> int:
    """Print the report; return 0 if nothing fails, else 1."""
    found = examine(Path(arguments[0]) if arguments else None)
    print(found.model_dump_json())  # noqa: T201  # its reader is a program
    return int(any(each.status == "fail" for each in found.findings))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
