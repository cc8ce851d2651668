"""`atlasctl switch`, `abort`, `rollback`: an operator's word on the deploy that is there."""

from __future__ import annotations

from supervisor.cli.records import findings, outcome, step_line
from supervisor.cli.session import Session, refusal, verb


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
    await _decide(session, "rollback", "going back to the version before")


async def _decide(session: Session, action: str, doing: str) -> None:
    session.parting = f"Interrupted. The {action} goes on if it has begun; `status` shows it."
    screen = session.screen
    if session.json:
        answer = await session.daemon.post(f"/deploy/{action}", patience=None)
        session.report_json(answer, "deploy_id")
        return
    with screen.waiting(lambda: doing):
        answer = await session.daemon.post(f"/deploy/{action}", patience=None)
    record = answer.data
    if answer.ok:
        session.expect(answer, "deploy_id")
        screen.print(outcome(screen, record, ok=True))
        return
    for step in record.get("steps") or []:
        if not step.get("ok"):
            screen.print(step_line(screen, step), *findings(screen, step))
    raise refusal(answer)
