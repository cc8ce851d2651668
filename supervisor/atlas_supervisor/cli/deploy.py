"""`atlasctl deploy`: start a deploy, show its steps as they happen, and its result."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import aclosing, suppress

import click

from atlas_supervisor.cli.errors import FailedError
from atlas_supervisor.cli.follow import follow
from atlas_supervisor.cli.render_deploy import findings, outcome, step_line, suggestions, title
from atlas_supervisor.cli.render_ramp import ended_steps, ramp_lines
from atlas_supervisor.cli.session import Session, verb
from atlas_supervisor.cli.terminal import safe
from atlas_supervisor.cli.words import Record, doing, mapping, succeeded


@verb
@click.argument("release", required=False)
@click.option(
    "--dry-run", is_flag=True, help="Run the gates only (launch, smoke, health); no switch."
)
@click.option("--no-wait", is_flag=True, help="Return as soon as the deploy has started.")
async def deploy(session: Session, release: str | None, dry_run: bool, no_wait: bool) -> None:
    """Deploy RELEASE; without it, the worker directory.

    Exits with 0 if the deploy switched, waits for `switch`, or passed its dry run; else with 1.
    Ctrl-C stops watching only: the deploy continues.
    """
    session.parting = "Interrupted. If the deploy has started, it continues: see `atlasctl status`."
    wait = session.json and not no_wait  # without progress to show, the daemon does the waiting
    answer = await session.daemon.post(
        "/deploy/bluegreen",
        query={"wait": _flag(wait), "dry_run": _flag(dry_run)},
        body={} if release is None else {"release": release},
        patience=None,
        key=str(uuid.uuid4()),  # repeated after a lost answer, it starts no second deploy
    )
    if session.json:
        session.report_json(answer, "deploy_id")
        return
    record = session.expect(answer, "deploy_id")
    deploy_id = str(record["deploy_id"])
    session.parting = f"The deploy continues; `atlasctl show {deploy_id}` shows its result."
    session.screen.print(title(record))
    if no_wait:
        session.screen.print(safe(session.parting, "dim"))
        return
    record = await _watch(session, deploy_id)
    await _conclude(session, record)


async def _watch(session: Session, deploy_id: str) -> Record:
    """Print each step when it has ended; return the record once the deploy has its result."""
    record: Record = {}
    shown = ramped = 0

    async def refresh() -> None:
        """Read a ramp's numbers once a second; its events come at its steps alone."""
        nonlocal record
        while True:
            await asyncio.sleep(1)
            if record.get("phase") == "ramp" and session.screen.is_terminal:
                with suppress(FailedError):
                    answer = await session.daemon.get(f"/deploy/{deploy_id}")
                    record = answer.data if answer.ok else record

    refreshing = asyncio.create_task(refresh())
    try:
        with session.screen.waiting(lambda: doing(record)):
            async with aclosing(follow(session, deploy_id)) as records:
                async for record in records:
                    ramp = mapping(record.get("ramp"))
                    lines = ramp_lines(session.screen, ramp, ended=True, after=ramped)
                    session.screen.print(*lines)
                    ramped = ended_steps(ramp)
                    for step in record["steps"][shown:]:
                        shown += 1
                        session.screen.print(step_line(session.screen, step))
                        if not step.get("ok"):
                            session.screen.print(*findings(session.screen, step))
    finally:
        refreshing.cancel()
    return record


async def _conclude(session: Session, record: Record) -> None:
    ok = succeeded(record)
    session.screen.conclude(outcome(session.screen, record, ok=ok))
    if ok:
        return
    with suppress(FailedError):  # the result is shown even without suggestions
        status = session.expect(await session.daemon.get("/deploy/status"))
        session.screen.print(*suggestions(session.screen, status))
    raise click.exceptions.Exit(FailedError.exit_code)


def _flag(value: bool) -> str:
    return "true" if value else "false"
