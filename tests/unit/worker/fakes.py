"""A language model that answers well or badly, and a server to be drained, both made up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from atlas_worker.drain import DrainController, StreamKind

GRACE, SETTLE, TIMEOUT = 5.0, 0.25, 30.0


SLOW_SECONDS = 0.15
"""How long a `slow` one takes for its first word, and for each word of a stream."""
WORDS = ("Forty", "-", "two", ".")


@dataclass
class Played:
    """What it was asked, and how it is to behave."""

    behaviour: str = "good"
    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    first_read: asyncio.Event = field(default_factory=asyncio.Event)
    """The rest of a `halting` answer is sent once this is set."""

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append(body)
        self.keys.append(request.headers.get("Authorization"))
        if self.behaviour == "silent":
            await asyncio.sleep(3600)
        if self.behaviour == "slow":
            await asyncio.sleep(SLOW_SECONDS)
        if self.behaviour.isdecimal():
            return web.json_response({"error": "no"}, status=int(self.behaviour))
        if self.behaviour == "garbage":
            return web.Response(body=b"<html>")
        if body["stream"]:
            return await self._stream(request)
        message = {"role": "assistant", "content": "".join(WORDS)}
        return web.json_response(
            {"choices": [] if self.behaviour == "empty" else [{"message": message}]}
        )

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b": a comment\n\n" + _piece({"role": "assistant"}))
        for number, word in enumerate(WORDS):
            if number == 1 and self.behaviour == "halting":
                await self.first_read.wait()
            if self.behaviour == "slow":
                await asyncio.sleep(SLOW_SECONDS)
            if number == 2 and self.behaviour == "breaks off":
                return response
            if number == 2 and self.behaviour == "silent later":
                await asyncio.sleep(3600)
            if number == 2 and self.behaviour == "reports an error":
                await response.write(b'data: {"error": {"message": "overloaded"}}\n\n')
                return response
            await response.write(_piece({"content": word}))
        await response.write(b"data: [DONE]\n\n")
        return response


def _piece(delta: dict[str, str]) -> bytes:
    return f"data: {json.dumps({'choices': [{'delta': delta}]})}\n\n".encode()


@asynccontextmanager
async def language_model(behaviour: str = "good") -> AsyncIterator[Played]:
    """Run the server on a free port; `url` is what LLM_URL would be."""
    played = Played(behaviour)
    app = web.Application()
    app.router.add_post("/v1/chat/completions", played.complete)
    async with TestServer(app, handler_cancellation=True) as server:
        played.url = str(server.make_url("/v1"))
        yield played


@dataclass(eq=False)
class FakeConnection:
    server: FakeServer
    idle_at: float | None
    unread: bool = False

    def idle_since(self) -> float | None:
        return self.idle_at

    def close_if_unread(self) -> None:
        if not self.unread:
            self.server.open.remove(self)


@dataclass(eq=False)
class FakeStream:
    kind: StreamKind = StreamKind.WEBSOCKET
    closed: list[bool] = field(default_factory=list)

    def begin_close(self, *, replaced: bool) -> None:
        self.closed.append(replaced)


@dataclass
class FakeServer:
    open: list[FakeConnection] = field(default_factory=list)
    running: list[FakeStream] = field(default_factory=list)
    queue: int = 0
    accepting: bool = True

    def connections(self) -> list[FakeConnection]:
        return self.open

    def streams(self) -> list[FakeStream]:
        return self.running

    def closed(self) -> int:
        return sum(len(stream.closed) for stream in self.running)

    def queue_length(self) -> int:
        return self.queue

    def stop_accepting(self) -> None:
        self.accepting = False

    def connect(self, *, idle_at: float | None = 0.0, unread: bool = False) -> FakeConnection:
        connection = FakeConnection(self, idle_at, unread)
        self.open.append(connection)
        return connection


class Scene:
    """A drain of a server, with a clock that is turned by hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.server = FakeServer()
        self.drain = DrainController(
            idle_grace=GRACE, timeout=TIMEOUT, settle=SETTLE, clock=lambda: self.now
        )

    def after(self, seconds: float) -> bool:
        self.now += seconds
        return self.drain.tick(self.server)
