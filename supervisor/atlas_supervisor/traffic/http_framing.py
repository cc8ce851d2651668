"""Follows the HTTP/1 messages in the bytes of a relayed connection. Pure.

A stream that pauses and an answer that has ended look alike to the kernel. Their framing tells
them apart (RFC 9112): the length of an answer, its last chunk, or the end of the connection. No
byte is changed or kept, except for the head of a message that has arrived in part.

Bytes that are no HTTP/1, such as TLS, or no longer, such as those of a WebSocket, have no framing.
"""

from __future__ import annotations

import re
import time
from collections import deque
from enum import Enum, auto

from atlas_supervisor.traffic.request_tally import RequestTally
from atlas_worker.contract import PROBE_HEADER, SMOKE_HEADER

_HEAD_LIMIT = 64 * 1024
"""Bytes of one head or line. Beyond it the bytes count as something else."""
_LINE_WINDOW = 64  # there may be thousands of chunks in one read
_PIPELINE_LIMIT = 1000
"""Requests of one client without an answer; for the same reason."""

_END_OF_HEAD = re.compile(rb"\n\r?\n")
_REQUEST = re.compile(rb"([A-Z]+) [^\r\n]* HTTP/1\.[01]\r?\n")
_RESPONSE = re.compile(rb"HTTP/1\.[01] (\d\d\d)[ \r\n]")
_LENGTH = re.compile(rb"\ncontent-length:[ \t]*(\d{1,18})[ \t]*\r?\n", re.IGNORECASE)
_ENCODING = re.compile(rb"\ntransfer-encoding:([^\r\n]*)", re.IGNORECASE)
_CHUNK = re.compile(rb"[ \t]*([0-9a-fA-F]{1,15})[ \t]*(?:;[^\n]*)?\r?\n")
_OWN = re.compile(b"\n(?:%s|%s):" % (PROBE_HEADER.encode(), SMOKE_HEADER.encode()), re.IGNORECASE)
_VERSION = b"HTTP/1."


class _Next(Enum):
    """What the next bytes of one direction belong to."""

    HEAD = auto()
    BODY = auto()
    CHUNK_SIZE = auto()
    CHUNK = auto()
    TRAILER = auto()
    UNTIL_CLOSE = auto()


class _NotHttpError(Exception):
    """The bytes have no framing."""


class _Direction:
    """The messages of one direction."""

    __slots__ = ("left", "next", "partial")

    def __init__(self) -> None:
        self.next = _Next.HEAD
        self.left = 0
        """Bytes of the body or the chunk that are still to come."""
        self.partial = b""
        """The beginning of a head or a line."""

    @property
    def within(self) -> bool:
        """Whether a message has begun and not ended."""
        return self.next is not _Next.HEAD or bool(self.partial)

    def skip(self, available: int) -> int:
        """Return how many of the available bytes belong to the body, which is not read."""
        if self.next is _Next.UNTIL_CLOSE:
            return available
        taken = min(self.left, available)
        self.left -= taken
        if not self.left:
            self.next = _Next.CHUNK_SIZE if self.next is _Next.CHUNK else _Next.HEAD
        return taken

    def expect_body(self, head: bytes) -> bool:
        """Expect the body whose end the head announces; return whether it announces any."""
        encoding, length = _ENCODING.search(head), _LENGTH.search(head)
        if encoding and encoding[1].strip().lower().endswith(b"chunked"):
            self.next = _Next.CHUNK_SIZE
        elif length and not encoding:
            self.left = int(length[1])
            self.next = _Next.BODY if self.left else _Next.HEAD
        else:
            return False
        return True

    def chunk_line(self, data: bytes) -> int:
        """Read the line before a chunk; return the position after it, 0 if it is not complete."""
        found = _CHUNK.match(data)
        if found is None:
            if b"\n" in data:
                raise _NotHttpError
            return 0
        size = int(found[1], 16)
        if not size:
            self.next = _Next.TRAILER
            return found.end() - 1  # the empty line after the trailers needs a line's end before it
        self.next, self.left = _Next.CHUNK, size + len(b"\r\n")
        return found.end()


