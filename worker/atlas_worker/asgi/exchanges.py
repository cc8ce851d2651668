"""Wraps an ASGI application: knows and counts its exchanges, and adds the kit's headers.

Plain ASGI and the standard library only; the runner and the middleware both use it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from http import HTTPStatus
from typing import Any, Protocol

from atlas_worker.asgi.streams import (
    AsgiEventStream,
    GoneError,
    Message,
    Receive,
    Send,
    WebSocketStream,
)
from atlas_worker.contract import INSTANCE_HEADER, PROBE_HEADER, SMOKE_HEADER
from atlas_worker.drain import DrainController, Stream
from atlas_worker.events import is_event_stream
from atlas_worker.request_counter import (
    CLIENT_LEFT,
    NOT_COUNTED,
    NOT_DRAWN,
    UNFINISHED,
    counter,
)

Scope = MutableMapping[str, Any]
# Any: frameworks type the three in ways of their own.
App = Callable[[Any, Any, Any], Awaitable[None]]

LED_BY_KIT = "atlas.kit"
"""A key of the lifespan's scope: the kit itself is the server, so its middleware steps aside."""

_PROBE = PROBE_HEADER.lower().encode()
_SMOKE = SMOKE_HEADER.lower().encode()
_INSTANCE = INSTANCE_HEADER.lower().encode()
_LAST = frozenset({"http.response.body", "http.response.pathsend"})
_LEFT = frozenset({"http.disconnect", "websocket.disconnect"})


class ExchangeConnection(Protocol):
    """The connection of an exchange, as its server's adapter shows it."""

    first_since: float
    """When it began, before its first request; else NOT_DRAWN."""

    def can_close(self) -> bool:
        """Return whether a close after this response loses nothing that the client has sent."""

    def close_after_answer(self) -> None:
        """Close it once the current response is complete."""


class _Plain:
    """A connection of which nothing is known."""

    first_since = NOT_DRAWN

    def can_close(self) -> bool:
        return True

    def close_after_answer(self) -> None:
        pass


class Exchange:
    """One call of the application: a request or a WebSocket."""

    __slots__ = ("began", "connection", "left", "probed", "receiving", "status", "stream")

    def __init__(
        self, connection: ExchangeConnection, headers: Iterable[tuple[bytes, bytes]]
    ) -> None:
        self.connection = connection
        self.stream: Stream | None = None
        self.probed = supervisors = False
        for name, _ in headers:
            if name == _PROBE:
                self.probed = supervisors = True
            elif name == _SMOKE:
                supervisors = True
        self.began = NOT_COUNTED if supervisors else counter.begin(connection.first_since)
        connection.first_since = NOT_DRAWN
        self.status = UNFINISHED
        self.left = False
        self.receiving = 0
        """The number of the application's pending call of `receive`; 0 if none is."""

    def count_end(self, status: int) -> None:
        """Count the end of the request; later ones have no effect."""
        counter.end(self.began, status)
        self.began = NOT_COUNTED

    def count_rest(self) -> None:
        """Count a request that the application has not ended."""
        self.count_end(CLIENT_LEFT if self.left else UNFINISHED)


