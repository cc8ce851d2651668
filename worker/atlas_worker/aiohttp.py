"""Serves an aiohttp application on inherited sockets, and drains it without losing a request.

aiohttp's own runner closes idle connections at once when it stops, does not announce it, and
shrinks the backlog that the supervisor shares with the worker. So it is used for the application's
life cycle only; accepting, watching and closing connections is done here.

    from atlas_worker.aiohttp import run_app

    run_app(app)          # in place of aiohttp's web.run_app(app)
"""

from __future__ import annotations

import array
import asyncio
import builtins
import fcntl
import inspect
import logging
import os
import socket
import termios
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from http import HTTPStatus
from typing import Any

try:
    from aiohttp import hdrs, web
except ImportError as error:
    raise ImportError(
        "atlas_worker.aiohttp needs aiohttp: install it into the application's environment"
    ) from error
from aiohttp.abc import AbstractAccessLogger
from aiohttp.http import StreamWriter
from aiohttp.web_log import AccessLogger
from aiohttp.web_protocol import RequestHandler
from multidict import istr

from atlas_worker.aiohttp_streams import EventStream, WebSocket
from atlas_worker.contract import INSTANCE_HEADER, PROBE_HEADER, SMOKE_HEADER
from atlas_worker.drain import DrainController, Stream
from atlas_worker.events import is_event_stream
from atlas_worker.instance import Instance
from atlas_worker.notify import Notifier
from atlas_worker.request_counter import (
    CLIENT_LEFT,
    NOT_COUNTED,
    NOT_DRAWN,
    UNFINISHED,
    counter,
)
from atlas_worker.serving import new_drain, peer_of
from atlas_worker.serving import serve as serve_until_drained
from atlas_worker.sockets import BACKLOG, Listener, drawn_from, find_listeners

DRAIN: web.AppKey[DrainController] = web.AppKey("atlas_drain", DrainController)
"""Handlers and background work find the drain at `app[DRAIN]`."""

_log = logging.getLogger("atlas.worker")

_PROBE, _SMOKE = istr(PROBE_HEADER), istr(SMOKE_HEADER)

DEFAULT_PORT = 8080

# Time for handlers to end after they were cancelled at the deadline.
_CANCEL_SECONDS = 0.2


