"""The routes of the fleet: how it stands, its rollout, its slots and its kill switch."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, Field

from atlas_supervisor import errors
from atlas_supervisor.api import fleet_examples as examples
from atlas_supervisor.api.ports import FleetPort
from atlas_supervisor.api.routes import (
    Access,
    AnyRoute,
    Nothing,
    Reply,
    Request,
    ResponseSpec,
    Route,
)
from atlas_supervisor.errors import ErrorSpec
from atlas_supervisor.fleet.documents import UnreadableDocumentError
from atlas_supervisor.fleet.engine import EngineError
from atlas_supervisor.fleet.view import FleetView, RolloutAction
from atlas_supervisor.fleet.waves import DEFAULT_WAVES

_Name = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^/\x00-\x1f\x7f]+$")]
_MOST_WAVES = 100

B = TypeVar("B", bound=BaseModel)


class RolloutBody(BaseModel, extra="forbid"):
    """The rollout to begin."""

    release: Annotated[
        str, Field(min_length=1, max_length=255, pattern=r"^[^/.\x00-\x1f\x7f][^/\x00-\x1f\x7f]*$")
    ] = Field(
        description="The name of a folder below RELEASES_DIR, on each host; no slash, no leading "
        "dot. If the host that is asked does not have it, nothing begins; another one's lack shows "
        "when its turn comes.",
        examples=["1.4.0"],
    )
    max_unavailable: int = Field(
        default=1,
        ge=1,
        description="How many hosts may be unavailable at a time, for deploys and reboots alike; "
        "at most the number of hosts.",
        examples=[1],
    )
    waves: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        default=list(DEFAULT_WAVES),
        min_length=1,
        max_length=_MOST_WAVES,
        description="How many hosts have the release at the end of each wave: a whole number of "
        "hosts, or a share of all of them between 0 and 1, rounded up. Waves grow. The last is "
        "all hosts; as the last, 1 is 100 %.",
        examples=[[1, 0.1, 1]],
    )


class BreakBody(BaseModel, extra="forbid"):
    """The slot to break."""

    host: _Name = Field(description="The host that holds it.", examples=["web3"])
    generation: int = Field(
        ge=1,
        description="The `generation` of its slot, as `GET /fleet` has it. If the host has taken "
        "another slot meanwhile, nothing is broken.",
        examples=[17],
    )


def _is_feature(name: str) -> str:
    if name == "all":  # as `atlasctl fleet kill` has it
        raise ValueError("all is no feature; null is for all features")
    return name


class KillBody(BaseModel, extra="forbid"):
    """What to switch off."""

    feature: (
        Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,99}$"), AfterValidator(_is_feature)] | None
    ) = Field(description="A feature's name; null for all features.", examples=["vision"])


class HostBody(BaseModel, extra="forbid"):
    """The host to forget."""

    host: _Name = Field(description="Its name.", examples=["web9"])


async def _view(call: Request[Nothing, Nothing]) -> Reply:
    return Reply(await _fleet(call.control.fleet).view())


async def _begin(call: Request[Nothing, RolloutBody]) -> Reply:
    body = call.body
    return await _done(
        _fleet(call.control.fleet).begin(
            body.release,
            max_unavailable=body.max_unavailable,
            waves=body.waves,
            actor=call.actor,
        )
    )


def _steer(action: RolloutAction) -> Callable[[Request[Nothing, Nothing]], Awaitable[Reply]]:
    async def steer(call: Request[Nothing, Nothing]) -> Reply:
        return await _done(_fleet(call.control.fleet).steer(action, call.actor))

    return steer


async def _break(call: Request[Nothing, BreakBody]) -> Reply:
    host, generation = call.body.host, call.body.generation
    return await _done(_fleet(call.control.fleet).break_slot(host, generation, call.actor))


async def _kill(call: Request[Nothing, KillBody]) -> Reply:
    return await _done(_fleet(call.control.fleet).kill(call.body.feature, call.actor))


async def _reset(call: Request[Nothing, Nothing]) -> Reply:
    return await _done(_fleet(call.control.fleet).reset(call.actor))


async def _forget(call: Request[Nothing, HostBody]) -> Reply:
    return await _done(_fleet(call.control.fleet).forget(call.body.host, call.actor))


def _fleet(fleet: FleetPort | None) -> FleetPort:
    """Return the fleet. Raises RefusedError if the machine belongs to none."""
    if fleet is None:
        raise errors.FLEET_IS_OFF.error()
    return fleet


async def _done(change: Awaitable[FleetView]) -> Reply:
    """Return the fleet after a change. Raises RefusedError, also for the engine's errors."""
    try:
        return Reply(await change)
    except UnreadableDocumentError as error:
        raise errors.FLEET_DOCUMENT_UNREADABLE.error(problem=error) from error
    except EngineError as error:
        raise errors.FLEET_UNAVAILABLE.error(problem=error) from error


