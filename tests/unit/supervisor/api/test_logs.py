"""`GET /deploy/logs/{source}` on files that grow and are rotated."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from atlas_supervisor.logs import log_service
from atlas_supervisor.logs.log_service import LogService
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.workers import output
from atlas_supervisor.workers.output import WorkerLog
from tests.unit.supervisor.api.support import BEARER, Server, eventually, running

OWN = "/deploy/logs/supervisor"
BLUE = "/deploy/logs/blue"


def own(number: int, **fields: object) -> str:
    return json.dumps({"ts": "t", "level": "info", "event": "e", "number": number, **fields})


@pytest.fixture
def blue(tmp_path: Path) -> WorkerLog:
    return WorkerLog(tmp_path / "worker-blue.log", SlotName.BLUE)


@asynccontextmanager
async def serving(folder: Path, blue: WorkerLog, **changes: Any) -> AsyncIterator[Server]:
    green = WorkerLog(folder / "worker-green.log", SlotName.GREEN)
    logs = LogService(folder / "supervisor.jsonl", {SlotName.BLUE: blue, SlotName.GREEN: green})
    async with running(folder, logs=logs, **changes) as server:
        yield server


@asynccontextmanager
async def following(server: Server, target: str) -> AsyncIterator[aiohttp.StreamReader]:
    connector = aiohttp.UnixConnector(str(server.options.socket_path))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.get(f"http://daemon{target}") as response,
    ):
        assert response.status == 200
        yield response.content


async def test_the_last_lines_come_as_json_or_as_text(tmp_path: Path, blue: WorkerLog) -> None:
    (tmp_path / "supervisor.jsonl").write_text("".join(f"{own(n)}\n" for n in range(200)))
    blue.path.write_bytes(b"one\n\x1b[31mtwo\nunfinished")
    async with serving(tmp_path, blue) as server:
        answer = await server.unix("GET", OWN)
        assert answer.headers["Content-Type"] == "application/x-ndjson"
        assert [json.loads(line)["number"] for line in answer.body.splitlines()] == [
            *range(100, 200)
        ]
        answer = await server.unix("GET", f"{OWN}?lines=1&contains=number%3D7")
        assert json.loads(answer.body)["number"] == 79
        answer = await server.unix("GET", f"{BLUE}?lines=2")
        assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert answer.body == b"\\x1b[31mtwo\nunfinished\n"
        assert (await server.unix("GET", "/deploy/logs/green")).body == b""
        assert (await server.unix("HEAD", OWN)).status == 200


async def test_logs_need_the_token_or_the_daemons_user(tmp_path: Path, blue: WorkerLog) -> None:
    async with serving(tmp_path, blue) as server:
        assert (await server.tcp("GET", OWN)).code == "token_required"
        assert (await server.tcp("GET", OWN, headers=BEARER)).status == 200
    other = {"own_uid": os.geteuid() + 1}
    if os.geteuid() != 0:  # root may do everything
        async with serving(tmp_path, blue, **other) as server:
            assert (await server.unix("GET", OWN)).code == "not_permitted"


@pytest.mark.parametrize(
    ("target", "status", "code", "field"),
    [
        ("/deploy/logs/red", 404, "log_not_found", None),
        ("/deploy/logs/..%2F..%2Fatlas.db", 404, "log_not_found", None),
        (f"{OWN}?lines=10001", 400, "invalid_query", "lines"),
        (f"{OWN}?level=loud", 400, "invalid_query", "level"),
        (f"{OWN}?after=1-2", 400, "invalid_query", "after"),
        (f"{OWN}?contains=", 400, "invalid_query", "contains"),
        (f"{BLUE}?level=info", 400, "invalid_query", "level"),
        (f"{BLUE}?slot=blue", 400, "invalid_query", "slot"),
        (f"{BLUE}?deploy_id=d", 400, "invalid_query", "deploy_id"),
    ],
)
async def test_invalid_requests_are_refused_by_name(
    tmp_path: Path, blue: WorkerLog, *, target: str, status: int, code: str, field: str | None
) -> None:
    async with serving(tmp_path, blue) as server:
        answer = await server.unix("GET", target)
    assert (answer.status, answer.code) == (status, code)
    assert answer.json["error"].get("field") == field


async def test_an_invalid_position_is_refused(tmp_path: Path, blue: WorkerLog) -> None:
    async with serving(tmp_path, blue) as server:
        answer = await server.unix("GET", OWN, headers={"Last-Event-ID": "yesterday"})
    assert (answer.status, answer.code) == (400, "invalid_header")


async def test_an_unreadable_log_is_503_and_not_500(tmp_path: Path, blue: WorkerLog) -> None:
    (tmp_path / "supervisor.jsonl").symlink_to("supervisor.jsonl")  # leads to itself
    async with serving(tmp_path, blue) as server:
        answer = await server.unix("GET", OWN)
    assert (answer.status, answer.code) == (503, "unavailable")


async def test_following_continues_over_a_truncated_file(
    tmp_path: Path, blue: WorkerLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "LIMIT_BYTES", 2000)
    monkeypatch.setattr(log_service, "POLL_SECONDS", 0.01)
    descriptor = blue.open("blue-1")
    os.write(descriptor, b"before\n")
    async with serving(tmp_path, blue) as server, following(server, f"{BLUE}?follow=true") as lines:
        assert await lines.readline() == b"before\n"
        for number in range(300):
            os.write(descriptor, b"line %d %s\n" % (number, b"x" * 50))
            await asyncio.to_thread(blue.rotate)
            if number % 5 == 0:
                await asyncio.sleep(0)
        os.write(descriptor, b"other\nend\n")
        seen = [await lines.readline()]
        while seen[-1] != b"end\n":
            seen.append(await lines.readline())
    os.close(descriptor)
    if b"[atlas-supervisor]" not in b"".join(seen):  # a machine that is busy may be too slow
        assert [int(line.split()[1]) for line in seen[:-2]] == list(range(300))
    assert blue.aside.exists()


async def test_filters_apply_to_new_lines_as_well(
    tmp_path: Path, blue: WorkerLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_service, "POLL_SECONDS", 0.01)
    path = tmp_path / "supervisor.jsonl"
    path.write_text(f"{own(1)}\n{own(2, level='error')}\n")
    target = f"{OWN}?follow=true&level=warning"
    async with serving(tmp_path, blue) as server, following(server, target) as lines:
        assert json.loads(await lines.readline())["number"] == 2
        with path.open("a") as stream:
            stream.write(f"{own(3)}\n{own(4, level='critical')}\n")
        assert json.loads(await lines.readline())["number"] == 4


async def test_events_have_ids_to_resume_after(
    tmp_path: Path, blue: WorkerLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_service, "SILENCE_SECONDS", 0.05)
    blue.path.write_bytes(b"one\ntwo\nthree\n")
    target = f"{BLUE}?events=true&follow=true"
    async with serving(tmp_path, blue) as server:
        async with following(server, target) as lines:
            text = (await lines.readuntil(b"data: three\n\n")).decode()
            sign_of_life = (await lines.readuntil(b": still here\n\n")).decode()
        first, *blocks = text.removesuffix("\n\n").split("\n\n")
        assert first == "retry: 1000"
        blocks = [
            block for block in blocks if "data: " in block
        ]  # a slow machine adds signs of life
        assert [block.partition("data: ")[2] for block in blocks] == ["one", "two", "three"]
        places = [
            block.partition("\n")[0].removeprefix("id: ") for block in (*blocks, sign_of_life)
        ]
        assert places[3] == places[2]  # a sign of life says so, too
        again = f"{BLUE}?events=true"
        answer = await server.unix("GET", again, headers={"Last-Event-ID": places[0]})
        assert b"data: one\n" not in answer.body
        assert answer.body.endswith(
            b"data: two\n\n" + b"id: %s\ndata: three\n\n" % places[2].encode()
        )
        blue.path.write_bytes(b"new\n")
        answer = await server.unix("GET", f"{again}&after={places[2]}")
        assert b"event: gap\n" in answer.body
        assert b"data: new\n" in answer.body


async def test_a_follower_that_does_not_read_delays_no_other_client(
    tmp_path: Path, blue: WorkerLog
) -> None:
    blue.path.write_bytes(b"x" * 99 + b"\n" * 1 + (b"y" * 999 + b"\n") * 8000)
    async with serving(tmp_path, blue, receive_seconds=0.5) as server:
        _, writer = await asyncio.open_unix_connection(str(server.options.socket_path))
        writer.write(b"GET /deploy/logs/blue?lines=10000&follow=true HTTP/1.1\r\nHost: d\r\n\r\n")
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # asyncio's own has it
        for _ in range(20):
            assert (await server.unix("GET", "/livez")).status == 200

        def gone() -> bool:
            try:
                os.write(writer.get_extra_info("socket").fileno(), b"x")
            except OSError:
                return True
            return False

        async with asyncio.timeout(10):
            await eventually(gone)
        writer.close()


async def test_a_stream_ends_when_the_daemon_does(tmp_path: Path, blue: WorkerLog) -> None:
    blue.path.write_bytes(b"one\n")
    async with asyncio.timeout(5):
        connector = aiohttp.UnixConnector(str(tmp_path / "supervisor.sock"))
        async with aiohttp.ClientSession(connector=connector) as session:
            async with serving(tmp_path, blue):
                response = await session.get(f"http://daemon{BLUE}?follow=true")
                assert await response.content.readline() == b"one\n"
            assert await response.content.read() == b""  # properly: a broken one would raise
