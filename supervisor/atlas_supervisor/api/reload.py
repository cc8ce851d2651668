"""The route that replaces the daemon in place."""

from __future__ import annotations

from atlas_supervisor import errors
from atlas_supervisor.api import examples
from atlas_supervisor.api.routes import (
    Access,
    AnyRoute,
    Nothing,
    Reply,
    Request,
    ResponseSpec,
    Route,
)
from atlas_supervisor.model.status import ReloadView


async def _reload(call: Request[Nothing, Nothing]) -> Reply:
    return Reply(await call.control.reloads.reload(call.actor), status=202)


ROUTES: tuple[AnyRoute, ...] = (
    Route(
        method="POST",
        path="/supervisor/reload",
        handler=_reload,
        summary="Reload program and settings",
        description="Checks the program as it is installed now, with the env file as it is now, in "
        "a process of its own. A fault refuses the reload and nothing changes. Else the daemon "
        "executes that program in place: same process, same workers, no connection lost. Requests "
        "in progress are answered, event streams end and can be resumed, new connections wait "
        "about a second. It is done once `daemon.started_ts` of `GET /deploy/status` is another "
        "one. Worker settings apply at the next deploy. During a deploy it is refused, except "
        "while the deploy waits for its switch, and after its switch.",
        tag="Deploy",
        query=Nothing,
        body=Nothing,
        access=Access.CHANGE,
        answers=(
            ResponseSpec(
                202,
                "The checks passed, and the daemon is about to be replaced.",
                ReloadView,
                examples.RELOAD,
            ),
        ),
        errors=(
            errors.DEPLOY_IN_PROGRESS,
            errors.RELOAD_IN_PROGRESS,
            errors.RELOAD_REFUSED,
            errors.RELOAD_FAILED,
            errors.NOT_DURABLE,
            errors.STOPPING,
        ),
    ),
)
