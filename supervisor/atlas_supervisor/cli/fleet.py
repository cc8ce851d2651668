"""`atlasctl fleet …`: show and steer a fleet, from any of its machines."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import click
from rich.console import Group, RenderableType
from rich.table import Table

from atlas_supervisor.cli.canary import FeatureName
from atlas_supervisor.cli.fleet_follow import follow_rollout
from atlas_supervisor.cli.fleet_status import fleet_view, rollout_line
from atlas_supervisor.cli.fleet_words import kills_in_words
from atlas_supervisor.cli.render_deploy import note
from atlas_supervisor.cli.session import Session, Verbs, verb
from atlas_supervisor.cli.terminal import BAD, OK, Screen, safe
from atlas_supervisor.cli.words import Record, mapping, objects

ALL = "all"

_WAVE = re.compile(r"(\d{1,9})|(\d{1,3}(?:\.\d{1,9})?)%", re.ASCII)
_WAVES_HINT = "write 1,10%,100% for one host, then a tenth of them, then all."
_HOST = re.compile(r"[^/\x00-\x1f\x7f]{1,255}")


class Waves(click.ParamType[list[float]]):
    """The waves of a rollout: counts of hosts, and shares of all of them in percent."""

    name = "waves"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[float]:
        """Return the waves as the API takes them; fail on anything else, with a suggestion."""
        if isinstance(value, list):
            return value
        parts = ["".join(part.split()) for part in str(value).split(",")]
        waves = [self._wave(part, param, ctx) for part in parts]
        if parts[-1] == "1":
            self.fail("the last wave is all hosts, and 1 is one host: write 100%.", param, ctx)
        if "100%" in parts[:-1]:
            self.fail("100% is all hosts: no wave comes after it.", param, ctx)
        return waves

    def _wave(self, part: str, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = _WAVE.fullmatch(part)
        number = float(found[1] or found[2]) if found else 0.0
        if found is None or not number or (found[2] and number > 100):
            what = "more than all" if number > 100 else "neither a number of hosts nor a share"
            self.fail(f"{part!r} is {what}: {_WAVES_HINT}", param, ctx)
        return number / 100 if found[2] else number


class HostName(click.ParamType[str]):
    """The name of a host."""

    name = "host"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name; fail on anything that can't be one."""
        if not _HOST.fullmatch(str(value)):
            self.fail(f"{value!r} is not the name of a host.", param, ctx)
        return str(value)


_follow = click.option(
    "--follow", is_flag=True, help="Show each host as it begins and ends, until the rollout ends."
)


@verb
@click.option("--all", "everything", is_flag=True, help="List every host, however many.")
async def status(session: Session, everything: bool) -> None:
    """Show who serves, the rollout, and what to do.

    With more than twenty hosts those that need attention are listed.
    """
    answer = await session.daemon.get("/fleet")
    view = partial(fleet_view, session.screen, everything=everything)
    session.report(answer, view, "fleet", "hosts")


@verb
@click.argument("release")
@click.option(
    "--max-unavailable",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="How many hosts may be unavailable at a time.",
)
@click.option(
    "--waves",
    type=Waves(),
    default="1,10%,100%",
    show_default=True,
    metavar="WAVES",
    help="How many hosts have it at the end of each wave: hosts, or percent of all.",
)
@_follow
async def rollout(
    session: Session, release: str, max_unavailable: int, waves: list[float], follow: bool
) -> None:
    """Roll RELEASE out over all hosts, wave after wave.

    Every host deploys it with its own gates. A host begins only while every other one is alive and
    its last deploy passed. The first failure halts the rollout everywhere.
    """
    body = {"release": release, "max_unavailable": max_unavailable, "waves": waves}
    await _change_rollout(session, "/fleet/rollout", body, follow=follow)


@verb
async def pause(session: Session) -> None:
    """Pause the rollout.

    No further host begins; those that deploy go on to their end.
    """
    await _change_rollout(session, "/fleet/rollout/pause")


@verb
@_follow
async def resume(session: Session, follow: bool) -> None:
    """Resume a paused or halted rollout.

    The host that failed is tried again, first.
    """
    await _change_rollout(session, "/fleet/rollout/resume", follow=follow)


@verb
@click.option("--rollback", "back", is_flag=True, help="As `fleet rollback`: they go back.")
async def abort(session: Session, back: bool) -> None:
    """Abort the rollout for good.

    Hosts that have the release keep it.
    """
    await _change_rollout(session, f"/fleet/rollout/{'rollback' if back else 'abort'}")


