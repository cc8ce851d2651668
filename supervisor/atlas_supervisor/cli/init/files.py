"""Writes the files of an application's folder: whole or not at all, and over none that is there."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from dotenv import dotenv_values

from atlas_supervisor.cli.errors import FailedError
from atlas_supervisor.cli.init.application import HEALTH_PATHS, Application

SMOKE_FILE = "smoke.toml"
_PORT_KEYS = ("PUBLIC_PORT", "ACTIVE_PORT", "STAGING_PORT", "CONTROL_PORT")
_PORTS, _BLOCK, _LAST = 8790, 10, 8990
_MODE = 0o644


def settings_text(application: Application, ports: Mapping[str, str]) -> str:
    """Return the content of `atlas.env`: what differs from the defaults."""
    values = {"DEPLOY_MODE": "bluegreen", "WORKER_COMMAND": application.command}
    if application.path != HEALTH_PATHS[0]:
        values["HEALTH_PATH"] = application.path
    values |= {**application.settings, **ports}
    lines = [f"{key}={value}" for key, value in values.items()]
    return "\n".join(
        [
            f"# {application.kind}, found in {application.source}. Written by atlasctl init.",
            "# `atlas-supervisor --check` prints all settings, with the defaults of the others.",
            *lines,
            "",
        ]
    )


def smoke_text(application: Application) -> str:
    """Return the content of `smoke.toml`: one request."""
    return (
        "# What a release must pass before it gets a client. Add what must never break.\n"
        "# The format: docs/worker-contract.md, smoke tests.\n"
        "\n"
        "[[http]]\n"
        f'name = "{application.path} answers"\n'
        f'path = "{application.path}"\n'
    )


def ports_for(env_file: Path) -> dict[str, str]:
    """Return the ports to set: those of a file that is replaced, since its daemon may have them.

    Else none if the default ones are free, or the next four that are.
    """
    if env_file.is_file():
        before: Mapping[str, str | None] = {}
        with suppress(OSError, UnicodeDecodeError):
            before = dotenv_values(env_file, interpolate=False)
        return {key: port for key in _PORT_KEYS if (port := before.get(key))}
    for first in range(_PORTS, _LAST, _BLOCK):
        ports = range(first, first + len(_PORT_KEYS))
        if all(map(_is_free, ports)):
            return {} if first == _PORTS else dict(zip(_PORT_KEYS, map(str, ports), strict=True))
    return {}


def _is_free(port: int) -> bool:
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):
            trial.bind(("127.0.0.1", port))
            return True
    return False


def refuse_existing(folder: Path, names: Iterable[str]) -> None:
    """Raise FailedError if one of these is there."""
    there = [name for name in names if (folder / name).exists() or (folder / name).is_symlink()]
    if there:
        raise _there_already(folder, there)


def write_files(folder: Path, files: Mapping[str, str], *, force: bool) -> None:
    """Write each file as a whole. Raises FailedError if one is there, or the folder is closed."""
    try:
        with tempfile.TemporaryDirectory(prefix=".atlas-init-", dir=folder) as fresh:
            for name, text in files.items():
                _write(Path(fresh) / name, text)
            for name in files:
                if force:
                    (Path(fresh) / name).replace(folder / name)
                else:
                    os.link(Path(fresh) / name, folder / name)  # unlike a rename, replaces nothing
    except FileExistsError as error:
        raise _there_already(folder, [Path(str(error.filename2)).name]) from error
    except OSError as error:
        raise FailedError(f"{folder} can't be written: {error.strerror}.") from error


def _there_already(folder: Path, names: list[str]) -> FailedError:
    verb = "is" if len(names) == 1 else "are"
    return FailedError(
        f"{' and '.join(names)} {verb} in {folder} already; nothing was written.",
        "--force replaces what is there.",
    )


def _write(path: Path, text: str) -> None:
    with path.open("x", encoding="utf-8") as file:
        os.fchmod(file.fileno(), _MODE)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
