"""`atlasctl mode`: the operator's reset after a fallback, and the switch to one worker."""

from __future__ import annotations

import click
from rich.console import RenderableType
from rich.text import Text

from supervisor.cli.client import Record
from supervisor.cli.session import Session, verb
from supervisor.cli.terminal import OK, safe

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
