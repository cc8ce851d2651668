"""Small servers that misbehave in one way each, on free loopback ports."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

Handler = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]
"""Gets a request's head and body as they came, and writes what it likes."""


class Server:
    """A running server and its requests."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.requests: list[bytes] = []
        self.connections = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@asynccontextmanager
async def serve(handler: Handler, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    """Serve each request by the handler; open connections are cut off at the end."""
    writers: set[asyncio.StreamWriter] = set()
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.connections += 1
        writers.add(writer)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = [line for line in head.lower().split(b"\r\n") if b"content-length" in line]
            body = await reader.readexactly(int(length[0].split(b":")[1])) if length else b""
            server.requests.append(head + body)
            await handler(head + body, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has left, as it may
        finally:
            writer.close()

    def start(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(handle(reader, writer))
        tasks.add(task)

    listener = await asyncio.start_server(start, "127.0.0.1", 0, ssl=tls)
    server = Server(listener.sockets[0].getsockname()[1])
    try:
        yield server
    finally:
        listener.close()
        await listener.wait_closed()
        for task in tasks:
            task.cancel()
        for writer in writers:
            with contextlib.suppress(AttributeError):  # Python 3.11.2: TLS that has ended already
                writer.transport.abort()
        await asyncio.gather(*tasks, return_exceptions=True)


def answer(body: bytes = b"ok", status: str = "200 OK", headers: str = "") -> Handler:
    """Return a handler that answers properly."""

    async def handler(_request: bytes, writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
        writer.write(head.encode() + body)
        await writer.drain()

    return handler


def raw(data: bytes, *, hold: bool = False) -> Handler:
    """Return a handler that writes just that, and then closes or (`hold`) never does."""

    async def handler(_request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        if hold:
            await asyncio.Event().wait()

    return handler


def endless(piece: bytes, *, pause_seconds: float = 0.0, head: bytes = b"") -> Handler:
    """Return a handler that writes a head, and then pieces without end."""

    async def handler(_request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while True:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause_seconds)

    return handler


async def reset(_request: bytes, writer: asyncio.StreamWriter) -> None:
    """Reset the connection instead of answering."""
    link = writer.get_extra_info("socket")
    link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def unused_port() -> int:
    """Return a port without a listener."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
