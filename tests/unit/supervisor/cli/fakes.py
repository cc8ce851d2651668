"""A daemon that plays recorded answers over a real socket, and records its requests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import web

from atlas_supervisor.api import examples, fleet_examples
from tests.harness import eventually

FEATURE: dict[str, Any] = examples.FEATURE.model_dump(mode="json")
VIEW: dict[str, Any] = examples.VIEW.model_dump(mode="json")
EARLIER: dict[str, Any] = examples.EARLIER.model_dump(mode="json")
FLEET: dict[str, Any] = fleet_examples.FLEET.model_dump(mode="json")
REPORT: dict[str, Any] = examples.REPORT.model_dump(mode="json")


@dataclass(frozen=True)
class Asked:
    """One request as it came."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: str


BREAK = object()
"""In a stream: the connection breaks here."""
STAY = object()
"""In a stream: nothing more comes, and it does not end."""


@dataclass
class Played:
    """The answers by method and path: each list is played in order, and its last one stays.

    Events are streamed only after `play_events`; otherwise the path does not exist.
    """

    answers: dict[tuple[str, str], list[web.Response | asyncio.Event]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    streams: list[tuple[bytes | object, ...]] | None = None
    stream_path: str = ""
    breaks: int = 0
    url: str = ""
    heard: asyncio.Event = field(default_factory=asyncio.Event)

    def play(
        self,
        method: str,
        path: str,
        *bodies: Any,
        status: int = 200,
        headers: dict[str, str] | None = None,
    ) -> None:
        """Answer with `bodies`, one after the other; bytes are sent as they are."""
        self.answers[method, path] = [
            web.Response(
                status=status,
                headers=headers,
                content_type="application/json",
                body=body if isinstance(body, bytes) else json.dumps(body).encode(),
            )
            for body in bodies
        ]

    def play_also(self, method: str, path: str, body: Any, *, status: int) -> None:
        """Answer with this as well, after what is played there already."""
        before = self.answers[method, path]
        self.play(method, path, body, status=status)
        self.answers[method, path][:0] = before

    def stall(self, method: str, path: str) -> None:
        """Take this request and never answer it."""
        self.answers[method, path] = [asyncio.Event()]

    def play_events(
        self, *streams: tuple[bytes | object, ...], path: str = "/deploy/events"
    ) -> None:
        """Stream events: each connection gets the pieces of one stream, and those after it `STAY`.

        A piece that is a number waits until that many requests have come.
        """
        self.streams = list(streams)
        self.stream_path = path

    def break_first(self, times: int = 1) -> None:
        """Take that many requests, and break their connections before the answer."""
        self.breaks = times

    def has_heard(self, requests: int) -> bool:
        """Return whether that many requests have come."""
        return len(self.asked) >= requests

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Play the next stream."""
        assert self.streams is not None
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in self.streams.pop(0) if self.streams else (STAY,):
            if piece is BREAK:
                assert request.transport is not None
                request.transport.abort()
                return response
            if piece is STAY:
                await asyncio.Event().wait()
            if isinstance(piece, int):
                await eventually(partial(self.has_heard, piece), what=f"{piece} requests")
                continue
            assert isinstance(piece, bytes)
            await response.write(piece)
        return response

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Play the next answer."""
        headers = {name.lower(): value for name, value in request.headers.items()}
        body = await request.text()
        self.asked.append(Asked(request.method, request.path, dict(request.query), headers, body))
        self.heard.set()
        if self.breaks:
            self.breaks -= 1
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if self.streams is not None and request.path == self.stream_path:
            return await self.stream(request)
        line = self.answers.get((request.method, request.path))
        if line is None:
            return web.json_response(problem("not_found", f"no {request.path} here"), status=404)
        answer = line.pop(0) if len(line) > 1 else line[0]
        if isinstance(answer, asyncio.Event):
            await answer.wait()
            raise web.HTTPInternalServerError
        return web.Response(status=answer.status, headers=answer.headers, body=answer.body)


@asynccontextmanager
async def serve(played: Played, socket: Path) -> AsyncIterator[Played]:
    """Serve on the Unix socket and on a free TCP port of loopback."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", played.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.UnixSite(runner, socket).start()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        played.url = f"http://127.0.0.1:{runner.addresses[1][1]}"
        yield played
    finally:
        await runner.cleanup()


def event(number: int | None = None, **fields: Any) -> bytes:
    """Return an event as the daemon sends it."""
    lines = [] if number is None else [f"id: {number}"]
    lines += ["event: transition", f"data: {json.dumps({'deploy_id': 'd-42', **fields})}", "", ""]
    return "\n".join(lines).encode()


def problem(code: str, message: str, hint: str = "") -> dict[str, Any]:
    """Return an error as the API has it."""
    return {"error": {"code": code, "message": message, "hint": hint}}


def step(name: str, *, ok: bool = True, duration_ms: float = 12.0, **detail: Any) -> dict[str, Any]:
    """Return a step that has ended."""
    return {"name": name, "ok": ok, "duration_ms": duration_ms, "detail": detail}


def record(*steps: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Return a deploy's record; in progress unless `result` says otherwise."""
    return {
        "deploy_id": "d-42",
        "result": None,
        "dry_run": False,
        "release": "v2",
        "version": "2.0.0",
        "active_port": 8791,
        "staging_port": 8792,
        "steps": list(steps),
        "reason": None,
        "phase": "ended" if fields.get("result") else "preflight",
        "started_ts": "2025-11-23T06:00:00Z",
        "ended_ts": None,
        **fields,
    }


def transition(number: int, source: str | None, target: str, **fields: Any) -> dict[str, Any]:
    """Return a transition of the record, a second after the one with the number before."""
    return {
        "id": number,
        "ts": f"2025-11-23T06:00:{number:02}Z",
        "source": source,
        "event": "passed" if source else "begun",
        "target": target,
        "cause": "",
        "duration_ms": 1000.0 if source else None,
        **fields,
    }


def slot(name: str, port: int, role: str, state: str, **fields: Any) -> dict[str, Any]:
    """Return a slot of the status."""
    return {
        "slot": name,
        "port": port,
        "role": role,
        "state": state,
        "pid": None,
        "version": None,
        "started_ts": None,
        "restarts": 0,
        **fields,
    }


def status(**fields: Any) -> dict[str, Any]:
    """Return a status with one active worker."""
    return {
        "mode": "bluegreen",
        "active_port": 8791,
        "staging_port": 8792,
        "public_port": 8790,
        "health_score": 100,
        "version": "1.0.0",
        "channel": "stable",
        "last_deploy": None,
        "canary_stats": None,
        "fallback_suggestions": [],
        "slots": [
            slot(
                "blue",
                8791,
                "active",
                "running",
                pid=4242,
                version="1.0.0",
                started_ts="2025-11-23T06:00:00Z",
            ),
            slot("green", 8792, "staging", "empty"),
        ],
        "traffic": {"plane": "kernel", "weights": {"blue": 1.0, "green": 0.0}},
        "deploy_in_progress": False,
        **fields,
    }


def steady(**fields: Any) -> dict[str, Any]:
    """Return a feature without a ramp."""
    return {**FEATURE, "stage": "steady", "step": None, "waits_for": None, **fields}
