"""`atlasctl reload`: have the daemon replaced in place, and wait for the next one."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator

import click
from rich.console import Group, RenderableType
from rich.text import Text

from atlas_supervisor.cli.client import ApiResponse
from atlas_supervisor.cli.errors import FailedError, NoDaemonError
from atlas_supervisor.cli.render_deploy import note
from atlas_supervisor.cli.session import Session, refusal, verb
from atlas_supervisor.cli.terminal import BAD, OK, Screen, safe
from atlas_supervisor.cli.words import PENDING, PENDING_HINT, Record, mapping

_MOVING = ("CONTROL_HOST", "CONTROL_PORT", "CONTROL_TLS_CERT", "CONTROL_TLS_KEY")
"""What leads to the API over TCP."""
_STATE_DIR_HINT = "A reload can't change STATE_DIR: put it back if it was changed in the env file."
_CHECK_SECONDS = 60.0
_REPLACE_SECONDS = 60.0
_SAME_SECONDS = 15.0
"""A daemon that answers as before after this time was not replaced."""
_LOOK_SECONDS = 0.1


@verb
async def reload(session: Session) -> None:
    """Replace the daemon in place, after a check.

    The installed program and the env file are checked. Workers and connections stay. With a fault
    nothing changes, and the exit status is 1.
    """
    session.parting = "Interrupted. If the reload has started, it continues: see `atlasctl status`."
    with session.screen.waiting(lambda: "checking program and settings"):
        answer = await _requested(session)
    if not answer.ok:
        _show_refusal(session, answer)
    before = mapping(session.expect(answer, "before", "version")["before"])
    moving = [key for key in _MOVING if key in _changed(answer.data)]
    if moving and session.daemon.endpoint.socket is None:
        session.report(answer, lambda _: _moved(session.screen, moving))
        return
    with session.screen.waiting(lambda: "replacing the daemon"):
        daemon = await _replaced(session, before)
    if session.json:
        session.report_json(answer)
        return
    session.screen.conclude(Group(*_outcome(session.screen, answer.data, before, daemon)))


async def _requested(session: Session) -> ApiResponse:
    try:
        return await session.daemon.post("/supervisor/reload", patience=_CHECK_SECONDS)
    except NoDaemonError as error:
        if session.daemon.endpoint.socket is not None:  # it is in the STATE_DIR of the new settings
            error.hint = f"{error.hint} {_STATE_DIR_HINT}"
        raise


def _changed(reload: Record) -> list[str]:
    changed = reload.get("changed")
    return [str(key) for key in changed] if isinstance(changed, list) else []


def _moved(screen: Screen, keys: list[str]) -> RenderableType:
    """Return the outcome if the next daemon is to be found elsewhere."""
    text = f"the reload is in progress; {', '.join(keys)} changes, so --url may be another one then"
    return Text(" ").join((screen.sign(OK), safe(text)))


def _show_refusal(session: Session, answer: ApiResponse) -> None:
    """Show each line of a refusal, and end the call with exit 1."""
    error = mapping(answer.data.get("error"))
    lines = error.get("lines")
    if session.json:
        session.report_json(answer)
    if not isinstance(lines, list):
        raise refusal(answer)
    screen = Screen(sys.stderr)
    heading = safe("The reload was refused; nothing has changed.")
    screen.print(Text(" ").join((screen.sign(BAD), heading)))
    screen.print(*(safe(f"  {line}") for line in lines))
    raise click.exceptions.Exit(FailedError.exit_code)


async def _replaced(session: Session, before: Record) -> Record:
    """Return the next daemon's own facts. Raises FailedError if none comes."""
    began = time.monotonic()
    last: FailedError = FailedError("")
    while (passed := time.monotonic() - began) < _REPLACE_SECONDS:
        try:
            answer = await session.daemon.get("/deploy/status")
        except NoDaemonError as error:
            last = error
        else:
            daemon = mapping(answer.data.get("daemon"))
            if daemon and daemon.get("started_ts") != before.get("started_ts"):
                return daemon
            if answer.ok and passed > _SAME_SECONDS:
                raise FailedError(
                    "The daemon goes on as it was.",
                    "`atlasctl logs` shows why it was not replaced.",
                )
        await asyncio.sleep(_LOOK_SECONDS)
    raise last


def _outcome(
    screen: Screen, reload: Record, before: Record, daemon: Record
) -> Iterator[RenderableType]:
    version, old = daemon.get("version"), before.get("version")
    text = f"reloaded: ATLAS {version}, pid {daemon.get('pid')}"
    if version != old:
        text = f"reloaded: ATLAS {old} is now {version}, pid {daemon.get('pid')}"
    yield Text(" ").join((screen.sign(OK), safe(text)))
    yield safe(f"  settings changed: {', '.join(_changed(reload)) or 'none'}", "dim")
    if daemon.get("settings_pending"):
        yield note(screen, PENDING, PENDING_HINT)