_CHANGES = (
    errors.FLEET_IS_OFF,
    errors.FLEET_UNAVAILABLE,
    errors.FLEET_DOCUMENT_UNREADABLE,
    errors.FLEET_IS_BUSY,
)
"""Errors of every change."""
_STEERING = (errors.NO_ROLLOUT, errors.ROLLOUT_NOT_POSSIBLE)


def _change(
    path: str,
    handler: Callable[[Request[Nothing, B]], Awaitable[Reply]],
    body: type[B],
    *,
    summary: str,
    description: str,
    example: FleetView,
    refusals: tuple[ErrorSpec, ...] = (),
) -> AnyRoute:
    return Route(
        method="POST",
        path=path,
        handler=handler,
        summary=summary,
        description=description,
        tag="Fleet",
        query=Nothing,
        body=body,
        access=Access.CHANGE,
        answers=(ResponseSpec(200, "The fleet afterwards.", FleetView, example),),
        errors=(*_CHANGES, *refusals),
    )


ROUTES: tuple[AnyRoute, ...] = (
    Route(
        method="GET",
        path="/fleet",
        handler=_view,
        summary="The fleet",
        description="Hosts, the rollout and what it waits for, who holds a slot, the kill switch "
        "and how many hosts have acknowledged it, and the evidence over all hosts. While etcd is "
        "away it is what this host knew last, and `engine` says since when.",
        tag="Fleet",
        query=Nothing,
        body=Nothing,
        answers=(ResponseSpec(200, "The fleet.", FleetView, examples.FLEET),),
        errors=(errors.FLEET_IS_OFF,),
    ),
    _change(
        "/fleet/rollout",
        _begin,
        RolloutBody,
        summary="Begin a rollout",
        description="Every host deploys the release with its own gates and its own guard, wave "
        "after wave, and no more than `max_unavailable` at a time. A host begins only while each "
        "other host is alive and its last deploy passed. The first failure halts the rollout.",
        example=examples.BEGUN,
        refusals=(
            errors.UNKNOWN_RELEASE,
            errors.INVALID_WAVES,
            errors.INVALID_MAX_UNAVAILABLE,
            errors.ROLLOUT_IN_PROGRESS,
            errors.SLOTS_ARE_HELD,
            errors.FLEET_IS_EMPTY,
        ),
    ),
    _change(
        "/fleet/rollout/pause",
        _steer(RolloutAction.PAUSE),
        Nothing,
        summary="Pause the rollout",
        description="No further host begins; those that deploy go on to their end.",
        example=examples.PAUSED,
        refusals=_STEERING,
    ),
    _change(
        "/fleet/rollout/resume",
        _steer(RolloutAction.RESUME),
        Nothing,
        summary="Resume the rollout",
        description="Goes on with a rollout that is paused or halted. The host that has failed is "
        "tried again, before all others.",
        example=examples.FLEET,
        refusals=_STEERING,
    ),
    _change(
        "/fleet/rollout/abort",
        _steer(RolloutAction.ABORT),
        Nothing,
        summary="Abort the rollout",
        description="No further host begins, for good. Deploys that have not switched yet are "
        "aborted on their hosts; hosts that have the release keep it.",
        example=examples.ABORTED,
        refusals=_STEERING,
    ),
    _change(
        "/fleet/rollout/rollback",
        _steer(RolloutAction.ROLLBACK),
        Nothing,
        summary="Take the rollout back",
        description="A rollout of its own: the hosts that have the release go back to the version "
        "before it, the last one first, by the same rules.",
        example=examples.BACK,
        refusals=_STEERING,
    ),
    _change(
        "/fleet/break",
        _break,
        BreakBody,
        summary="Break a host's slot",
        description="For a host that died with a slot: no time frees it. The slot is free, the "
        "host counts as failed, and the rollout halts.",
        example=examples.HALTED,
        refusals=(errors.UNKNOWN_HOST, errors.SLOT_NOT_HELD, errors.SLOT_HAS_CHANGED),
    ),
    _change(
        "/fleet/kill",
        _kill,
        KillBody,
        summary="Switch a feature off everywhere",
        description="On every host all calls of the feature are stable until `POST /fleet/reset`. "
        "Each host writes it to its disk before it acknowledges it: it holds without etcd, and "
        "over restarts. `kills.behind` names the hosts that have not.",
        example=examples.KILLED,
        refusals=(errors.FLEET_KILL_UNAVAILABLE,),
    ),
    _change(
        "/fleet/reset",
        _reset,
        Nothing,
        summary="End all kills",
        description="Each feature has the share again that its host gave it before.",
        example=examples.FLEET,
    ),
    _change(
        "/fleet/forget",
        _forget,
        HostBody,
        summary="Forget a host",
        description="For a machine that is gone for good: while a host is missing, no other one "
        "takes a slot. A host that comes back joins again.",
        example=examples.FLEET,
        refusals=(errors.UNKNOWN_HOST, errors.HOST_IS_PRESENT, errors.HOST_HOLDS_A_SLOT),
    ),
)
