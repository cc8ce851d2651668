"""A server that spoils one answer in ten, each time in another way, and remembers which.

It is what the strict client is measured against: the client must find these losses and no others.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

EVERY = 10
SWAP_WAITS_SECONDS = 0.3


@dataclass(frozen=True)
class Asked:
    """One request as it arrived, with the answer that is due."""

    token: str
    closes: bool
    answer: bytes
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def respond(self, body: bytes, *, status: str = "200 OK") -> bytes:
        """Frame a body, by length or in chunks, as a sound server would."""
        lines = [f"HTTP/1.1 {status}", *(["Connection: close"] if self.closes else [])]
        if int(self.token[1:]) % 3:
            lines.append(f"Content-Length: {len(body)}")
            return "\r\n".join([*lines, "", ""]).encode() + body
        lines.append("Transfer-Encoding: chunked")
        half = len(body) // 2
        chunks = b"".join(
            b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:half], body[half:]) if part
        )
        return "\r\n".join([*lines, "", ""]).encode() + chunks + b"0\r\n\r\n"


Fault = Callable[["FaultyServer", Asked], Awaitable[bool]]
"""Answers wrongly. Returns whether the connection goes on."""


async def no_answer(_server: FaultyServer, _asked: Asked) -> bool:
    return False


async def reset(_server: FaultyServer, asked: Asked) -> bool:
    lingering = asked.writer.get_extra_info("socket")
    lingering.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    asked.writer.transport.abort()
    return False


async def cut_in_the_head(_server: FaultyServer, asked: Asked) -> bool:
    asked.writer.write(b"HTTP/1.1 200 OK\r\nContent-Len")
    return False


async def cut_in_the_body(_server: FaultyServer, asked: Asked) -> bool:
    asked.writer.write(asked.respond(asked.answer)[:-1])
    return False


async def wrong_body(_server: FaultyServer, asked: Asked) -> bool:
    asked.writer.write(asked.respond(bytes(reversed(asked.answer))))
    return not asked.closes


async def wrong_status(_server: FaultyServer, asked: Asked) -> bool:
    asked.writer.write(asked.respond(asked.answer, status="503 Service Unavailable"))
    return not asked.closes


async def more_than_asked_for(_server: FaultyServer, asked: Asked) -> bool:
    asked.writer.write(asked.respond(asked.answer) + b"HTTP/1.1 200 OK\r\n")
    return False


async def yesterdays_answer(server: FaultyServer, asked: Asked) -> bool:
    asked.writer.write(asked.respond(server.last_answer))
    return not asked.closes


async def silence(_server: FaultyServer, asked: Asked) -> bool:
    await asked.reader.read()  # until the client has had enough
    return False


async def no_http(_server: FaultyServer, asked: Asked) -> bool:
    asked.writer.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
    return False


async def two_framings(_server: FaultyServer, asked: Asked) -> bool:
    asked.writer.write(
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    )
    return False


async def swapped(server: FaultyServer, asked: Asked) -> bool:
    """Give this answer to the next request, and the next one's to this."""
    partner: asyncio.Future[Asked] = asyncio.get_running_loop().create_future()
    server.to_swap = (asked, partner)
    try:
        other = await asyncio.wait_for(partner, SWAP_WAITS_SECONDS)
    except TimeoutError:
        server.to_swap = None
        del server.faults[asked.token]
        asked.writer.write(asked.respond(asked.answer))
    else:
        asked.writer.write(asked.respond(other.answer))
    return not asked.closes


FAULTS: tuple[Fault, ...] = (
    no_answer,
    reset,
    cut_in_the_head,
    cut_in_the_body,
    wrong_body,
    wrong_status,
    more_than_asked_for,
    yesterdays_answer,
    silence,
    no_http,
    two_framings,
    swapped,
)


@dataclass
class FaultyServer:
    """What it did to whom, by the tokens of the requests."""

    port: int = 0
    faults: dict[str, str] = field(default_factory=dict)
    served: set[str] = field(default_factory=set)
    last_answer: bytes = b"nothing yet"
    to_swap: tuple[Asked, asyncio.Future[Asked]] | None = None
    _count: int = 0
    _cycle: itertools.cycle[Fault] = field(default_factory=lambda: itertools.cycle(FAULTS))
    _connections: set[asyncio.Task[None]] = field(default_factory=set)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[FaultyServer]:
        """Serve on a free port of the loopback address."""
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            await asyncio.gather(*self._connections)
            await server.wait_closed()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while (asked := await read_request(reader, writer)) and await self.answer(asked):
                pass
        except ConnectionError:
            pass  # the client gave up, as it may
        finally:
            writer.close()
            self._connections.discard(task)

    async def answer(self, asked: Asked) -> bool:
        """Answer one request, rightly nine times in ten; False ends the connection."""
        self._count += 1
        if self.to_swap is not None and not self.to_swap[1].done():
            other, partner = self.to_swap
            self.to_swap = None
            self.faults[asked.token] = "swapped"
            asked.writer.write(asked.respond(other.answer))
            partner.set_result(asked)
            return not asked.closes
        if self._count % EVERY == 0:
            fault = next(self._cycle)
            self.faults[asked.token] = fault.__name__
            return await fault(self, asked)
        self.served.add(asked.token)
        self.last_answer = asked.answer
        asked.writer.write(asked.respond(asked.answer))
        return not asked.closes


async def read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Asked | None:
    """Read the next request; None where the client has closed the connection."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        fields = (line.partition(":") for line in head.decode().split("\r\n")[1:])
        headers = {name.lower(): value.strip() for name, _, value in fields}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    except asyncio.IncompleteReadError:
        return None
    token = headers["x-request-id"]
    closes = headers.get("connection") == "close"
    return Asked(token, closes, body or f"{token} faulty".encode(), reader, writer)
