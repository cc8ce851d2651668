"""The text of a unit: the shipped one, with what is particular to this machine filled in.

Nothing here changes anything, or asks systemd.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from atlas_supervisor.config import Settings

ROOT = Path(__file__).resolve().parents[1]
UNIT, TEMPLATE = "atlas-supervisor.service", "atlas-supervisor@.service"
STATE_ROOT = Path("/var/lib")
HOMES = tuple(map(Path, ("/home", "/root", "/run/user")))
"""What ProtectHome= hides."""
TEMPORARY = tuple(map(Path, ("/tmp", "/var/tmp")))  # noqa: S108 - what PrivateTmp= hides
PRIVILEGED_PORTS = range(1, 1024)
LONGEST_STOP_SECONDS = 90
ROOT_CAPABILITIES = (
    *("CAP_SETUID", "CAP_SETGID", "CAP_CHOWN"),  # to start workers, and give them their folder
    *("CAP_KILL", "CAP_SYS_PTRACE", "CAP_SYS_RESOURCE"),  # to end, find and take them over
    *("CAP_DAC_OVERRIDE", "CAP_FOWNER"),  # to read their canary rings
)
"""What is left of root where workers are another user's."""
INSTALLED = "# Installed by {command}. Changes of your own: systemctl edit {name}"


@dataclass(frozen=True)
class Service:
    """What is installed."""

    name: str | None
    """The application, where there are several; None: the only one."""
    user: str
    env_file: Path
    settings: Settings
    writable: tuple[Path, ...] = ()
    """Folders that the application writes to, besides STATE_DIR."""

    @property
    def unit(self) -> str:
        """The unit's name."""
        return UNIT if self.name is None else TEMPLATE.replace("@", f"@{self.name}")

    @property
    def keeps_state_in_place(self) -> bool:
        """Whether systemd makes STATE_DIR: not with two users, as it would give all to one."""
        is_there = self.settings.state_dir.is_relative_to(STATE_ROOT)
        return is_there and self.settings.state_dir != STATE_ROOT and self.user != "root"


def word(path: Path | str) -> str:
    """Return the path as one word of a unit file."""
    text = str(path).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{text}"' if re.search(r"[\s'\"\\;]", text) else text


def argument(path: Path | str) -> str:
    """Return the path as one word of a command, where `$` is a variable."""
    return word(path).replace("$", "$$")


def unit_text(service: Service) -> str:
    """Return the whole unit."""
    settings = service.settings
    shipped = (ROOT / "scripts" / (UNIT if service.name is None else TEMPLATE)).read_text()
    stop_seconds = settings.drain_timeout_seconds + settings.stop_timeout_seconds
    env_file, python = argument(service.env_file), argument(ROOT / ".venv/bin/python")
    ending = f"%t/%N {stop_seconds:.0f} {settings.stop_signal}"
    changes = {
        "ExecStart": f"{python} -m atlas_supervisor --env-file {env_file}",
        "ExecReload": f"{python} -m atlas_supervisor.cli reload --env-file {env_file}",
        "ExecStopPost": f"/bin/sh {argument(ROOT / 'scripts/end-workers')} {ending}",
        "TimeoutStopSec": f"{max(LONGEST_STOP_SECONDS, stop_seconds + 30):.0f}",
        "User": service.user,
        **_state(service),
        **_capabilities(service),
    }
    added = list(_paths(service))
    if any(path.is_relative_to(home) for path in _shown(service) for home in HOMES):
        changes["ProtectHome"] = "tmpfs"
    if service.user == "root":
        added.append("SystemCallFilter=@chown @setuid")
    text = filled_in(shipped, changes, added)
    heading = INSTALLED.format(command="scripts/install-systemd", name=service.unit)
    return f"{heading}\n{text[text.index('[Unit]') :]}"


def _state(service: Service) -> dict[str, str | None]:
    if not service.keeps_state_in_place:
        return {"StateDirectory": None, "StateDirectoryMode": None}
    below = service.settings.state_dir.relative_to(STATE_ROOT)
    return {"StateDirectory": word(below)}


def _capabilities(service: Service) -> dict[str, str]:
    settings = service.settings
    ports = {settings.public_port, settings.control_port, *settings.slot_ports.values()}
    wanted = ["CAP_NET_BIND_SERVICE"] if any(port in PRIVILEGED_PORTS for port in ports) else []
    if service.user == "root":
        return {"CapabilityBoundingSet": " ".join([*ROOT_CAPABILITIES, *wanted])}
    if not wanted:
        return {}
    names = " ".join(wanted)
    return {"CapabilityBoundingSet": f"{names}\nAmbientCapabilities={names}"}


def filled_in(text: str, changes: Mapping[str, str | None], added: Iterable[str]) -> str:
    """Return a unit with other values; None removes a line. What is added ends the service."""
    lines = text.splitlines()
    for key, value in changes.items():
        (place,) = [index for index, line in enumerate(lines) if line.startswith(f"{key}=")]
        lines[place : place + 1] = [] if value is None else [f"{key}={value}"]
    end = lines.index("[Install]") - 1
    return "\n".join([*lines[:end], *added, *lines[end:]]) + "\n"


def _paths(service: Service) -> Iterable[str]:
    """Yield what makes the service's files visible and writable in its sandbox."""
    for path in _shown(service):
        yield f"BindReadOnlyPaths={word(path)}"
    for path in _outermost(_written(service)):
        yield f"{'BindPaths' if is_hidden(path) else 'ReadWritePaths'}={word(path)}"


def _shown(service: Service) -> list[Path]:
    """Return the folders that the sandbox would hide."""
    return _outermost(filter(is_hidden, [*_read(service), *_written(service)]))


def _written(service: Service) -> list[Path]:
    """Return the folders that are written to, without those that systemd makes."""
    settings, token = service.settings, service.settings.control_token_file
    written = [*service.writable]
    if not service.keeps_state_in_place:
        written.append(settings.state_dir)
    if not token.exists() and not token.is_relative_to(settings.state_dir):
        written.append(token.parent)
    return written


def _read(service: Service) -> Iterable[Path]:
    """Yield the folders with what the daemon and its workers read, by every name they have."""
    settings = service.settings
    files = (
        *(service.env_file, settings.worker_env_file, settings.smoke_file),
        *(settings.control_token_file, settings.control_tls_cert, settings.control_tls_key),
        *(settings.llm_api_key_file, settings.fleet_etcd_ca, settings.fleet_etcd_cert),
        *(settings.fleet_etcd_key, settings.fleet_etcd_password_file),
    )
    # Folders, because a file that is replaced would be another one than the one that is shown.
    folders = [path.parent for path in files if path is not None]
    folders += [ROOT, Path(sys.base_prefix), settings.worker_directory]
    folders += [settings.releases_dir] if settings.releases_dir is not None else []
    program = Path(settings.worker_command[0])
    if program.is_absolute():
        folders.append(program.parents[1] if len(program.parents) > 1 else program.parent)
    for folder in folders:
        yield folder
        yield Path(os.path.realpath(folder))


def is_hidden(path: Path) -> bool:
    """Return whether the sandbox hides the path."""
    return any(path.is_relative_to(folder) for folder in (*HOMES, *TEMPORARY))


def _outermost(paths: Iterable[Path]) -> list[Path]:
    """Return the paths, sorted, without those in another one of them."""
    found: list[Path] = []
    for path in sorted(set(paths)):
        if not any(path.is_relative_to(other) for other in found):
            found.append(path)
    return found
