"""`atlasctl switch`, `abort` and `mode`: steer the deploy in progress, set the mode."""

from __future__ import annotations

import click
from rich.console import RenderableType
from rich.text import Text

from atlas_supervisor.cli.render_deploy import findings, outcome, step_line
from atlas_supervisor.cli.session import Session, refusal, verb
from atlas_supervisor.cli.terminal import OK, safe
from atlas_supervisor.cli.words import AFTERWARDS, Record

_MEANING = {
    "single": "deploys are disabled",
    "bluegreen": "deploys are enabled",
}


@verb
async def switch(session: Session) -> None:
    """Switch all traffic to the version that waits for it, or ramps.

    With shares in TRAFFIC_RAMP, a version that waits is ramped first.
    """
    await steer(session, "switch", "switching")


@verb
async def abort(session: Session) -> None:
    """Abort the deploy in progress, at any step before the switch."""
    await steer(session, "abort", "stopping the new version")


@verb
@click.argument("mode", type=click.Choice(list(_MEANING)))
async def mode(session: Session, mode: str) -> None:
    """Enable deploys (`bluegreen`) or disable them (`single`).

    `bluegreen` is the reset after a failed deploy.
    """
    answer = await session.daemon.post("/deploy/mode", body={"mode": mode})

    def view(data: Record) -> RenderableType:
        chosen = str(data["mode"])
        meaning = _MEANING.get(chosen, "set")
        return Text.assemble(session.screen.sign(OK), " ", safe(f"mode is {chosen}: {meaning}"))

    session.report(answer, view, "mode")


async def steer(session: Session, action: str, doing: str, body: Record | None = None) -> Record:
    """Request `action` and show its outcome; return the deploy's record if it was done."""
    session.parting = (
        f"Interrupted. If the {action} has started, it continues: see `atlasctl status`."
    )
    screen, path = session.screen, f"/deploy/{action}"
    if session.json:
        answer = await session.daemon.post(path, body=body, patience=None)
        session.report_json(answer, "deploy_id")
        return answer.data
    with screen.waiting(lambda: doing):
        answer = await session.daemon.post(path, body=body, patience=None)
    record = answer.data
    if answer.ok:
        session.expect(answer, "deploy_id")
        screen.conclude(outcome(screen, record, ok=True))
        return record
    for step in record.get("steps") or []:
        if not step.get("ok") and step.get("name") not in AFTERWARDS:
            screen.print(step_line(screen, step), *findings(screen, step))
    raise refusal(answer)
