"""Serves the API on its sockets; `bind` and `serve` are all that the daemon needs."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from socket import socket
from typing import Any, NamedTuple

import structlog
from aiohttp import web
from yarl import URL

from atlas_supervisor.api import (
    audit,
    canary,
    dashboard,
    deploy,
    docs,
    events,
    fleet,
    health,
    history,
    logs,
    metrics,
    reload,
    traffic,
)
from atlas_supervisor.api.acceptor import Acceptor
from atlas_supervisor.api.app import build_app
from atlas_supervisor.api.listeners import bind_tcp, bind_unix
from atlas_supervisor.api.options import ApiOptions
from atlas_supervisor.api.ports import Control
from atlas_supervisor.api.routes import AnyRoute
from atlas_supervisor.api.security import Gate, Unsent, is_loopback
from atlas_supervisor.api.sessions import Sessions
from atlas_supervisor.errors import StartRefusedError
from atlas_supervisor.system.descriptors import Purpose
from atlas_supervisor.system.passed_sockets import PassedSockets
from atlas_supervisor.telemetry.log_summary import LogSummary

log = structlog.get_logger()

CONTROL_UNIX, CONTROL_TCP = "control-unix", "control-tcp"


def table(version: str, sessions: Sessions | None = None) -> tuple[AnyRoute, ...]:
    """Return every route; a new noun is a module and its name here.

    Without `sessions` the table is to be read alone: the dashboard has none.
    """
    rows = [
        *deploy.ROUTES,
        *traffic.ROUTES,
        *history.ROUTES,
        *audit.ROUTES,
        *events.ROUTES,
        *canary.ROUTES,
        *logs.ROUTES,
        *health.ROUTES,
        *metrics.ROUTES,
        *reload.ROUTES,
        *fleet.ROUTES,
    ]

    def document() -> dict[str, Any]:
        # Its import takes an eighth of the daemon's start, and the document is rarely requested.
        from atlas_supervisor.api.openapi import build_document  # noqa: PLC0415  # see above

        return build_document(rows, version=version)

    rows += dashboard.routes(rows, sessions or Sessions({}))
    rows += docs.routes(document)
    return tuple(rows)


class Bound(NamedTuple):
    """The API's sockets, which listen already: clients wait until it is served."""

    unix: socket
    tcp: list[socket]
    loopback: bool

    @property
    def sockets(self) -> dict[str, socket]:
        """The sockets by the names under which the next daemon gets them."""
        return {CONTROL_UNIX: self.unix, **dict(zip((CONTROL_TCP,), self.tcp, strict=False))}


@asynccontextmanager
async def bind(options: ApiOptions, passed: PassedSockets | None = None) -> AsyncIterator[Bound]:
    """Listen on the Unix socket and, with a port, over TCP, while the context lasts.

    Sockets that were passed are used where they fit: clients may wait in their queues.

    Raises StartRefusedError if either can't be bound, or TCP off loopback has no TLS.
    """
    passed = passed or PassedSockets()
    with ExitStack() as stack:
        unix = _passed_unix(options, passed) or bind_unix(options.socket_path)
        stack.callback(_remove, options.socket_path, options.socket_path.stat().st_ino)
        stack.callback(unix.close)
        tcp = _passed_tcp(options, passed)
        if options.port and not tcp:
            tcp = await bind_tcp(options.host, options.port)
        for listener in tcp:
            stack.callback(listener.close)
        yield Bound(unix, tcp, _check_exposure(tcp, options))


def _passed_unix(options: ApiOptions, passed: PassedSockets) -> socket | None:
    """Return the Unix socket that was passed, unless its name in the folder is gone."""
    sock = passed.take(CONTROL_UNIX)
    if sock is not None and not options.socket_path.is_socket():
        sock.close()
        return None
    return sock


def _passed_tcp(options: ApiOptions, passed: PassedSockets) -> list[socket]:
    """Return the TCP socket that was passed, if it is on the wanted address."""
    sock = passed.take(CONTROL_TCP)
    if sock is None:
        return []
    if sock.getsockname()[:2] == (options.host, options.port):
        return [sock]
    sock.close()
    return []


@asynccontextmanager
async def serve(control: Control, options: ApiOptions, bound: Bound) -> AsyncIterator[None]:
    """Serve the API on its sockets while the context lasts."""
    async with AsyncExitStack() as stack:
        gate = Gate(options, loopback=bound.loopback)
        unsent, summary = Unsent(), LogSummary()
        stack.callback(summary.flush)
        app = build_app(control, gate, table(options.version, gate.sessions), summary)
        runner = web.AppRunner(
            app, shutdown_timeout=options.shutdown_seconds, handler_cancellation=False
        )
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        server = runner.server
        if server is None:
            raise RuntimeError("aiohttp's runner has no server after setup")
        for listeners, tls, purpose in (
            ([bound.unix], None, Purpose.API_UNIX),
            (bound.tcp, options.tls, Purpose.API_TCP),
        ):
            acceptor = Acceptor(
                server,
                listeners,
                gate=gate,
                tls=tls,
                limit=options.max_connections,
                seconds=options.receive_seconds,
                unsent=unsent,
                summary=summary,
                purpose=purpose,
            )
            acceptor.start()
            stack.push_async_callback(acceptor.stop)
        log.info("api_listening", urls=[_url(each, options) for each in bound.tcp])
        yield


def _check_exposure(tcp: list[socket], options: ApiOptions) -> bool:
    """Return whether TCP listens on loopback only; otherwise TLS is required."""
    loopback = is_loopback(each.getsockname()[0] for each in tcp)
    if not loopback and options.tls is None:
        raise StartRefusedError(
            f"CONTROL_HOST: {options.host} is not loopback, so CONTROL_TLS_CERT and "
            "CONTROL_TLS_KEY must be set"
        )
    return loopback


def _remove(path: Path, inode: int) -> None:
    """Remove our socket file, unless another daemon has replaced it."""
    with contextlib.suppress(OSError):
        if path.stat().st_ino == inode:
            path.unlink()


def _url(listener: socket, options: ApiOptions) -> str:
    """Return the listener's address as a URL."""
    host, port = listener.getsockname()[:2]
    return str(URL.build(scheme="https" if options.tls else "http", host=host, port=port))
