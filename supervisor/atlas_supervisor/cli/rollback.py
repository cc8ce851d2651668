"""`atlasctl rollback`: go back to an earlier version, or show what can be gone back to."""

from __future__ import annotations

import sys
from contextlib import suppress

import click
from rich.console import RenderableType

from atlas_supervisor.cli.errors import FailedError
from atlas_supervisor.cli.listing import listing
from atlas_supervisor.cli.session import Session, verb
from atlas_supervisor.cli.steer import steer
from atlas_supervisor.cli.terminal import Screen, safe
from atlas_supervisor.cli.units import MISSING, local_time
from atlas_supervisor.cli.words import Record, objects


@verb
@click.argument("version", required=False)
@click.option(
    "--fast",
    is_flag=True,
    help="Skip smoke tests and health gate; possible if the version ran without complaint within "
    "24 h.",
)
@click.option("--yes", is_flag=True, help="Do not ask before going back past an irreversible one.")
@click.option(
    "--list", "lists", is_flag=True, help="Show what can be gone back to, and do nothing."
)
async def rollback(
    session: Session, version: str | None, fast: bool, yes: bool, lists: bool
) -> None:
    """Go back to VERSION, one of the last five that served; without it to the one before.

    It gets the traffic at once if it is still warm; otherwise its release is launched and has to
    pass the gates again.
    """
    if lists:
        answer = await session.daemon.get("/deploy/rollback")
        session.report(answer, lambda data: _table(session.screen, data), "versions")
        return
    if not (yes or session.json) and sys.stdin.isatty():
        await _confirm(session, version)
    body: Record = {} if version is None else {"version": version}
    body |= {"fast": True} if fast else {}
    goal = "the previous version" if version is None else f"version {version}"
    record = await steer(session, "rollback", f"going back to {goal}", body or None)
    if session.json or record.get("result") != "rolled_back":
        return  # the outcome of a launched release names version and port already
    with suppress(FailedError):  # the rollback is done, even if the status can't be read
        status = session.expect(await session.daemon.get("/deploy/status"), "active_port")
        serving = f"  {status.get('version')} on port {status['active_port']} has all the traffic"
        session.screen.print(safe(serving))


async def _confirm(session: Session, version: str | None) -> None:
    """Ask before the data may not suit the version; a daemon that can't tell is not asked for."""
    with suppress(FailedError):
        answer = await session.daemon.get("/deploy/rollback")
        for each in objects(session.expect(answer, "versions")["versions"]):
            is_meant = version in (each.get("version"), each.get("release"))
            past = each.get("past_irreversible")
            if (each.get("next") if version is None else is_meant) and past:
                question = (
                    f"{each.get('version')} served before irreversible "
                    f"{', '.join(map(str, past))}, and may not suit the data any more. Go back?"
                )
                click.confirm(safe(question).plain, abort=True, err=True)
                return


def _table(screen: Screen, data: Record) -> RenderableType:
    found = objects(data.get("versions"))
    if not found:
        return safe("no earlier version has served", "dim")
    rows = [
        [
            safe(each.get("version")),
            safe(each.get("release") or MISSING),
            safe(local_time(each.get("last_served_ts")), "dim"),
            safe(takes_over(each)),
            safe(objections(each), "dim"),
        ]
        for each in found
    ]
    return listing(screen, ("version", "release", "served until", "takes over", "note"), rows)


def takes_over(each: Record) -> str:
    """Return how soon an earlier version takes over, in words."""
    if each.get("gone"):
        return "not at all"
    if each.get("warm"):
        return "at once"
    return "once launched (--fast)" if each.get("fast") else "once it has passed its gates"


def objections(each: Record) -> str:
    """Return the objections to it, the worst first."""
    past = ", ".join(map(str, each.get("past_irreversible") or []))
    notes = (
        each.get("gone"),
        f"it served before irreversible {past}" if past else None,
        None if each.get("warm") or each.get("gone") else each.get("why_not_fast"),
        "the previous one" if each.get("next") else None,
    )
    return "; ".join(str(note) for note in notes if note)