@verb
@_follow
async def rollback(session: Session, follow: bool) -> None:
    """Take the rollout back.

    The hosts that have the release go back to the version before it, by the same rules.
    """
    await _change_rollout(session, "/fleet/rollout/rollback", follow=follow)


@verb
@click.argument("host", type=HostName())
@click.option(
    "--generation",
    type=click.IntRange(min=1),
    required=True,
    metavar="GENERATION",
    help="The generation of its slot, as `atlasctl fleet status` shows it.",
)
async def break_slot(session: Session, host: str, generation: int) -> None:
    """Free the slot of a HOST that died with it.

    The rollout halts. Be sure that it is dead: a host that still deploys is then one too many.
    """
    session.parting = "Interrupted. `atlasctl fleet status` shows whether the slot is free."
    answer = await session.daemon.post(
        "/fleet/break", body={"host": host, "generation": generation}
    )
    done = f"{host}'s slot of generation {generation} is free"
    session.report(answer, partial(_done, session.screen, done), "semaphore")


@verb
@click.argument("feature", metavar="FEATURE|all", type=FeatureName())
async def kill(session: Session, feature: str) -> None:
    """Switch FEATURE, or all, off on every host.

    Only a reset ends it. It holds without etcd and over restarts. On one machine alone: `atlasctl
    canary set FEATURE 0`.
    """
    session.parting = "Interrupted. `atlasctl fleet status` shows whether it is killed."
    body = {"feature": None if feature == ALL else feature}
    answer = await session.daemon.post("/fleet/kill", body=body)
    session.report(answer, partial(_killed, session.screen), "kills")


@verb
async def reset(session: Session) -> None:
    """End all kills.

    Each feature has the share again that its host gives it.
    """
    session.parting = "Interrupted. `atlasctl fleet status` shows whether the kills are ended."
    answer = await session.daemon.post("/fleet/reset")
    session.report(answer, partial(_killed, session.screen), "kills")


@verb
@click.argument("host", type=HostName())
async def forget(session: Session, host: str) -> None:
    """Forget a HOST that is gone for good.

    While one is missing, no other one begins.
    """
    answer = await session.daemon.post("/fleet/forget", body={"host": host})
    done = f"{host} is forgotten; if it comes back, it joins again"
    session.report(answer, partial(_done, session.screen, done), "hosts")


break_slot.name = "break"  # a word of Python's own


@click.group(
    cls=Verbs,
    verbs=(status, rollout, pause, resume, abort, rollback, break_slot, kill, reset, forget),
)
def fleet() -> None:
    """Show and steer a fleet: many machines, one rollout, one kill switch.

    Any machine of the fleet will do. Without FLEET_ETCD_ENDPOINTS there is no fleet.
    """


async def _change_rollout(
    session: Session, path: str, body: Record | None = None, *, follow: bool = False
) -> None:
    session.parting = (
        "Interrupted. What was begun goes on: `atlasctl fleet status` shows it, `atlasctl fleet "
        "pause` stops it."
    )
    answer = await session.daemon.post(path, body=body)
    if follow and answer.ok:
        await follow_rollout(session, answer)
    else:
        session.report(answer, partial(_steered, session.screen), "rollout")


def _steered(screen: Screen, fleet: Record) -> RenderableType:
    """Return the rollout after an operator's action, and what an operator should know."""
    current = mapping(fleet.get("rollout"))
    grid = Table.grid(padding=(0, 1))
    sign = BAD if current.get("state") == "halted" else OK
    grid.add_row(screen.sign(sign), rollout_line(current))
    if current.get("now"):
        grid.add_row("", safe(current["now"], "dim"))
    notes = [
        note(screen, each.get("message"), each.get("action"))
        for each in objects(fleet.get("suggestions"))
    ]
    return Group(grid, *notes)


def _killed(screen: Screen, fleet: Record) -> RenderableType:
    """Return the kill switch afterwards; hosts acknowledge it within seconds."""
    grid = Table.grid(padding=(0, 1))
    grid.add_row(screen.sign(OK), safe(kills_in_words(mapping(fleet.get("kills"))), "bold"))
    grid.add_row("", safe("`atlasctl fleet status` shows which hosts do not know it yet.", "dim"))
    notes = [
        note(screen, each.get("message"), each.get("action"))
        for each in objects(fleet.get("suggestions"))
        if each.get("code") == "killed_unknown_feature"
    ]
    return Group(grid, *notes)


def _done(screen: Screen, text: str, _: Record) -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    grid.add_row(screen.sign(OK), safe(text))
    return grid
