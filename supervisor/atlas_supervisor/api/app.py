"""From the route table to an application: what happens to every request, in order.

Host and origin, who the caller is, the query, the body, the handler; whatever is refused on the
way is answered in one shape and logged. No request reaches a handler by another way.

Sends an answer that goes on until its source ends, its client leaves or the daemon stops.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from itertools import groupby

import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware

from atlas_supervisor import errors
from atlas_supervisor.api import responses
from atlas_supervisor.api.connection import TimedConnection
from atlas_supervisor.api.denied_audit import DeniedRequests
from atlas_supervisor.api.parsing import (
    MAX_BODY_BYTES,
    read_body,
    read_headers,
    read_key,
    read_query,
)
from atlas_supervisor.api.ports import Control, MetricsPort
from atlas_supervisor.api.routes import Access, AnyRoute, Request, StreamReply
from atlas_supervisor.api.security import Gate
from atlas_supervisor.errors import AtlasError, RefusedError
from atlas_supervisor.model.actor import Actor
from atlas_supervisor.model.deploy import DeployRecord
from atlas_supervisor.model.idempotency_key import IdempotencyKey
from atlas_supervisor.system.clock import Stopwatch

log = structlog.get_logger()


async def send(
    request: web.Request, connection: TimedConnection, reply: StreamReply
) -> web.StreamResponse:
    """Send what there is until there is no more, and return what was begun.

    Raises RefusedError if there are too many streams; ConnectionError once the client has left.
    """
    source = reply.source
    try:
        response = responses.stream(reply)
        if request.method != "HEAD":
            connection.open_stream(source.close)
            await response.prepare(request)
            try:
                while (part := await source.next()) is not None:
                    await connection.send(request, response, part)
            # The answer has begun, so it can't become a refusal. It ends, and the client asks
            # again: then it is told.
            except AtlasError as error:
                log.error("api.stream_ended", origin=connection.peer.address, why=str(error))
            except ConnectionError:
                raise
            except Exception as error:
                log.error("api.failed", origin=connection.peer.address, exc_info=error)
    finally:
        source.close()
    return response


log = structlog.get_logger()

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_CLIENT_LEFT = 499
"""No answer of ours: how requests are counted whose client left before its end, as nginx does."""
_ACTOR = web.RequestKey("actor", Actor)
_KEY = web.RequestKey("key", IdempotencyKey)


def build_app(control: Control, gate: Gate, table: Iterable[AnyRoute]) -> web.Application:
    """Return the application that serves `table`; its connections must be `TimedConnection`s."""
    table = tuple(table)
    known = {route.method for route in table} | {"HEAD"}
    changes: dict[_Handler, str] = {}
    admission = _admission(gate, DeniedRequests(control.audit), changes)
    app = web.Application(
        middlewares=[_counting(control.metrics, known), admission],
        client_max_size=MAX_BODY_BYTES,
        handler_args={"handler_cancellation": False},
    )
    # Fixed paths first: /deploy/history is no deploy's id.
    rows = sorted(table, key=lambda route: ("{" in route.path, route.path))
    for path, group in groupby(rows, key=lambda route: route.path):
        resource = app.router.add_resource(path)
        methods = []
        for route in group:
            handler = _endpoint(route, control, gate)
            resource.add_route(route.method, handler)
            methods.append(route.method)
            if route.access is Access.CHANGE:
                changes[handler] = path
            if route.method == "GET":
                resource.add_route("HEAD", handler)
                methods.append("HEAD")
        # Without it, GET /deploy/switch would be looked up as the deploy named "switch".
        resource.add_route("*", _wrong_method(methods))
    return app


def _counting(metrics: MetricsPort, methods: Collection[str]) -> Middleware:
    """Return the middleware that counts answers, by words of the table and not of the client."""

    @web.middleware
    async def count(request: web.Request, handler: _Handler) -> web.StreamResponse:
        method = request.method if request.method in methods else "other"
        resource = request.match_info.route.resource
        route = resource.canonical if resource is not None else "unknown"
        watch = Stopwatch()
        try:
            response = await handler(request)
        except (asyncio.CancelledError, ConnectionError):
            metrics.answered(method, route, _CLIENT_LEFT, None)
            raise
        whole = isinstance(response, web.Response)  # else its client decides how long it goes on
        metrics.answered(method, route, response.status, watch.seconds if whole else None)
        return response

    return count


def _admission(
    gate: Gate, turned_away: DeniedRequests, changes: Mapping[_Handler, str]
) -> Middleware:
    """Return the middleware around everything: admission, the clock, refusals, bugs, the log.

    `changes` has the handlers of routes that change something, with their paths.
    """

    @web.middleware
    async def admit(request: web.Request, handler: _Handler) -> web.StreamResponse:
        connection = _connection(request)
        connection.begin()
        started = asyncio.get_running_loop().time()
        headers: dict[str, str] = {}
        try:
            gate.check_sender(request, connection.peer)
            request[_ACTOR] = gate.identify(request, connection.peer, Access.READ)
            response = await handler(request)
        except (RefusedError, web.HTTPException) as error:
            refused = (
                responses.of_http_exception(error)
                if isinstance(error, web.HTTPException)
                else error
            )
            _log(request, connection, refused, started)
            path = changes.get(request.match_info.handler)
            if path is not None and refused.status in turned_away.STATUSES:
                turned_away.tell(_caller(request, connection), request.method, path, refused)
            if refused.status == 401:
                headers["WWW-Authenticate"] = 'Bearer realm="atlas-supervisor"'
            if isinstance(error, web.HTTPMethodNotAllowed):
                headers["Allow"] = error.headers["Allow"]
            headers |= _repeated(request)
            # A body that nobody has read is not worth waiting for.
            response = responses.refusal(
                refused, headers=headers, close=not request.content.at_eof()
            )
        except (asyncio.CancelledError, ConnectionError):
            raise  # the client has left, or the daemon stops
        except AtlasError as error:  # the database, for one
            log.error("api.unavailable", **_facts(request, connection), why=str(error))
            response = responses.refusal(errors.UNAVAILABLE.error(problem=error), close=True)
        except Exception as error:  # the last line: a bug must not show itself
            log.error("api.failed", **_facts(request, connection), exc_info=error)
            response = responses.refusal(errors.INTERNAL_ERROR.error(), close=True)
        connection.end(last=response.keep_alive is False)
        return response

    return admit


def _endpoint(route: AnyRoute, control: Control, gate: Gate) -> _Handler:
    """Return the handler of one row: checks, the row's own handler, its answer."""

    async def endpoint(request: web.Request) -> web.StreamResponse:
        connection = _connection(request)
        actor = gate.identify(request, connection.peer, route.access)
        request[_ACTOR] = actor
        query = read_query(request, route.query)
        headers = read_headers(request, route.headers)
        body = await read_body(request, route.body, connection.deadline)
        connection.received()
        started = asyncio.get_running_loop().time()
        path = request.match_info
        key = read_key(request, actor, query, body) if route.keyed else None
        if key is not None:
            request[_KEY] = key
        call = Request(
            control=control,
            actor=actor,
            query=query,
            body=body,
            path=path,
            key=key,
            headers=headers,
        )
        reply = await route.handler(call)
        if isinstance(reply, StreamReply):
            return await send(request, connection, reply)
        if route.access is Access.CHANGE:
            record = reply.payload if isinstance(reply.payload, DeployRecord) else None
            _log(request, connection, None, started, status=reply.status, record=record)
        return responses.success(reply, headers=_repeated(request))

    return endpoint


