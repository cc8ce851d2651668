"""Kinds of traffic: what is asked, how it is sent, and what a right answer is.

Every request is unique, so that somebody else's answer, or yesterday's, is no right answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from tests.loadclient.eventstream import EventTraffic
from tests.loadclient.websocket import WebSocketTraffic
from tests.loadclient.wire import LostError, Reason, Response

UPLOAD_PIECES = 8


@dataclass(frozen=True)
class Request:
    """One request, ready to send; `pause` is the time before each piece of its body, in seconds."""

    token: str
    head: bytes
    body: bytes
    pieces: tuple[bytes, ...]
    pause: float


Check = Callable[[Request, Response], str]
"""Returns who answered; raises `LostError` if it is not this request's right answer."""


@dataclass(frozen=True)
class Traffic:
    """One kind of traffic: `loops` clients, each with one request at a time.

    `drip` and `think` are ranges of seconds: the time over which the body is sent in pieces, and
    the pause between two requests. `timeout` is for one request in all, connecting included.
    Each request has its own `X-Request-Id`, and a body of its own.
    """

    name: str
    loops: int
    check: Check
    method: str = "GET"
    path: str = "/"
    body_size: int = 0
    keep_alive: bool = True
    drip: tuple[float, float] | None = None
    think: tuple[float, float] = (0.0, 0.0)
    timeout: float = 15.0

    def request(self, token: str, random: Random) -> Request:
        """Make the next request."""
        body = random.randbytes(self.body_size)
        lines = [
            f"{self.method} {self.path} HTTP/1.1",
            "Host: atlas.test",
            f"X-Request-Id: {token}",
        ]
        if self.body_size:
            lines += ["Content-Type: application/octet-stream", f"Content-Length: {len(body)}"]
        if not self.keep_alive:
            lines.append("Connection: close")
        head = "\r\n".join([*lines, "", ""]).encode()
        if self.drip is None:
            return Request(token, head, body, (body,) if body else (), 0.0)
        size = -(-len(body) // UPLOAD_PIECES)
        pieces = tuple(body[at : at + size] for at in range(0, len(body), size))
        return Request(token, head, body, pieces, random.uniform(*self.drip) / len(pieces))


def require_ok(response: Response) -> None:
    """Raise `LostError` unless the status is 200."""
    if response.status != 200:
        detail = f"{response.status} {response.body[:200]!r}"
        raise LostError(Reason.WRONG_STATUS, detail)


def echoes_body(request: Request, response: Response) -> str:
    """Check that the request's own body came back, byte for byte."""
    require_ok(response)
    if response.body != request.body:
        detail = f"{len(response.body)} bytes came back for {len(request.body)}, and they differ"
        raise LostError(Reason.WRONG_BODY, detail)
    return response.headers.get("x-atlas-version", "")


def echoes_token(request: Request, response: Response) -> str:
    """Check that the answer is `TOKEN WHO`, as the small servers of the tests answer."""
    require_ok(response)
    token, _, who = response.body.decode("latin-1").partition(" ")
    if token != request.token:
        raise LostError(Reason.WRONG_BODY, f"{token[:40]!r} for {request.token}")
    return who.strip()


def bundled_worker_home(_request: Request, response: Response) -> str:
    """Check that this is the bundled worker's home page, whole; who answered is its version."""
    require_ok(response)
    try:
        home = json.loads(response.body)
        told = home["name"], home["status"], home["version"], home["instance"]
    except (ValueError, LookupError, TypeError) as error:
        raise LostError(Reason.WRONG_BODY, f"{response.body[:80]!r}: {error!r}") from None
    if told[:2] != ("atlas-worker", "ok"):
        raise LostError(Reason.WRONG_BODY, f"{told}")
    return str(home["version"])


def echo(name: str, loops: int, *, body_size: int, **more: Any) -> Traffic:
    """Return traffic that posts bytes to `/echo` and wants the same bytes back."""
    return Traffic(
        name, loops, echoes_body, method="POST", path="/echo", body_size=body_size, **more
    )


def bundled_worker_mix(*, think: float = 0.04, pause: float = 0.7) -> tuple[Traffic, ...]:
    """Return every kind of traffic that a deploy must not be noticed by.

    `think` is the longest time between two requests of a busy client, `pause` that of one which
    leaves its keep-alive connection idle, both in seconds. No connection may be idle for longer
    than a draining worker's idle grace: beyond it a close may always meet a request.
    """
    busy, seldom = (0.0, think), (pause / 2, pause)
    return (
        Traffic("keep-alive GET", 3, bundled_worker_home, think=busy),
        Traffic("keep-alive GET, mostly idle", 6, bundled_worker_home, think=seldom),
        echo("keep-alive POST of 16 KB", 3, body_size=16 * 1024, think=busy),
        echo("one connection per request", 4, body_size=64, keep_alive=False, think=busy),
        echo("slow upload", 2, body_size=16 * 1024, drip=(0.5, 2.0)),
    )


def streams() -> tuple[WebSocketTraffic, EventTraffic]:
    """Return the traffic that does not end by itself and has to be told to go."""
    return WebSocketTraffic("WebSocket", 4), EventTraffic("server-sent events", 4)
