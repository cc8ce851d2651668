"""`atlasctl switch`, `abort`, `rollback`: an operator's word on the deploy that is there.

`atlasctl mode`: the operator's reset after a fallback, and the switch to one worker.
"""

from __future__ import annotations

from contextlib import suppress

import click
from rich.console import RenderableType
from rich.text import Text

from atlas_supervisor.cli.client import Record
from atlas_supervisor.cli.errors import FailedError
from atlas_supervisor.cli.render_deploy import AFTERWARDS, findings, outcome, step_line
from atlas_supervisor.cli.session import Session, refusal, verb
from atlas_supervisor.cli.terminal import OK, safe


@verb
async def switch(session: Session) -> None:
    """Go ahead with the deploy that waits: it gets all the traffic."""
    await _decide(session, "switch", "switching")


@verb
async def abort(session: Session) -> None:
    """Give up the deploy in progress, at any step before the switch."""
    await _decide(session, "abort", "stopping the new version")


@verb
async def rollback(session: Session) -> None:
    """Go back to the version before.

    It takes the traffic at once if it is still warm; else its release is launched and has to
    pass the gates again.
    """
    record = await _decide(session, "rollback", "going back to the version before")
    if session.json or record.get("result") != "rolled_back":
        return  # what was launched again has told its version and port
    with suppress(FailedError):  # it is done, whether or not we can tell what serves now
        status = session.expect(await session.daemon.get("/deploy/status"), "active_port")
        serving = f"  {status.get('version')} on port {status['active_port']} has all the traffic"
        session.screen.print(safe(serving))


async def _decide(session: Session, action: str, doing: str) -> Record:
    """Ask for `action` and show how it came out; return the deploy's record if it was done."""
    session.parting = (
        f"Interrupted. The {action} goes on if it has begun; `atlasctl status` shows it."
    )
    screen = session.screen
    if session.json:
        answer = await session.daemon.post(f"/deploy/{action}", patience=None)
        session.report_json(answer, "deploy_id")
        return answer.data
    with screen.waiting(lambda: doing):
        answer = await session.daemon.post(f"/deploy/{action}", patience=None)
    record = answer.data
    if answer.ok:
        session.expect(answer, "deploy_id")
        screen.print(outcome(screen, record, ok=True))
        return record
    for step in record.get("steps") or []:
        if not step.get("ok") and step.get("name") not in AFTERWARDS:
            screen.print(step_line(screen, step), *findings(screen, step))
    raise refusal(answer)


_MEANING = {
    "single": "one worker, no deploys are taken",
    "bluegreen": "deploys are taken",
}


@verb
@click.argument("mode", type=click.Choice(list(_MEANING)))
async def mode(session: Session, mode: str) -> None:
    """Set the mode: `bluegreen` takes deploys, `single` refuses them."""
    answer = await session.daemon.post("/deploy/mode", body={"mode": mode})

    def view(data: Record) -> RenderableType:
        chosen = str(data["mode"])
        meaning = _MEANING.get(chosen, "set")
        return Text.assemble(session.screen.sign(OK), " ", safe(f"mode is {chosen}: {meaning}"))

    session.report(answer, view, "mode")
