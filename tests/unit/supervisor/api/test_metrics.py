"""`GET /metrics`, and the metrics of the API's own answers."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.unit.supervisor.api.support import BEARER, MemoryControl, eventually, running


async def test_metrics_are_plain_text_of_version_0_0_4_for_any_accept_header(
    tmp_path: Path,
) -> None:
    open_metrics = {"Accept": "application/openmetrics-text; version=1.0.0"}
    async with running(tmp_path) as server:
        answers = [
            await server.tcp("GET", "/metrics"),
            await server.unix("GET", "/metrics", headers=open_metrics),
        ]
    for answer in answers:
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert answer.body == b"atlas_ready 1.0\n"


async def test_an_answer_is_counted_with_its_routes_pattern(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        await server.tcp("GET", "/deploy/d-1")
        await server.tcp("HEAD", "/livez")
        await server.tcp("POST", "/deploy/bluegreen")
        await server.tcp("POST", "/deploy/bluegreen", headers=BEARER)
        counted = [(method, route, status) for method, route, status, _ in server.metrics.counted]
    assert counted == [
        ("GET", "/deploy/{deploy_id}", 404),
        ("HEAD", "/livez", 200),
        ("POST", "/deploy/bluegreen", 401),
        ("POST", "/deploy/bluegreen", 200),
    ]
    assert all(seconds is not None and seconds >= 0 for *_, seconds in server.metrics.counted)


async def test_a_bug_is_counted_as_500(tmp_path: Path) -> None:
    async with running(tmp_path, MemoryControl(bug=ZeroDivisionError())) as server:
        await server.tcp("GET", "/deploy/status")
    assert [counted[:3] for counted in server.metrics.counted] == [("GET", "/deploy/status", 500)]


async def test_a_stream_is_counted_at_its_end_without_a_duration(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.options.port)
        writer.write(f"GET /deploy/events HTTP/1.1\r\nHost: {server.authority}\r\n\r\n".encode())
        await reader.readuntil(b"retry: 1000")
        assert server.metrics.counted == []
        writer.transport.abort()
        await eventually(lambda: bool(server.metrics.counted))
    ((method, route, _status, seconds),) = server.metrics.counted
    assert (method, route, seconds) == ("GET", "/deploy/events", None)


async def test_odd_requests_do_not_multiply_labels(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.options.port)
        for number in range(1000):
            target = (f"/odd/{number}", f"/deploy/d-{number}", f"/docs/{number}")[number % 3]
            method = "GET" if number % 2 else ("PROPFIND", "PATCH", "LOCK")[number % 5 % 3]
            head = f"{method} {target} HTTP/1.1\r\nHost: {server.authority}\r\n\r\n"
            writer.write(head.encode())
            answer = await reader.readuntil(b"\r\n\r\n")
            length = int(answer.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            await reader.readexactly(length)
        writer.close()
        labels = {counted[:3] for counted in server.metrics.counted}
    assert len(server.metrics.counted) == 1000
    assert labels == {
        ("GET", "unknown", 404),
        ("other", "unknown", 404),
        ("GET", "/deploy/{deploy_id}", 404),
        ("other", "/deploy/{deploy_id}", 405),
        ("GET", "/docs/{asset}", 404),
        ("other", "/docs/{asset}", 405),
    }
