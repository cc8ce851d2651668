"""ASGI applications for the adapter's tests: plain ones, and one on Starlette."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from atlas_worker.asgi import DrainMiddleware

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

LARGE = 8_000_000

_go_on: asyncio.Event | None = None


def _gate() -> asyncio.Event:
    global _go_on  # noqa: PLW0603 - an event belongs to the loop that is running
    if _go_on is None:
        _go_on = asyncio.Event()
    return _go_on


def _note(name: str, text: str = "") -> None:
    """Report to the test, by a file in the working directory."""
    new = Path(f"{name}.new")
    new.write_text(text)
    new.replace(name)


async def _answer(send: Send, text: str, **headers: str) -> None:
    named = [(name.encode(), value.encode()) for name, value in headers.items()]
    length = (b"content-length", b"%d" % len(text))
    await send({"type": "http.response.start", "status": 200, "headers": [length, *named]})
    await send({"type": "http.response.body", "body": text.encode()})


async def _lifespan(receive: Receive, send: Send) -> None:
    assert (await receive())["type"] == "lifespan.startup"
    await send({"type": "lifespan.startup.complete"})
    assert (await receive())["type"] == "lifespan.shutdown"
    _note("lifespan-ended")
    await send({"type": "lifespan.shutdown.complete"})


async def _events(send: Send) -> None:
    """Two events in three pieces, the second only half, then the rest at the gate; for ever."""
    headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"data: 1\n\ndata: ha", "more_body": True})
    await _gate().wait()
    await send({"type": "http.response.body", "body": b"lf\n\ndata: never", "more_body": True})
    while True:
        await send({"type": "http.response.body", "body": b" ends", "more_body": True})
        await asyncio.sleep(0.01)


async def _socket(receive: Receive, send: Send) -> None:
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        if message["text"] == "work":  # until the gate is opened
            _note("socket-works")
            await _gate().wait()
        await send({"type": "websocket.send", "text": message["text"]})
    _note("websocket-code", str(message["code"]))


async def _flood(name: str, send_some: Callable[[], Awaitable[None]]) -> None:
    """Send without end, and note when a piece has not gone out for a while."""
    loop = asyncio.get_running_loop()
    while True:
        stuck = loop.call_later(0.2, _note, f"{name}-is-stuck")
        await send_some()
        stuck.cancel()


async def _socket_flood(receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    await _flood("ws-flood", lambda: send({"type": "websocket.send", "bytes": b"x" * 65536}))


async def _events_flood(send: Send) -> None:
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    piece = {"type": "http.response.body", "body": b"data: " + b"x" * 65536 + b"\n\n"}
    await _flood("events-flood", lambda: send({**piece, "more_body": True}))


async def _answer_in_events(send: Send) -> None:
    """An answer in events, as language models give it: the second one at the gate."""
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
    await _gate().wait()
    await send({"type": "http.response.body", "body": b"data: 2\n\n"})


async def _slow(send: Send) -> None:
    _note("slow-began")
    await _gate().wait()
    await _answer(send, "slowly")


async def _afterwards(send: Send) -> None:
    await _answer(send, "answered")
    await _gate().wait()
    _note("afterwards-done")


async def _stuck(_send: Send) -> None:
    _note("stuck-began")
    await asyncio.Event().wait()


async def _fail(_send: Send) -> None:
    raise RuntimeError("as it is meant to")


async def _half(send: Send) -> None:
    """Begin an answer and fail."""
    length = [(b"content-length", b"10")]
    await send({"type": "http.response.start", "status": 200, "headers": length})
    await send({"type": "http.response.body", "body": b"half", "more_body": True})
    raise RuntimeError("as it is meant to")


async def _go(send: Send) -> None:
    _gate().set()
    await _answer(send, "continued")


_PATHS: dict[str, Callable[[Send], Awaitable[None]]] = {
    "/events": _events,
    "/events-flood": _events_flood,
    "/answer": _answer_in_events,
    "/slow": _slow,
    "/afterwards": _afterwards,
    "/stuck": _stuck,
    "/fail": _fail,
    "/half": _half,
    "/go": _go,
    "/early": lambda send: _answer(send, "too large"),
    "/large": lambda send: _answer(send, "x" * LARGE),
}


async def plain(scope: Scope, receive: Receive, send: Send) -> None:
    """Do what the path says; `/go` opens the gate that the slow ones wait for."""
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
    elif scope["type"] == "websocket":
        await (_socket_flood if scope["path"] == "/ws-flood" else _socket)(receive, send)
    elif scope["path"] == "/until-left":
        while (await receive())["type"] != "http.disconnect":
            _note("waits")
    elif handler := _PATHS.get(scope["path"]):
        await handler(send)
    elif scope["path"].endswith("/scope"):
        told = {name: scope[name] for name in ("scheme", "client", "root_path", "path")}
        await _answer(send, json.dumps(told))
    else:
        await _answer(send, "plain", connection="keep-alive")


def make() -> Any:
    """Make the application, as a factory does."""
    return plain


async def without_lifespan(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve HTTP alone, as many small applications do."""
    assert scope["type"] == "http"
    await plain(scope, receive, send)


async def cannot_start(scope: Scope, receive: Receive, send: Send) -> None:
    """Say that the start failed."""
    assert scope["type"] == "lifespan"
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no database"})


def needs_an_argument(_argument: str) -> Any:
    """Be no factory."""


wrapped = DrainMiddleware(plain)
wrapped_without_lifespan = DrainMiddleware(without_lifespan)
wrapped_cannot_start = DrainMiddleware(cannot_start)
not_callable = 7


async def behind_tls(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve one host alone, and send who comes without TLS there, as frameworks can be set to."""
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
        return
    headers = dict(scope["headers"])
    status, extra = 200, []
    if headers[b"host"] != b"app.example.org":
        status = 400
    elif scope["scheme"] != "https" and headers.get(b"x-forwarded-proto") != b"https":
        status, extra = 301, [(b"location", b"https://app.example.org" + scope["path"].encode())]
    await send({"type": "http.response.start", "status": status, "headers": extra})
    await send({"type": "http.response.body", "body": str(os.getpid()).encode()})