class _Connection(RequestHandler):
    """One connection; knows in addition what is in progress on it."""

    __slots__ = ("_began", "_drawn", "_head_started", "_since", "stream")

    def __init__(
        self, server: web.Server, *, loop: asyncio.AbstractEventLoop, drawn: bool, **options: Any
    ) -> None:
        super().__init__(server, loop=loop, **options)
        self._began = NOT_COUNTED
        self._drawn = drawn
        self._since = NOT_DRAWN
        self._head_started = False
        self.stream: WebSocket | EventStream | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note the beginning of the connection."""
        super().connection_made(transport)
        if self._drawn:
            self._since = counter.connected(peer_of(transport))

    def notice(
        self, request: web.Request, response: web.StreamResponse, drain: DrainController
    ) -> None:
        """Remember a response that starts, if it is a stream."""
        if isinstance(response, web.WebSocketResponse):
            self.stream = WebSocket(response, lambda: drain.remaining)
            self._count_end(response.status)
        elif (
            is_event_stream(request.method, response.content_type)
            and response.content_length is None  # with a length it has an end of its own
            and isinstance(request.writer, StreamWriter)
        ):
            self.stream = EventStream(response, request.writer)

    async def _handle_request(
        self,
        request: web.BaseRequest,
        start_time: float | None,
        request_handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
    ) -> tuple[web.StreamResponse, bool]:
        """Count the request; let a stream's close end before the connection goes on or closes."""
        headers = request.headers
        supervisors = _PROBE in headers or _SMOKE in headers
        self._began = NOT_COUNTED if supervisors else counter.begin(self._since)
        self._since = NOT_DRAWN
        status = UNFINISHED
        try:
            response, reset = await super()._handle_request(request, start_time, request_handler)
            status = CLIENT_LEFT if reset else response.status
            return response, reset
        except asyncio.CancelledError:
            stream, task = self.stream, asyncio.current_task()
            if isinstance(stream, EventStream) and stream.ended and task and not task.uncancel():
                status = stream.response.status
                return stream.response, False
            self.stream = None
            raise
        finally:
            self._count_end(CLIENT_LEFT if self.transport is None else status)
            if isinstance(self.stream, WebSocket):
                # It stays: nothing but its end follows on this connection.
                await self.stream.finished()
            else:
                self.stream = None

    def _count_end(self, status: int) -> None:
        counter.end(self._began, status)
        self._began = NOT_COUNTED

    def data_received(self, data: bytes) -> None:
        """Remember whether the data started a request's head without ending it."""
        seen = self._request_count
        super().data_received(data)
        if isinstance(self.stream, WebSocket):
            self.stream.note_data()
        if self._request_count != seen:
            self._head_started = False
        elif (self._waiter is not None or seen == 0) and data.strip(b"\r\n"):
            self._head_started = True

    def idle_since(self) -> float | None:
        if self._waiter is None or self._messages or self._head_started:
            return None
        # A response is not over before the kernel has it.
        if self.transport is not None and self.transport.get_write_buffer_size() > 0:
            return None
        # aiohttp sets this at each response and at the start.
        return self._next_keepalive_close_time - self._keepalive_timeout

    def has_more(self) -> bool:
        """Whether the client has sent further requests behind the one being answered."""
        return bool(self._messages)

    def close_if_unread(self) -> None:
        if self.transport is None:
            return
        sock: socket.socket | None = self.transport.get_extra_info("socket")
        if sock is None or _unread_bytes(sock) > 0:
            return
        # The transport closes in a later turn of the loop. Shut down at once, so that the time in
        # which a request could cross the close is as short as possible.
        try:
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            _log.debug("a client left before its idle connection was closed")
        self.force_close()


def _unread_bytes(sock: socket.socket) -> int:
    count = array.array("i", [0])
    try:
        fcntl.ioctl(sock.fileno(), termios.FIONREAD, count)
    except OSError:
        return 0
    return count[0]


class _Listening:
    """The server side of the drain: accepts on every listener until it is stopped."""

    def __init__(
        self, server: web.Server, listeners: Sequence[Listener], options: dict[str, Any]
    ) -> None:
        self._server = server
        self._listeners = listeners
        self._options = options
        self._accepting: list[asyncio.Server] = []

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        drawn = drawn_from(self._listeners)
        for listener in self._listeners:
            # asyncio closes its socket. A duplicate keeps the inherited one open until the process
            # exits, because the group that it belongs to must not shrink.
            options = {**self._options, "drawn": listener in drawn}
            accepting = await loop.create_server(
                partial(_Connection, self._server, loop=loop, **options),
                sock=listener.socket.dup(),
                backlog=BACKLOG,
            )
            self._accepting.append(accepting)

    def addresses(self) -> Iterable[str]:
        return [f"{listener.url} ({listener.name})" for listener in self._listeners]

    def connections(self) -> Iterable[_Connection]:
        return [c for c in self._server.connections if isinstance(c, _Connection)]

    def streams(self) -> Iterable[Stream]:
        return [c.stream for c in self.connections() if c.stream is not None]

    def queue_length(self) -> int:
        return sum(listener.queue_length() for listener in self._listeners)

    def stop_accepting(self) -> None:
        for accepting in self._accepting:
            accepting.close()
        for listener in self._listeners:
            if not listener.inherited:
                listener.socket.close()


