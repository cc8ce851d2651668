"""`atlasctl init`: looks at a folder, writes its settings, checks them, and tries them out."""

from __future__ import annotations

import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import click
from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from atlas_supervisor.cli.deploy import deploy
from atlas_supervisor.cli.endpoint import ENV_FILE, ConnectionOptions, checkout
from atlas_supervisor.cli.errors import FailedError
from atlas_supervisor.cli.init.application import Application
from atlas_supervisor.cli.init.detect import LOOKED_FOR, detect, missing
from atlas_supervisor.cli.init.files import (
    SMOKE_FILE,
    ports_for,
    refuse_existing,
    settings_text,
    smoke_text,
    write_files,
)
from atlas_supervisor.cli.init.python_source import unparsable
from atlas_supervisor.cli.program import checked_settings
from atlas_supervisor.cli.reload import reload
from atlas_supervisor.cli.terminal import NOTE, OK, Screen, safe
from atlas_worker.contract import SUPERVISOR_SOCKET

_MOST_BROKEN = 3
UNIT_FILE = "atlas-supervisor.service"


@click.command()
@click.argument(
    "folder",
    default=".",
    type=click.Path(exists=True, file_okay=False, readable=True, path_type=Path),
)
@click.option("--yes", "-y", is_flag=True, help="Ask nothing: take the likeliest application.")
@click.option("--unit", is_flag=True, help="Write the systemd unit as well, from a checkout.")
@click.option("--force", is_flag=True, help="Replace files that are there.")
def init(folder: Path, *, yes: bool, unit: bool, force: bool) -> None:
    """Write atlas.env and smoke.toml for the application in FOLDER.

    Reads the folder and runs nothing of it. Then the settings are checked; if a daemon runs on
    them, they are tried out by a dry run.
    """
    folder = folder.absolute()
    screen = Screen()
    if not force:
        refuse_existing(folder, [ENV_FILE, SMOKE_FILE, *([UNIT_FILE] if unit else [])])
    installer = _installer() if unit else None
    try:
        found = detect(folder)
    except OSError as error:
        raise FailedError(f"{error.filename} can't be read: {error.strerror}.") from error
    application = _chosen(screen, folder, found, yes=yes)
    files = {
        ENV_FILE: settings_text(application, ports_for(folder / ENV_FILE)),
        SMOKE_FILE: smoke_text(application),
    }
    write_files(folder, files, force=force)
    screen.print(*_written(screen, folder, application))
    settings = checked_settings(folder / ENV_FILE)
    screen.print(screen.line(OK, "the settings are valid"))
    if installer is not None:
        write_files(folder, {UNIT_FILE: _unit_text(installer, folder)}, force=force)
        screen.print(screen.line(OK, f"wrote {UNIT_FILE}"))
    gaps = [*missing(folder, application)]
    screen.print(*(screen.line(NOTE, note) for note in (*gaps, *application.notes)))
    if not gaps and _daemon_runs(folder, settings):
        _try_out(folder, yes=yes)
    else:
        screen.print(Text(), *_next_steps(folder, settings, unit=unit))


def _where_to_look(folder: Path) -> str:
    """Name files that may have one and can't be parsed, and then the kinds looked for."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    broken = [*islice(unparsable(folder), _MOST_BROKEN)]
    first = f"Python {version} can't parse {'; '.join(broken)}. " if broken else ""
    return (
        f"{first}Looked for: {LOOKED_FOR}. For any other one write WORKER_COMMAND into atlas.env: "
        "docs/worker-contract.md."
    )


def _chosen(screen: Screen, folder: Path, found: list[Application], *, yes: bool) -> Application:
    """Return the application to write settings for; asks if there are several."""
    if not found:
        raise FailedError(f"No application was found in {folder}.", _where_to_look(folder))
    if len(found) == 1 or yes:
        screen.print(safe(f"{found[0].kind} application in {found[0].source}"))
        if len(found) > 1:
            others = ", ".join(f"{each.kind} in {each.source}" for each in found[1:])
            screen.print(safe(f"also there: {others}", "dim"))
        return found[0]
    if not sys.stdin.isatty():
        raise click.UsageError("There are several applications; --yes takes the likeliest.")
    for number, each in enumerate(found, 1):
        screen.print(safe(f"{number}  {each.kind} in {each.source}: {each.command}"))
    number = click.prompt("Which one", type=click.IntRange(1, len(found)), default=1)
    return found[number - 1]


def _written(screen: Screen, folder: Path, application: Application) -> Iterator[RenderableType]:
    yield screen.line(OK, f"wrote {ENV_FILE}")
    text = (folder / ENV_FILE).read_text()
    for line in text.splitlines():
        if not line.startswith("#"):
            yield Padding(safe(line, "dim"), (0, 0, 0, 4), expand=False)
    yield screen.line(OK, f"wrote {SMOKE_FILE}: GET {application.path} answers 200")


def _installer() -> Path:
    """Return the program that knows the unit. Raises FailedError if this is no checkout."""
    for root in checkout():
        return root / "scripts/install-systemd"
    raise FailedError(
        "--unit needs a checkout of the repository, which has the unit.",
        "There: sudo ./scripts/install-systemd --env-file FILE --now",
    )


def _unit_text(installer: Path, folder: Path) -> str:
    """Return the unit as it would be installed. Raises FailedError."""
    done = subprocess.run(
        (installer, "--print", "--env-file", folder / ENV_FILE),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise FailedError(f"The unit can't be made: {done.stderr.strip()}")
    return done.stdout


def _daemon_runs(folder: Path, settings: dict[str, str]) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(folder / settings["STATE_DIR"] / SUPERVISOR_SOCKET))
        except OSError:
            return False
    return True


def _try_out(folder: Path, *, yes: bool) -> None:
    """Let the daemon take the settings, and run the gates on them."""
    if not yes and sys.stdin.isatty() and not click.confirm("Reload, and start a dry run?", True):
        return
    context = click.get_current_context()
    context.ensure_object(ConnectionOptions).env_file = folder / ENV_FILE
    context.invoke(reload)
    context.invoke(deploy, release=None, dry_run=True, no_wait=False)


def _next_steps(folder: Path, settings: dict[str, str], *, unit: bool) -> Iterator[RenderableType]:
    env_file = shlex.quote(str(folder / ENV_FILE))
    option = "" if folder == Path.cwd() else f" --env-file {env_file}"
    yield safe("next:", "dim")
    if unit:
        yield safe(f"  sudo ./scripts/install-systemd --env-file {env_file} --now")
    else:
        yield safe(f"  atlas-supervisor{option}")
    yield safe(f"  atlasctl deploy{option}    in a second terminal, after each change")
    public, control = settings["PUBLIC_PORT"], settings["CONTROL_PORT"]
    yield safe(f"clients: port {public}, dashboard: port {control}", "dim")
