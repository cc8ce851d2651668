"""One connection and the HTTP/1.1 exchanges on it, read to the letter.

What comes is either a whole answer with unambiguous framing and nothing behind it, or a
`LostError` that says which way it went wrong.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

HEAD_LIMIT = 64 * 1024


class Reason(StrEnum):
    """In which way a request was lost."""

    REFUSED = "refused"
    RESET = "reset"
    CLOSED = "closed before the answer"
    TRUNCATED = "truncated"
    MALFORMED = "malformed"
    SURPLUS = "bytes nobody asked for"
    WRONG_STATUS = "wrong status"
    WRONG_BODY = "wrong body"
    TIMEOUT = "timed out"
    HANDSHAKE = "no WebSocket handshake"
    NO_GOODBYE = "ended without a close frame"
    WRONG_GOODBYE = "wrong close code"
    UNANSWERED = "closed with an answer owed"
    OUT_OF_ORDER = "event missing or repeated"


class LostError(Exception):
    """The request did not get its full, right answer."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Response:
    """A whole answer. Header names are in lower case; `closes`: the connection ends with it."""

    status: int
    headers: dict[str, str]
    body: bytes
    closes: bool


class Wire(asyncio.Protocol):
    """One TCP connection to the server; one request at a time."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._ended = False
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport | None = None
        self._readable = select.poll()
        self.exchanges = 0

    # What the event loop tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._readable.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._wake()

    def eof_received(self) -> bool:
        self._ended = True
        self._wake()
        return True  # stays open for writing until close(): it is ours to end

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        self._error = exc
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # What a client does.

    @property
    def connected(self) -> bool:
        """Whether `connect` has been done."""
        return self._transport is not None

    async def connect(self, host: str, port: int) -> None:
        """Open the connection. Raises `LostError` where the server would not have it."""
        try:
            await asyncio.get_running_loop().create_connection(lambda: self, host, port)
        except ConnectionRefusedError as error:
            raise LostError(Reason.REFUSED, str(error)) from None
        except ConnectionError as error:
            raise LostError(Reason.RESET, f"while connecting: {error}") from None

    async def reusable(self) -> bool:
        """Tell whether the server still holds this idle connection open.

        The kernel is asked, not only the event loop: a close that has arrived here must count as
        seen, or the client would blame the server for its own delay. Bytes that nobody asked for
        leave it reusable, and spoil the next exchange, as they would for any client.
        """
        if not self._ended and not self._buffer and self._readable.poll(0):
            await self._more()
        return not self._ended or bool(self._buffer)

    async def exchange(self, head: bytes, pieces: Sequence[bytes], pause: float) -> Response:
        """Send a request, its body in `pieces` with `pause` seconds before each, and read all.

        Raises `LostError`. An answer that comes before the body is out ends the sending.
        """
        assert self._transport is not None
        self.exchanges += 1
        if pause:
            self._transport.write(head)
            for piece in pieces:
                if await self._answered_within(pause):
                    break
                self._transport.write(piece)
        else:
            self._transport.write(b"".join((head, *pieces)))
        response = await self._response()
        await self.reusable()
        if self._buffer:
            raise LostError(Reason.SURPLUS, f"{bytes(self._buffer[:80])!r} after the answer")
        return response

    async def open_stream(self, head: bytes) -> dict[str, str]:
        """Send a request and read the head of its answer, which must be 200 and in chunks.

        The body is then read by `chunk`. Raises `LostError`.
        """
        assert self._transport is not None
        self.exchanges += 1
        self._transport.write(head)
        _, status, headers = parse_head(await self._until(b"\r\n\r\n", "before the answer"))
        if status != 200:
            raise LostError(Reason.WRONG_STATUS, f"{status}")
        if headers.get("transfer-encoding", "").lower() != "chunked":
            raise LostError(Reason.MALFORMED, f"a stream must come in chunks: {headers}")
        return headers

    async def chunk(self) -> bytes:
        """Return the next chunk of a body; empty at its proper end. Raises `LostError`."""
        line = (await self._until(b"\r\n", "in a chunk's size")).split(b";")[0].strip()
        try:
            size = int(line, 16)
        except ValueError:
            raise LostError(Reason.MALFORMED, f"chunk size {line!r}") from None
        if size == 0:
            while await self._until(b"\r\n", "in the trailers"):
                pass
            return b""
        found = await self._exactly(size, "in a chunk")
        if await self._exactly(2, "after a chunk") != b"\r\n":
            raise LostError(Reason.MALFORMED, "a chunk longer than its size")
        return found

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.close()

    # Reading.

    async def _answered_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._more()
        except TimeoutError:
            return False
        return True

    async def _more(self) -> bool:
        """Wait for bytes; False at the end of the stream."""
        if self._ended:
            return False
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        # Bytes and the end may have come together; the bytes are to be read first.
        return True

    def _broken(self, where: str) -> LostError:
        if self._error is not None:
            return LostError(Reason.RESET, f"{where}: {self._error}")
        if where == "before the answer" and not self._buffer:
            return LostError(Reason.CLOSED, "the connection ended without an answer")
        return LostError(Reason.TRUNCATED, f"{where}: {len(self._buffer)} bytes had come")

    async def _until(self, mark: bytes, where: str) -> bytes:
        while (end := self._buffer.find(mark)) < 0:
            if len(self._buffer) > HEAD_LIMIT:
                raise LostError(Reason.MALFORMED, f"no end of line {where}")
            if not await self._more():
                raise self._broken(where)
        found = bytes(self._buffer[:end])
        del self._buffer[: end + len(mark)]
        return found

    async def _exactly(self, size: int, where: str) -> bytes:
        while len(self._buffer) < size:
            if not await self._more():
                raise self._broken(f"{where} of {size} bytes")
        found = bytes(self._buffer[:size])
        del self._buffer[:size]
        return found

    async def _response(self) -> Response:
        while True:
            version, status, headers = parse_head(
                await self._until(b"\r\n\r\n", "before the answer")
            )
            if status >= 200:
                break
            if status == 101:
                raise LostError(Reason.MALFORMED, "101 without an upgrade asked for")
        connection = {word.strip().lower() for word in headers.get("connection", "").split(",")}
        closes = "close" in connection or (version == "1.0" and "keep-alive" not in connection)
        body, delimited = await self._body(status, headers)
        return Response(status, headers, body, closes or not delimited)

    async def _body(self, status: int, headers: dict[str, str]) -> tuple[bytes, bool]:
        """Return the body and whether its end was told by more than the connection's."""
        if status in {204, 304}:
            return b"", True
        coding, length = headers.get("transfer-encoding"), headers.get("content-length")
        if coding is not None:
            if coding.lower() != "chunked" or length is not None:
                raise LostError(Reason.MALFORMED, f"framing: {coding=} {length=}")
            return await self._chunks(), True
        if length is not None:
            if not (length.isascii() and length.isdigit()):
                raise LostError(Reason.MALFORMED, f"{length=}")
            return await self._exactly(int(length), "in the body"), True
        while await self._more():
            pass
        if self._error is not None:
            raise self._broken("in the body")
        body = bytes(self._buffer)
        self._buffer.clear()
        return body, False

    async def _chunks(self) -> bytes:
        body = bytearray()
        while piece := await self.chunk():
            body += piece
        return bytes(body)


def parse_head(raw: bytes) -> tuple[str, int, dict[str, str]]:
    """Return HTTP version, status and headers; a header given twice is joined, as RFC 9110 says."""
    start, *lines = raw.decode("latin-1").split("\r\n")
    protocol, _, rest = start.partition(" ")
    status = rest[:3]
    if protocol not in {"HTTP/1.1", "HTTP/1.0"} or not (status.isascii() and status.isdigit()):
        raise LostError(Reason.MALFORMED, f"status line {start[:80]!r}")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise LostError(Reason.MALFORMED, f"header line {line[:80]!r}")
        name, value = name.lower(), value.strip()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return protocol.removeprefix("HTTP/"), int(status), headers
