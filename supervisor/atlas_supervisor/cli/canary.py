"""`atlasctl canary …`: show and steer the canaries of features."""

from __future__ import annotations

import re
import uuid
from decimal import Decimal
from functools import partial
from typing import Any

import click

from atlas_supervisor.cli.canary_report import report_view, simulation_view
from atlas_supervisor.cli.canary_status import canaries, changed, restored
from atlas_supervisor.cli.client import ApiResponse
from atlas_supervisor.cli.errors import FailedError
from atlas_supervisor.cli.session import Session, Verbs, View, verb
from atlas_supervisor.cli.words import Record, mapping, objects

ACTIONS = ("start", "pause", "resume", "advance", "promote", "rollback")

_NAME = re.compile(r"[a-z][a-z0-9_]{0,99}", re.ASCII)
_SHARE = re.compile(r"(\d{1,20}(?:\.\d{0,20})?|\.\d{1,20})(\s*%)?", re.ASCII)
_TOO_OLD = (
    "This daemon has no feature canaries.",
    "It is of an earlier version; upgrade it.",
)


class FeatureName(click.ParamType[str]):
    """A feature's name; anything else could make the path of another request."""

    name = "feature"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name; fail on anything that can't be one."""
        if not _NAME.fullmatch(str(value)):
            self.fail(
                f"{value!r} is not the name of a feature: names have lower-case letters, digits "
                "and `_`. `atlasctl canary status` lists them.",
                param,
                ctx,
            )
        return str(value)


class Share(click.ParamType[float]):
    """A share of calls or connections: `0.1` or `10%`."""

    name = "percentage"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the share, 0 to 1; fail on anything else, with a suggestion."""
        found = _SHARE.fullmatch(str(value).strip())
        number = None if found is None else Decimal(found[1])
        if found is None or number is None:
            self.fail(f"{value!r} is not a share: write 0.1 or 10% for a tenth.", param, ctx)
        if found[2]:
            number /= 100
        if number > 1:
            meant = f"; did you mean {found[1]}%?" if not found[2] and number <= 100 else "."
            self.fail(
                f"{value!r} is more than all: a share is 0 to 1, or 0% to 100%{meant}",
                param,
                ctx,
            )
        return float(number)


@verb
async def status(session: Session) -> None:
    """Show every feature's share, ramp and evidence.

    The first line says whether canaries are on, and why not if the fallback turned them off.
    """
    answer = await session.daemon.get("/deploy/canary")
    _report(session, answer, partial(canaries, session.screen), "features")


@verb
@click.argument("feature", type=FeatureName(), required=False)
@click.option(
    "--hours",
    type=click.IntRange(1, 720),
    default=24,
    show_default=True,
    help="Number of hours until now.",
)
@click.option("--strata", is_flag=True, help="Show every epoch.")
async def report(session: Session, feature: str | None, hours: int, strata: bool) -> None:
    """Compare canary and stable, for FEATURE or for all features.

    Error rates have 95 % intervals. Epochs are compared separately and the results combined, so
    that a changed share does not distort the difference. --json has all features.
    """
    answer = await session.daemon.get("/deploy/canary/report", query={"hours": str(hours)})
    if answer.ok and feature is not None:
        _known(session.expect(answer, "features"), feature)
    view = partial(report_view, session.screen, feature=feature, everything=strata)
    _report(session, answer, view, "features")


@verb
@click.argument("keys", type=click.IntRange(1, 1_000_000))
@click.option(
    "--error-rate",
    type=Share(),
    default="1%",
    show_default=True,
    help="Error rate of both arms, up to 50%.",
)
@click.option("--ramp", help="Ascending shares, as 0.05,0.25,1.  [default: CANARY_RAMP]")
async def simulate(session: Session, keys: int, error_rate: float, ramp: str | None) -> None:
    """Show how often a ramp promotes a good canary, if so many KEYS call.

    With keys (users) only new ones are evidence, so a ramp for a few users may be unable to end by
    it. Longer ramps are shown, too.
    """
    query = {"keys": str(keys), "error_rate": str(error_rate)}
    answer = await session.daemon.get(
        "/deploy/canary/simulate", query=query if ramp is None else {**query, "ramp": ramp}
    )
    _report(session, answer, simulation_view, "ramps")


@verb
@click.argument("feature", type=FeatureName())
@click.argument("percentage", type=Share())
async def set_share(session: Session, feature: str, percentage: float) -> None:
    """Set the share of FEATURE's calls for its canary: 0.1 or 10%.

    A ramp ends. The share survives a restart; `reset` goes back to the settings.
    """
    session.parting = "Interrupted. `atlasctl canary status` shows whether it is set."
    answer = await session.daemon.put(f"/deploy/canary/{feature}", body={"percentage": percentage})
    _report(session, answer, partial(changed, session.screen), "feature")


@verb
@click.argument("feature", type=FeatureName())
@click.argument("action", type=click.Choice(ACTIONS))
async def ramp(session: Session, feature: str, action: str) -> None:
    """Steer FEATURE's ramp through the shares of CANARY_RAMP.

    `start` at its first step; `pause` and `resume`; `advance` to the next step at once; `promote`
    gives the canary all calls, `rollback` none. An action that is in effect changes nothing.
    """
    session.parting = f"Interrupted. `atlasctl canary status` shows whether {feature} has changed."
    answer = await session.daemon.post(
        f"/deploy/canary/{feature}/ramp", body={"action": action}, key=str(uuid.uuid4())
    )
    _report(session, answer, partial(changed, session.screen), "feature")


@verb
@click.argument("feature", type=FeatureName(), required=False)
async def reset(session: Session, feature: str | None) -> None:
    """Reset the fallback, or FEATURE to the settings.

    After a reset of the fallback canaries are on again. Earlier calls no longer count: for the
    fallback, or for the feature's evidence.
    """
    session.parting = "Interrupted. `atlasctl canary status` shows whether it is reset."
    answer = await session.daemon.post(
        "/deploy/canary/reset",
        body={} if feature is None else {"feature": feature},
        key=str(uuid.uuid4()),
    )
    _report(session, answer, partial(restored, session.screen, feature=feature), "features")


set_share.name = "set"  # a function named set would hide Python's own


@click.group(cls=Verbs, verbs=(status, report, simulate, set_share, ramp, reset))
def canary() -> None:
    """Show and steer the canaries of features.

    A feature's canary is its new code, which gets a share of the calls. It is rolled back
    automatically when the evidence is against it.
    """


def _known(data: Record, feature: str) -> None:
    """Raise FailedError if the feature is not in the report."""
    names = [str(each.get("feature")) for each in objects(data["features"])]
    if feature not in names:
        listed = ", ".join(names) or "none"
        raise FailedError(f"There is no feature {feature!r}.", f"CANARY_FEATURES lists: {listed}")


def _report(session: Session, answer: ApiResponse, view: View, *fields: str) -> None:
    """Show the answer; 404 without `unknown_feature` is from a daemon without canaries."""
    code = mapping(answer.data.get("error")).get("code")
    if answer.status == 404 and code != "unknown_feature" and not session.json:
        raise FailedError(*_TOO_OLD)
    session.report(answer, view, *fields)
