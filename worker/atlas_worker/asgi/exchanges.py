"""Wraps an ASGI application: knows its running exchanges, and adds the kit's headers.

Plain ASGI and the standard library only; the runner and the middleware both use it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Protocol

from atlas_worker.asgi.streams import (
    AsgiEventStream,
    GoneError,
    Message,
    Receive,
    Send,
    WebSocketStream,
)
from atlas_worker.contract import INSTANCE_HEADER, PROBE_HEADER
from atlas_worker.drain import DrainController, Stream
from atlas_worker.events import is_event_stream

Scope = MutableMapping[str, Any]
# Any: frameworks type the three in ways of their own.
App = Callable[[Any, Any, Any], Awaitable[None]]

LED_BY_KIT = "atlas.kit"
"""A key of the lifespan's scope: the kit itself is the server, so its middleware steps aside."""

_PROBE = PROBE_HEADER.lower().encode()
_INSTANCE = INSTANCE_HEADER.lower().encode()


class ExchangeConnection(Protocol):
    """The connection of an exchange, as its server's adapter shows it."""

    def can_close(self) -> bool:
        """Return whether a close after this response loses nothing that the client has sent."""

    def close_after_answer(self) -> None:
        """Close it once the current response is complete."""


class _Plain:
    """A connection of which nothing is known."""

    def can_close(self) -> bool:
        return True

    def close_after_answer(self) -> None:
        pass


class Exchange:
    """One call of the application: a request or a WebSocket."""

    def __init__(self, connection: ExchangeConnection) -> None:
        self.connection = connection
        self.stream: Stream | None = None


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
        exchange = Exchange(connection)
        self._running.add(exchange)
        try:
            await self._app(scope, receive, wrap(exchange, scope, send))
        except GoneError:
            # The kit's own: it ended the application's stream.
            return
        finally:
            self._running.discard(exchange)

    def _http(self, exchange: Exchange, scope: Scope, send: Send) -> Send:
        stream: AsgiEventStream | None = None

        async def send_marked(message: Message) -> None:
            nonlocal stream
            if message["type"] == "http.response.start":
                message = self._marked(exchange.connection, scope, message)
                stream = self._stream_of(exchange, scope, message, send)
            elif stream is not None and message["type"] == "http.response.body":
                await stream.send(message)
                return
            await send(message)

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

    def _marked(self, connection: ExchangeConnection, scope: Scope, message: Message) -> Message:
        """Add the kit's headers to a response."""
        probed = any(name == _PROBE for name, _ in scope["headers"])
        # HTTP/2 and later have no such header; there the server announces the close itself.
        closes = (
            self._drain.shedding
            and scope.get("http_version", "1.1").startswith("1")
            and connection.can_close()
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
            if message["type"] == "websocket.accept":
                exchange.stream = stream = WebSocketStream(send)

        return send_until_closed