def _repeated(request: web.Request) -> dict[str, str]:
    """Return the header that says of an answer that nothing was done for it now."""
    key = request.get(_KEY)
    return {"Idempotency-Replayed": "true"} if key and key.repeated else {}


def _connection(request: web.Request) -> TimedConnection:
    connection = request.protocol
    if not isinstance(connection, TimedConnection):
        raise TypeError("this application is served by the listeners of this package alone")
    return connection


def _wrong_method(methods: list[str]) -> _Handler:
    async def refuse(request: web.Request) -> web.StreamResponse:
        raise web.HTTPMethodNotAllowed(request.method, sorted(methods))

    return refuse


def _caller(request: web.Request, connection: TimedConnection) -> Actor:
    """Return who asks, let in or not."""
    peer = connection.peer
    name = "anonymous" if peer.uid is None else f"uid:{peer.uid}"
    return request.get(_ACTOR) or Actor(name=name, origin=peer.address)


def _facts(request: web.Request, connection: TimedConnection) -> dict[str, str]:
    actor = request.get(_ACTOR)
    return {
        "method": responses.printable(request.method),
        "path": responses.printable(request.rel_url.raw_path)[:200],
        "actor": actor.name if actor else "unknown",
        "origin": connection.peer.address,
    }


def _log(
    request: web.Request,
    connection: TimedConnection,
    refused: RefusedError | None,
    started: float,
    *,
    status: int = 0,
    record: DeployRecord | None = None,
) -> None:
    milliseconds = round((asyncio.get_running_loop().time() - started) * 1000, 1)
    facts = {**_facts(request, connection), "duration_ms": milliseconds}
    if refused is None:
        log.info("api.changed", status=status, **facts, **(record.facts if record else {}))
    else:
        # A reader that was told "not ready" or "not found" is no news; an attack or a change is.
        harmless = request.method in {"GET", "HEAD"} and refused.status in {404, 405, 503}
        say = log.debug if harmless else log.warning
        say("api.refused", status=refused.status, code=refused.code, **facts, **_about(refused))


def _about(refused: RefusedError) -> dict[str, str]:
    """Return what says which deploy was refused to go on, where its record is in the answer."""
    deploy_id, release = refused.extra.get("deploy_id"), refused.extra.get("release")
    if deploy_id is None:
        return {}
    return {"deploy_id": deploy_id, "release": release or refused.extra.get("version") or ""}