class Exchanges:
    """The requests and answers of one connection, so far."""

    __slots__ = (
        "_began",
        "_http",
        "_methods",
        "_requests",
        "_responses",
        "_status",
        "_tally",
        "since",
    )

    def __init__(self, tally: RequestTally | None = None, since: float = 0.0) -> None:
        """Count the requests, unless there is no tally.

        `since` is when the connection began, if it was drawn between two versions; else 0.
        """
        self._tally = tally
        self.since = since
        """When the connection began, until its first request."""
        self._began: deque[float] = deque()
        """When the requests began whose answer has not ended; 0 for the supervisor's own."""
        self._status = 0
        """That of the answer that has begun and not ended."""
        self._requests, self._responses = _Direction(), _Direction()
        self._methods: deque[bytes] = deque()
        """The requests whose answer has not begun."""
        self._http = True

    @property
    def pending(self) -> bool | None:
        """Whether an answer is not complete; None if the bytes have no framing."""
        if not self._http:
            return None
        return bool(self._methods) or self._requests.within or self._responses.within

    @property
    def awaits_client(self) -> bool:
        """Whether the rest of a request is to come, and no answer before it."""
        unanswered = len(self._methods) - (self._requests.next is not _Next.HEAD)
        answering = unanswered > 0 or self._responses.within
        return self._http and self._requests.within and not answering

    def client_sent(self, data: memoryview) -> None:
        """Follow the client's bytes."""
        self._follow(self._requests, data)

    def server_sent(self, data: memoryview) -> None:
        """Follow the server's bytes."""
        self._follow(self._responses, data)

    def _follow(self, direction: _Direction, data: memoryview) -> None:
        position = 0
        try:
            while self._http and position < len(data):
                if direction.left or direction.next is _Next.UNTIL_CLOSE:
                    position += direction.skip(len(data) - position)
                else:
                    position = self._read(direction, data, position)
                if self._status and self._responses.next is _Next.HEAD:
                    self._count_end()
        except _NotHttpError:
            self.give_up()

    def _count_end(self) -> None:
        if self._tally is not None and self._began:
            self._tally.end(self._began.popleft(), time.monotonic(), self._status)
        self._status = 0

    def closed(self, *, by_client: bool) -> None:
        """Count the requests whose answer has not ended."""
        if self._tally is None:
            return
        if not by_client and self._responses.next is _Next.UNTIL_CLOSE:
            self._count_end()
        now = time.monotonic()
        for began in self._began:
            self._tally.lose(began, now, by_client=by_client)
        self._began.clear()

    def give_up(self) -> None:
        """Take the bytes from here on for another protocol."""
        self._http = False
        if self._tally is not None:
            now = time.monotonic()
            for began in self._began:  # nothing is known of them
                self._tally.lose(began, now, by_client=True)
        self._began.clear()
        self._requests.partial = self._responses.partial = b""
        self._methods.clear()

    def _read(self, direction: _Direction, data: memoryview, position: int) -> int:
        """Read a head or a line, and return the position after it."""
        before = direction.partial
        window = _LINE_WINDOW if direction.next is _Next.CHUNK_SIZE else _HEAD_LIMIT
        piece = before + bytes(data[position : position + window])
        if direction.next is _Next.CHUNK_SIZE:
            end = direction.chunk_line(piece)
        elif direction.next is _Next.TRAILER:
            if end := _end_of_head(piece):
                direction.next = _Next.HEAD
        elif empty := 0 if before else len(piece) - len(piece.lstrip(b"\r\n")):
            return position + empty  # empty lines before a message are allowed
        elif end := _end_of_head(piece):
            self._begin(direction, piece[:end])
        elif not _may_begin(piece, response=direction is self._responses):
            raise _NotHttpError
        if end:
            direction.partial = b""
            return position + end - len(before)
        if len(piece) >= _HEAD_LIMIT:
            raise _NotHttpError
        direction.partial = piece
        return min(position + window, len(data))

    def _begin(self, direction: _Direction, head: bytes) -> None:
        if direction is self._requests:
            self._begin_request(head)
        else:
            self._begin_response(head)

    def _begin_request(self, head: bytes) -> None:
        found = _REQUEST.match(head)
        if found is None or len(self._methods) >= _PIPELINE_LIMIT:
            raise _NotHttpError
        self._methods.append(found[1])
        if self._tally is not None:
            counted = not _OWN.search(head)
            began = self._tally.begin(time.monotonic(), self.since) if counted else 0.0
            self._began.append(began)
            self.since = 0.0
        self._requests.expect_body(head)

    def _begin_response(self, head: bytes) -> None:
        found = _RESPONSE.match(head)
        if found is None:
            raise _NotHttpError
        status = int(found[1])
        if 100 <= status <= 199 and status != 101:
            return  # the answer itself is still to come
        method = self._methods.popleft() if self._methods else b""
        self._status = status
        if status == 101 or (method == b"CONNECT" and status <= 299):
            self._count_end()
            self.give_up()  # another protocol from here on
        elif method == b"HEAD" or status in {204, 304}:
            pass
        elif not self._responses.expect_body(head):
            self._responses.next = _Next.UNTIL_CLOSE


def _end_of_head(data: bytes) -> int:
    """Return the position after the first empty line; 0 if there is none."""
    found = _END_OF_HEAD.search(data)
    return found.end() if found else 0


def _may_begin(data: bytes, *, response: bool) -> bool:
    """Return whether a message may begin like this."""
    if response:
        return _VERSION.startswith(data[: len(_VERSION)])
    return data[:1].isalpha() and data[:1].isupper()