async def serve(
    app: web.Application,
    listeners: Sequence[Listener],
    instance: Instance,
    notifier: Notifier,
    *,
    handler_cancellation: bool = False,
    **options: Any,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain; returns at the end of the drain.

    `options` are those of aiohttp's `RequestHandler`. Raises OSError if a socket can't be listened
    on, and what the application's startup raises.
    """
    drain = new_drain(instance)
    app[DRAIN] = drain
    app.on_response_prepare.append(_marker(drain, instance.id))
    runner = web.AppRunner(
        app, shutdown_timeout=_CANCEL_SECONDS, handler_cancellation=handler_cancellation
    )
    await runner.setup()
    try:
        if runner.server is None:
            raise RuntimeError("aiohttp's runner has no server after its setup")
        counter.open()
        # An encoded body reaches the application as it was sent.
        listening = _Listening(runner.server, listeners, {"auto_decompress": False, **options})
        await serve_until_drained(drain, listening, instance, notifier)
    finally:
        await runner.cleanup()


def _marker(drain: DrainController, instance_id: str) -> Callable[..., Awaitable[None]]:
    """Return the hook that adds the kit's headers to each response and remembers streams."""

    async def mark(request: web.Request, response: web.StreamResponse) -> None:
        connection = request.protocol
        if PROBE_HEADER in request.headers:
            response.headers[INSTANCE_HEADER] = instance_id
        if isinstance(connection, _Connection):
            connection.notice(request, response, drain)
        if not drain.shedding or response.status == HTTPStatus.SWITCHING_PROTOCOLS:
            return
        # Requests that the client has already sent behind this one are still answered.
        if not (isinstance(connection, _Connection) and connection.has_more()):
            response.headers[hdrs.CONNECTION] = "close"
            response.force_close()

    return mark


def run_app(
    app: web.Application | Awaitable[web.Application],
    *,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    fd: int | None = None,
    instance: Instance | None = None,
    listeners: Sequence[Listener] | None = None,
    print: Callable[..., None] | None = builtins.print,  # noqa: A002 - its name in web.run_app
    access_log: logging.Logger | None = None,
    access_log_class: type[AbstractAccessLogger] = AccessLogger,
    access_log_format: str = AccessLogger.LOG_FORMAT,
    keepalive_timeout: float = 3630.0,
    handler_cancellation: bool = False,
    **unsupported: object,
) -> None:
    """Serve an application until SIGTERM or SIGINT; returns once it is drained.

    Replaces `web.run_app`. The sockets are `listeners`, else `fd`, else the inherited ones, else
    one on `host` and `ATLAS_PORT`, else on `host` and `port`. `print` is called with one line, the
    addresses. `keepalive_timeout` is in seconds.

    Raises TypeError for arguments of `web.run_app` that are not supported, `BadEnvironmentError`
    for an invalid environment, and OSError if the port can't be listened on.
    """
    _refuse(unsupported)
    instance = instance or Instance.from_environment(os.environ)
    if listeners is None:
        own_port = instance.port or port
        listeners = find_listeners(os.environ, host=host, port=None, fd=fd, own_port=own_port)
    options: dict[str, Any] = {"access_log": access_log, "keepalive_timeout": keepalive_timeout}
    options |= {"access_log_class": access_log_class, "access_log_format": access_log_format}

    async def main() -> None:
        application = await app if inspect.isawaitable(app) else app
        if not isinstance(application, web.Application):
            raise TypeError(
                f"run_app takes a web.Application or an awaitable of one, not {application!r}"
            )
        notifier = Notifier.from_environment(os.environ)
        await serve(
            application,
            listeners,
            instance,
            notifier,
            handler_cancellation=handler_cancellation,
            **options,
        )

    if print is not None:
        print("Serving on " + ", ".join(listener.url for listener in listeners))
    asyncio.run(main())


_UNSUPPORTED = {
    "path": "give fd=, or inherit the socket from the supervisor",
    "sock": "give fd=, or inherit the socket from the supervisor",
    "ssl_context": "end TLS in front of the public port",
    "shutdown_timeout": "set ATLAS_DRAIN_TIMEOUT_SECONDS",
    "backlog": "it is always the longest that the system allows",
    "reuse_address": "it is always set",
    "reuse_port": "the supervisor's sockets are shared already",
    "handle_signals": "SIGTERM starts the drain",
    "loop": "it runs in its own loop",
}


def _refuse(arguments: dict[str, object]) -> None:
    for name in arguments:
        if name in _UNSUPPORTED:
            raise TypeError(f"run_app does not take {name}=: {_UNSUPPORTED[name]}")
        raise TypeError(f"run_app has no argument {name}=")
