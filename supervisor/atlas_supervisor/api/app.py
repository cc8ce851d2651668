"""Builds the aiohttp application that serves the route table.

Every request passes the same checks in this order: host and origin, caller, query, headers, body,
then the route's handler. Any failure on the way is answered in one shape and logged. An answer
either is complete or streams until its source ends, its client leaves or the daemon stops.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from itertools import groupby

import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware

from atlas_supervisor import errors
from atlas_supervisor.api import messages
from atlas_supervisor.api.connection import TimedConnection
from atlas_supervisor.api.denied_audit import DeniedRequests
from atlas_supervisor.api.messages import (
    MAX_BODY_BYTES,
    read_body,
    read_form,
    read_headers,
    read_key,
    read_query,
)
from atlas_supervisor.api.ports import Control, MetricsPort
from atlas_supervisor.api.routes import Access, AnyRoute, Request, StreamReply
from atlas_supervisor.api.security import Caller, Gate, Turnstile
from atlas_supervisor.api.sessions import LASTS_SECONDS, Rank
from atlas_supervisor.errors import AtlasError, RefusedError
from atlas_supervisor.model.deploy import DeployRecord
from atlas_supervisor.model.idempotency_key import IdempotencyKey
from atlas_supervisor.system.clock import Stopwatch
from atlas_supervisor.system.text import escaped
from atlas_supervisor.telemetry.log_summary import LogSummary

log = structlog.get_logger()

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_SESSIONS_READ = 1000
_CLIENT_LEFT = 499
"""Counted, as nginx does, for a request whose client left before the answer."""
_CALLER = web.RequestKey("caller", Caller)
_KEY = web.RequestKey("key", IdempotencyKey)
_CHANGES = {Access.CHANGE, Access.FORM}
_STARTED = web.RequestKey("started", float)


def build_app(
    control: Control, gate: Gate, table: Iterable[AnyRoute], summary: LogSummary
) -> web.Application:
    """Return the application that serves `table`; its connections must be `TimedConnection`s."""
    table = tuple(table)
    known = {route.method for route in table} | {"HEAD"}
    routes: dict[_Handler, AnyRoute] = {}
    admission = _admission(control, gate, routes, summary)
    app = web.Application(
        middlewares=[_counting(control.metrics, known), admission],
        client_max_size=MAX_BODY_BYTES,
        handler_args={"handler_cancellation": False},
    )
    # Fixed paths first, so that /deploy/history is not taken for the id of a deploy.
    rows = sorted(table, key=lambda route: ("{" in route.path, route.path))
    for path, group in groupby(rows, key=lambda route: route.path):
        resource = app.router.add_resource(path)
        methods = []
        for route in group:
            handler = _endpoint(route, control, gate)
            resource.add_route(route.method, handler)
            methods.append(route.method)
            routes[handler] = route
            if route.method == "GET":
                resource.add_route("HEAD", handler)
                methods.append("HEAD")
        # Without it, GET /deploy/switch would be looked up as the deploy named "switch".
        resource.add_route("*", _wrong_method(methods))
    return app


def _counting(metrics: MetricsPort, methods: Collection[str]) -> Middleware:
    """Return the middleware that counts answers, labelled by route and not by the client's path."""

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
        complete = isinstance(response, web.Response)  # a stream lasts as long as its client wants
        metrics.answered(method, route, response.status, watch.seconds if complete else None)
        return response

    return count


