"""Looks for applications in a folder: the table of kinds, the most explicit one first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from atlas_supervisor.cli.init.application import KIT, Application, environment_of, is_installed
from atlas_supervisor.cli.init.python_application import python_applications
from atlas_supervisor.cli.init.written_command import dockerfile, go, node, procfile

KINDS = (procfile, python_applications, node, go, dockerfile)
LOOKED_FOR = (
    "a Procfile with a web process; FastAPI, Starlette, Litestar, Quart, Django, Flask or aiohttp "
    "in Python files; package.json; go.mod; a Dockerfile with a command"
)


def detect(folder: Path) -> list[Application]:
    """Return the applications of a folder, the likeliest first. Nothing in it is run."""
    found = [each for kind in KINDS for each in kind(folder)]
    return list({each.command: each for each in reversed(found)}.values())[::-1]


def missing(folder: Path, application: Application) -> Iterator[str]:
    """Yield what has to be installed before the command can run."""
    if not application.needs and "atlas_worker" not in application.command:
        return
    environment = environment_of(folder)
    pip = "pip" if environment is None else f"{environment}/bin/pip"
    if not is_installed(folder, KIT):
        yield f"The worker kit is not in {environment}: {pip} install FOLDER, that of ATLAS"
    for name in application.needs:
        if not is_installed(folder, name):
            where = "here" if environment is None else f"in {environment}"
            yield f"{name} is not installed {where}: {pip} install {name}"
