"""`atlasctl traffic`: show and set the split between the active version and a waiting one."""

from __future__ import annotations

import click
from rich.console import Group, RenderableType

from atlas_supervisor.cli.canary import Share
from atlas_supervisor.cli.render_deploy import note
from atlas_supervisor.cli.session import Session, verb
from atlas_supervisor.cli.terminal import safe
from atlas_supervisor.cli.words import GO_AHEAD, Record

_KEEPS = {
    "connection": "each connection is drawn",
    "address": "a client address keeps its version while the share grows",
}


@verb
@click.argument("weight", type=Share(), required=False)
async def traffic(session: Session, weight: float | None) -> None:
    """Show how the traffic is split, or give the new version the share WEIGHT: 0.1 or 10%.

    Possible while a deploy that has passed its gates waits for its switch or ramps; a ramp is
    paused by that, and goes on from there with `atlasctl ramp resume`.
    """
    if weight is None:
        answer = await session.daemon.get("/deploy/traffic")
    else:
        answer = await session.daemon.post("/deploy/traffic", body={"staging_weight": weight})

    def view(data: Record) -> RenderableType:
        share = float(data["staging_weight"])
        lines = [
            f"{share:8.4g}  {data.get('version')} on {data.get('staging_slot')} (new)",
            f"{1 - share:8.4g}  {data.get('active_version')} (active)",
        ]
        sticky = str(data.get("sticky"))
        facts = [f"by {sticky}: {_KEEPS.get(sticky, sticky)}"]
        if testers := data.get("testers"):
            facts.append(f"{', '.join(map(str, testers))} always get {data.get('version')}")
        return Group(
            *map(safe, lines),
            *(safe(fact, "dim") for fact in facts),
            note(session.screen, "It ends with the switch or an abort.", GO_AHEAD),
        )

    session.report(answer, view, "staging_weight")
