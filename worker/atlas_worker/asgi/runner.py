"""Serves an ASGI application with uvicorn's protocols, and drains it without losing a request.

uvicorn's own server closes idle connections at once when it stops, does not announce it, and closes
its sockets. So uvicorn reads requests, writes responses and leads the application's life cycle;
accepting, watching and closing connections is done here.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial

import uvicorn

from atlas_worker.asgi.exchanges import Exchanges
from atlas_worker.asgi.protocols import Watched
from atlas_worker.drain import Connection, Stream
from atlas_worker.instance import Instance
from atlas_worker.notify import Notifier
from atlas_worker.request_counter import counter
from atlas_worker.serving import new_drain, serve
from atlas_worker.sockets import BACKLOG, Listener, drawn_from

_log = logging.getLogger("atlas.worker")

# Time for the application to end after it was cancelled at the deadline.
_CANCEL_SECONDS = 0.2


class StartupError(RuntimeError):
    """The application reported that it can't start, or failed during its startup."""


class _Busy:
    """A connection that is not idle: a WebSocket, or work that continues without its client."""

    def idle_since(self) -> None:
        return None

    def close_if_unread(self) -> None:
        pass


class _Listening:
    """The server side of the drain: accepts on every listener until it is stopped."""

    def __init__(
        self, server: uvicorn.Server, exchanges: Exchanges, listeners: Sequence[Listener]
    ) -> None:
        self._server = server
        self._exchanges = exchanges
        self._listeners = listeners
        self._accepting: list[asyncio.Server] = []

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        drawn = drawn_from(self._listeners)
        for listener in self._listeners:
            # The loop closes its socket. A duplicate keeps the inherited one open until the process
            # exits, because the group that it belongs to must not shrink.
            accepting = await loop.create_server(
                partial(self._protocol, drawn=listener in drawn),
                sock=listener.socket.dup(),
                backlog=BACKLOG,
            )
            self._accepting.append(accepting)

    def _protocol(self, *, drawn: bool) -> asyncio.Protocol:
        protocol: asyncio.Protocol = self._server.config.http_protocol_class(
            config=self._server.config,  # type: ignore[call-arg]  # typed as any asyncio.Protocol
            server_state=self._server.server_state,
            app_state=self._server.lifespan.state,
        )
        if isinstance(protocol, Watched):
            protocol.drawn = drawn
        return protocol

    def addresses(self) -> Iterable[str]:
        return [f"{listener.url} ({listener.name})" for listener in self._listeners]

    def connections(self) -> Iterable[Connection]:
        open_now: set[object] = set(self._server.server_state.connections)
        shown: list[Connection] = [
            connection if isinstance(connection, Watched) else _Busy() for connection in open_now
        ]
        # Work of the application after its response, or for a disconnected client.
        shown += [
            _Busy()
            for exchange in self._exchanges.running()
            if isinstance(exchange.connection, Watched) and exchange.connection not in open_now
        ]
        return shown

    def streams(self) -> Iterable[Stream]:
        return self._exchanges.streams()

    def queue_length(self) -> int:
        return sum(listener.queue_length() for listener in self._listeners)

    def stop_accepting(self) -> None:
        for accepting in self._accepting:
            accepting.close()
        for listener in self._listeners:
            if not listener.inherited:
                listener.socket.close()


async def run(
    config: uvicorn.Config, listeners: Sequence[Listener], instance: Instance, notifier: Notifier
) -> None:
    """Serve until SIGTERM or SIGINT, then drain; returns at the end of the drain.

    Raises `StartupError` if the application doesn't start, and OSError if a socket can't be
    listened on.
    """
    drain = new_drain(instance)
    _load(config)
    exchanges = Exchanges(config.loaded_app, drain, instance.id)
    config.loaded_app = exchanges
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.lifespan.startup()
    if server.lifespan.should_exit:
        raise StartupError("the application did not start; its message is above")
    listening = _Listening(server, exchanges, listeners)
    counter.open()
    dates = asyncio.create_task(_keep_dates(server))
    try:
        await serve(drain, listening, instance, notifier)
    finally:
        await _cut(server)
        dates.cancel()
        await server.lifespan.shutdown()


def _load(config: uvicorn.Config) -> None:
    """Let uvicorn load the application, and call its factory if it has one."""
    try:
        config.load()
    except SystemExit:
        raise StartupError("uvicorn can't use the application; its message is above") from None
    except ImportError:
        raise
    except Exception as error:
        traceback.print_exc()
        raise StartupError(f"loading the application failed: {error!r}") from error


async def _keep_dates(server: uvicorn.Server) -> None:
    """Renew uvicorn's `Date` header every second, as its own main loop does."""
    while True:
        # It does so at a count of zero.
        await server.on_tick(0)
        await asyncio.sleep(1)


async def _cut(server: uvicorn.Server) -> None:
    """Cancel the exchanges that are left at the hard deadline, and wait a moment for their end."""
    tasks = list(server.server_state.tasks)
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=_CANCEL_SECONDS)
    transports = [connection.transport for connection in server.server_state.connections]
    for transport in transports:
        with suppress(OSError):
            transport.close()
    # A transport closes in a later turn of the loop, once its buffer is written. If the client does
    # not read, that never happens, and the WebSocket on it would not end.
    if tasks:
        await asyncio.sleep(0)
    for transport in transports:
        transport.abort()