class Exchanges:
    """An ASGI application around another one; tracks exchanges and marks responses."""

    def __init__(self, app: App, drain: DrainController, instance_id: str) -> None:
        self._app = app
        self._drain = drain
        self._instance = instance_id.encode("latin-1", "replace")
        self._running: set[Exchange] = set()

    def running(self) -> Iterable[Exchange]:
        """Return the calls that have not ended, their work after the response included."""
        return list(self._running)

    def streams(self) -> Iterable[Stream]:
        """Return the streams among them."""
        return [exchange.stream for exchange in self._running if exchange.stream is not None]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve as ASGI has it, on a connection of which nothing is known."""
        await self.serve(_Plain(), scope, receive, send)

    async def serve(
        self, connection: ExchangeConnection, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Serve one exchange of this connection."""
        wrap: Callable[[Exchange, Scope, Send], Send]
        if scope["type"] == "http":
            wrap = self._http
        elif scope["type"] == "websocket":
            wrap = self._websocket
        else:
            await self._app({**scope, LED_BY_KIT: True}, receive, send)
            return
        exchange = Exchange(connection, scope["headers"])
        self._running.add(exchange)

        calls = 0

        async def receive_noted() -> Message:
            nonlocal calls
            exchange.receiving = calls = calls + 1
            try:
                message = await receive()
            finally:
                exchange.receiving = 0
            if message["type"] in _LEFT:
                exchange.left = True
            return message

        try:
            await self._app(scope, receive_noted, wrap(exchange, scope, send))
        except GoneError:
            # The kit's own: it ended the application's stream.
            exchange.count_end(exchange.status)
            return
        finally:
            exchange.count_rest()
            self._running.discard(exchange)

    def _http(self, exchange: Exchange, scope: Scope, send: Send) -> Send:
        stream: AsgiEventStream | None = None

        async def send_marked(message: Message) -> None:
            nonlocal stream
            kind = message["type"]
            if kind == "http.response.start":
                exchange.status = message["status"]
                message = self._marked(exchange, scope, message)
                stream = self._stream_of(exchange, scope, message, send)
            try:
                if stream is not None and kind == "http.response.body":
                    await stream.send(message)
                else:
                    await send(message)
            except OSError:  # as servers report a client that left
                exchange.left = True
                raise
            if kind in _LAST and not message.get("more_body", False):
                exchange.count_end(exchange.status)

        return send_marked

    def _stream_of(
        self, exchange: Exchange, scope: Scope, message: Message, send: Send
    ) -> AsgiEventStream | None:
        headers = {name.lower(): value for name, value in message.get("headers", ())}
        content_type = headers.get(b"content-type", b"").decode("latin-1")
        # To a HEAD the application sends endless events as well, which the server discards.
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        # With a length it ends by itself.
        if b"content-length" in headers or not is_event_stream(method, content_type):
            return None
        encoding = headers.get(b"content-encoding", b"identity")
        stream = AsgiEventStream(
            send,
            encoded=encoding != b"identity",
            last=exchange.connection.close_after_answer,
        )
        exchange.stream = stream
        return stream

    def _marked(self, exchange: Exchange, scope: Scope, message: Message) -> Message:
        """Add the kit's headers to a response."""
        probed = exchange.probed
        # HTTP/2 and later have no such header; there the server announces the close itself.
        closes = (
            self._drain.shedding
            and scope.get("http_version", "1.1").startswith("1")
            and exchange.connection.can_close()
        )
        if not (probed or closes):
            return message
        headers = list(message.get("headers", ()))
        if probed:
            # The middleware may have added it already.
            headers = [header for header in headers if header[0].lower() != _INSTANCE]
            headers.append((_INSTANCE, self._instance))
        if closes:
            headers = [header for header in headers if header[0].lower() != b"connection"]
            headers.append((b"connection", b"close"))
        return {**message, "headers": headers}

    def _websocket(self, exchange: Exchange, _scope: Scope, send: Send) -> Send:
        stream: WebSocketStream | None = None

        async def send_until_closed(message: Message) -> None:
            nonlocal stream
            if stream is not None:
                await stream.send(message)
                return
            await send(message)
            kind = message["type"]
            if kind == "websocket.accept":
                exchange.count_end(HTTPStatus.SWITCHING_PROTOCOLS)
                exchange.stream = stream = WebSocketStream(
                    send,
                    receiving=lambda: exchange.receiving,
                    remaining=lambda: self._drain.remaining,
                )
            elif kind == "websocket.close":  # before it was accepted
                exchange.count_end(HTTPStatus.FORBIDDEN)
            elif kind == "websocket.http.response.start":
                exchange.count_end(message["status"])

        return send_until_closed
