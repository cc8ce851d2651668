"""`atlasctl ramp`: show the ramp of the deploy in progress; pause it, resume it, take a step."""

from __future__ import annotations

import click
from rich.console import Group, RenderableType

from atlas_supervisor.cli.errors import FailedError
from atlas_supervisor.cli.render_ramp import ramp_lines
from atlas_supervisor.cli.session import Session, verb
from atlas_supervisor.cli.terminal import safe
from atlas_supervisor.cli.words import Record, mapping, ramp_now

_ACTIONS = ("pause", "resume", "advance")


@verb
@click.argument("action", type=click.Choice(_ACTIONS), required=False)
async def ramp(session: Session, action: str | None) -> None:
    """Show the ramp of the deploy in progress, or steer it.

    `pause` stops its clock, `resume` goes on, `advance` takes the next step now. `atlasctl switch`
    gives the new version all the traffic at once, `atlasctl abort` none.
    """
    if action is None:
        status = session.expect(await session.daemon.get("/deploy/status"))
        last = mapping(status.get("last_deploy"))
        if last.get("phase") != "ramp":
            raise FailedError("No deploy ramps now.", "`atlasctl show` shows the last one's ramp.")
        answer = await session.daemon.get(f"/deploy/{last['deploy_id']}")
        session.report(answer, lambda data: _view(session, mapping(data.get("ramp"))), "ramp")
        return
    answer = await session.daemon.post("/deploy/ramp", body={"action": action})
    session.report(answer, lambda data: _view(session, data), "deploy_id")


def _view(session: Session, ramp: Record) -> RenderableType:
    return Group(*ramp_lines(session.screen, ramp), safe(ramp_now(ramp), "cyan"))
