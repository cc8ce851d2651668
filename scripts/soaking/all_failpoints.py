"""Kills the daemon at every failpoint of the scenario, one after the other, under load."""

from __future__ import annotations

from functools import partial

from scripts.soaking import application
from scripts.soaking.report import WORKERS_STAY, Findings
from tests import failpoints
from tests.harness import DaemonProcess, Setting
from tests.invariants import INVARIANTS, fresh_workers, lasting_violations, workers_of
from tests.loadclient import Load

SETTINGS: dict[str, Setting] = {**application.SETTINGS, **failpoints.SETTINGS}


async def kill_everywhere(
    daemon: DaemonProcess,
    load: Load,
    caller: failpoints.CanaryCaller,
    findings: Findings,
    *,
    passings: int,
    only: str,
) -> None:
    """Kill at the first passings of each failpoint whose name has `only` in it."""
    run = partial(
        failpoints.pass_every_failpoint, daemon, partial(application.put_release, daemon), caller
    )
    counted = await failpoints.passings(daemon, run)
    await failpoints.reset(daemon)
    points = [
        f"{name}:{number}"
        for name, count in sorted(counted.items())
        for number in range(1, min(count, passings) + 1)
        if only in name
    ]
    findings.print(f"{counted.total()} passings of {len(counted)} failpoints; {len(points)} kills")
    judged = len(load.report.losses)
    for point in points:
        reached = await failpoints.killed_at(daemon, point, run)
        findings.acted("kills at a failpoint" if reached else "failpoints passed less often")
        if daemon.runs:  # it may pass the failpoint yet
            await daemon.kill()
        workers = workers_of(daemon)
        await daemon.start()
        findings.note(WORKERS_STAY, await fresh_workers(daemon, workers), point)
        losses = load.report.losses[judged:]
        judged += len(losses)
        found = await lasting_violations(daemon, losses, within=30)
        findings.check(tuple(INVARIANTS), found, point, daemon.story)
        await failpoints.reset(daemon)