def _admission(
    control: Control, gate: Gate, routes: Mapping[_Handler, AnyRoute], summary: LogSummary
) -> Middleware:
    """Return the middleware that admits a request and turns every failure into an answer."""
    turnstile, denied = Turnstile(), DeniedRequests(control.audit)

    @web.middleware
    async def admit(request: web.Request, handler: _Handler) -> web.StreamResponse:
        connection = _connection(request)
        connection.begin(whole=request.content.is_eof())
        caller = request[_CALLER] = gate.caller(request, connection.peer)
        if caller.rank is Rank.OPERATOR:
            connection.become_trusted()
        else:
            await turnstile.enter()
        if connection.transport is None:  # else the missing body would be taken for a failure
            raise ConnectionResetError("the connection has ended")
        request[_STARTED] = asyncio.get_running_loop().time()
        route = routes.get(request.match_info.handler)
        try:
            gate.check_sender(request, connection.peer)
            if caller.session is not None and not gate.sessions.is_restored:
                await _restore_sessions(control, gate)
                caller = request[_CALLER] = gate.caller(request, connection.peer)
            gate.admit(caller, _least(route))
            response = await handler(request)
        except (RefusedError, web.HTTPException) as error:
            refused = (
                messages.of_http_exception(error) if isinstance(error, web.HTTPException) else error
            )
            _log_refused(request, connection, refused, summary)
            if route and route.access in _CHANGES and refused.status in denied.STATUSES:
                denied.record(caller.actor, request.method, route.path, refused)
            response = _refusal(request, error, refused)
        except (asyncio.CancelledError, ConnectionError):
            raise  # the client has left, or the daemon stops
        except AtlasError as error:  # the database, for example
            log.error("api_unavailable", **_facts(request, connection), why=str(error))
            response = messages.refusal(errors.UNAVAILABLE.error(problem=error), close=True)
        except Exception as error:  # a bug: logged, never shown
            log.error("api_failed", **_facts(request, connection), exc_info=error)
            response = messages.refusal(errors.INTERNAL_ERROR.error(), close=True)
        connection.end(last=response.keep_alive is False)
        return response

    return admit


def _least(route: AnyRoute | None) -> Access:
    """Return the least access for a path; an unknown path needs what a read does."""
    return route.access if route and route.access is Access.PUBLIC else Access.READ


async def _restore_sessions(control: Control, gate: Gate) -> None:
    """Read the sessions that were ended before this start, in the time that one lasts."""
    ended: set[str] = set()
    before: int | None = None
    limit = (datetime.now(UTC) - timedelta(seconds=LASTS_SECONDS)).isoformat()
    while page := await control.trail.entries(
        limit=_SESSIONS_READ, before=before, action="session", subject=None
    ):
        ended.update(each.subject or "" for each in page if each.outcome == "ended")
        before = page[-1].id
        if page[-1].ts < limit or len(page) < _SESSIONS_READ:
            break
    gate.sessions.restore(ended)


def _refusal(
    request: web.Request, error: RefusedError | web.HTTPException, refused: RefusedError
) -> web.Response:
    headers = _repeated(request)
    if (request.path == "/" or request.path.startswith("/dashboard/")) and (
        "text/html" in request.headers.get("Accept", "")
    ):
        back = "./" + "../" * (request.path.count("/") - 1)
        return messages.refusal_page(refused, back=back, headers=headers)
    if refused.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="atlas-supervisor"'
    if isinstance(error, web.HTTPMethodNotAllowed):
        headers["Allow"] = error.headers["Allow"]
    # An unread body is not worth waiting for: the connection is closed instead.
    return messages.refusal(
        refused,
        headers=headers,
        close=not request.content.at_eof(),
        trusted=request[_CALLER].rank is not Rank.STRANGER,
    )


def _endpoint(route: AnyRoute, control: Control, gate: Gate) -> _Handler:
    """Return the handler of one row: it parses the request, calls the row's handler and answers."""
    one_at_a_time = asyncio.Lock()
    may_stream = errors.TOO_MANY_STREAMS in route.errors

    async def endpoint(request: web.Request) -> web.StreamResponse:
        connection = _connection(request)
        caller = request[_CALLER]
        gate.admit(caller, route.access)
        if may_stream:
            connection.check_streams()  # before anything is read for it
        query = read_query(request, route.query)
        headers = read_headers(request, route.headers)
        read = read_form if route.form else read_body
        body = await read(request, route.body, connection.deadline)
        connection.received()
        request[_STARTED] = asyncio.get_running_loop().time()
        key = read_key(request, caller.actor, query, body) if route.keyed else None
        if key is not None:
            request[_KEY] = key
        call = Request(
            control=control,
            actor=caller.actor,
            query=query,
            body=body,
            path=request.match_info,
            trusted=caller.rank is not Rank.STRANGER,
            rank=caller.rank,
            session=caller.session,
            reads=gate.reads(caller),
            key=key,
            headers=headers,
        )
        async with one_at_a_time if route.heavy and not call.trusted else nullcontext():
            reply = await route.handler(call)
            if isinstance(reply, StreamReply):
                return await _stream(request, connection, reply, gate)
            if route.access in _CHANGES:
                record = reply.payload if isinstance(reply.payload, DeployRecord) else None
                _log_changed(request, connection, reply.status, record)
            return await messages.success(reply, headers=_repeated(request), trusted=call.trusted)

    return endpoint


