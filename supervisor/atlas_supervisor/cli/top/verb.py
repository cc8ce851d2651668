"""`atlasctl top`: the verb, which imports the screen only where Textual is installed."""

from __future__ import annotations

import shlex
import sys

import click

from atlas_supervisor.cli.errors import FailedError, InterruptedByUserError
from atlas_supervisor.cli.session import Session, verb

_LIBRARY = "textual"


@verb
async def top(session: Session) -> None:
    """Show what runs on one screen that keeps itself up to date, and act from there.

    Whether users are served, the last change, slots, the deploy in progress, history, canaries,
    checks, logs and audit trail. Each action asks first and shows its command. `?` shows the keys.

    Needs the extra `tui` (Textual). The screen goes on while the daemon is away.
    """
    if session.json:
        raise click.UsageError("top is for people; `atlasctl status --json` is for programs.")
    try:
        from atlas_supervisor.cli.top.app import INTERRUPTED, Top  # noqa: PLC0415 - optional, slow
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] != _LIBRARY:
            raise
        raise FailedError("`atlasctl top` needs Textual.", f"Install it: {_command()}") from error
    if not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        raise click.UsageError("top needs a terminal; `atlasctl status` does not.")
    status = session.expect(await session.daemon.get("/deploy/status"), "mode", "slots")
    app = Top(session, status)
    how = await app.run_async()
    for run in app.runs:
        if run.succeeded is None:
            session.screen.print(run.session.parting)
    if how == INTERRUPTED:
        raise InterruptedByUserError("")
    if app.return_code:
        raise click.exceptions.Exit(app.return_code)


def _command() -> str:
    """Return the command that installs the extra, into the environment that this runs in."""
    from importlib.metadata import requires  # noqa: PLC0415 - slow, and seldom used

    wanted = next(
        (
            each.partition(";")[0].strip()
            for each in requires("atlas-supervisor") or ()
            if each.startswith(_LIBRARY)
        ),
        _LIBRARY,
    )
    return f'{shlex.quote(sys.executable)} -m pip install "{wanted}"'