async def _stream(
    request: web.Request, connection: TimedConnection, reply: StreamReply, gate: Gate
) -> web.StreamResponse:
    """Send the parts of an open-ended answer until its source or its session ends.

    Raises RefusedError if there are too many streams, ConnectionError if the client has left.
    """
    source, session = reply.source, None if reply.ends_itself else request[_CALLER].session
    try:
        response = messages.stream(reply)
        if request.method != "HEAD":
            connection.open_stream(source.close)
            await response.prepare(request)
            try:
                while (part := await source.next()) is not None:
                    if session is not None and not gate.sessions.holds(session):
                        break
                    await connection.send(request, response, part)
            # The head is sent already, so this can't become an error answer. The stream ends; the
            # client connects again and gets the error then.
            except AtlasError as error:
                log.error("api_stream_ended", origin=connection.peer.address, why=str(error))
            except ConnectionError:
                raise
            except Exception as error:
                log.error("api_failed", origin=connection.peer.address, exc_info=error)
    finally:
        source.close()
    return response


def _wrong_method(methods: list[str]) -> _Handler:
    async def refuse(request: web.Request) -> web.StreamResponse:
        raise web.HTTPMethodNotAllowed(request.method, sorted(methods))

    return refuse


def _repeated(request: web.Request) -> dict[str, str]:
    """Return the header that marks the answer to a repeated request."""
    key = request.get(_KEY)
    return {"Idempotency-Replayed": "true"} if key and key.repeated else {}


def _connection(request: web.Request) -> TimedConnection:
    connection = request.protocol
    if not isinstance(connection, TimedConnection):
        raise TypeError("the application must be served by this package's listeners")
    return connection


# The log.


def _log_changed(
    request: web.Request, connection: TimedConnection, status: int, record: DeployRecord | None
) -> None:
    facts = _timed_facts(request, connection)
    log.info("api_changed", status=status, **facts, **(record.facts if record else {}))


def _log_refused(
    request: web.Request, connection: TimedConnection, refused: RefusedError, summary: LogSummary
) -> None:
    # A read that gets "not ready" or "not found" is harmless; a denied change is worth a warning.
    harmless = request.method in {"GET", "HEAD"} and refused.status in {404, 405, 503}
    write = log.debug if harmless else log.warning
    facts = {**_timed_facts(request, connection), **_deploy_facts(refused)}
    if request[_CALLER].rank is Rank.OPERATOR:
        write("api_refused", status=refused.status, code=refused.code, **facts)
    else:
        kind = refused.code
        summary.add(write, "api_refused", kind, status=refused.status, code=kind, **facts)


def _timed_facts(request: web.Request, connection: TimedConnection) -> dict[str, object]:
    seconds = asyncio.get_running_loop().time() - request[_STARTED]
    return {**_facts(request, connection), "duration_ms": round(seconds * 1000, 1)}


def _facts(request: web.Request, connection: TimedConnection) -> dict[str, str]:
    caller = request.get(_CALLER)
    return {
        "method": escaped(request.method),
        "path": escaped(request.rel_url.raw_path)[:200],
        "actor": caller.actor.name if caller else "unknown",
        "origin": connection.peer.address,
    }


def _deploy_facts(refused: RefusedError) -> dict[str, str]:
    """Return the deploy that the error is about, if its record is in the answer."""
    deploy_id, release = refused.extra.get("deploy_id"), refused.extra.get("release")
    if deploy_id is None:
        return {}
    return {"deploy_id": deploy_id, "release": release or refused.extra.get("version") or ""}
