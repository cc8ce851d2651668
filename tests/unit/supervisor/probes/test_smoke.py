from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from atlas_supervisor.config.smoke_file import SmokePlan
from atlas_supervisor.model.probe import CheckResult
from atlas_supervisor.model.verdict import Verdict
from atlas_supervisor.probes.http_client import RequestShape
from atlas_supervisor.probes.smoke import run_smoke
from tests.unit.supervisor.probes.fakes import (
    Handler,
    Server,
    answer,
    endless,
    raw,
    serve,
    unused_port,
)

NOWHERE = "http://127.0.0.1:1"


async def run_http(server: Server, *checks: dict[str, Any]) -> list[CheckResult]:
    plan = SmokePlan.model_validate(
        {"http": [{"name": f"check {n}", "path": "/", **c} for n, c in enumerate(checks)]}
    )
    return await run_smoke(
        plan,
        base_url=server.url,
        headers=RequestShape().headers_for(server.port),
        env={},
        directory=Path(),
        deploy_id="d-1",
    )


async def test_a_request_has_its_fields_and_the_smoke_header() -> None:
    async with serve(answer()) as server:
        results = await run_http(
            server,
            {"path": "/a?b=%20c", "headers": {"X-Mine": "1", "x-atlas-smoke": "forged"}},
            {"method": "POST", "json": {"a": [1]}},
            {"method": "PUT", "body": "grüß"},
        )
    assert all(result.ok for result in results)
    get, post, put = server.requests
    assert get.startswith(b"GET /a?b=%20c HTTP/1.1\r\n")
    assert b"X-Mine: 1\r\n" in get
    assert b"forged" not in get
    assert all(b"X-Atlas-Smoke: d-1\r\n" in request for request in server.requests)
    assert b"Content-Type: application/json" in post
    assert post.endswith(b'{"a": [1]}')
    assert put.startswith(b"PUT /")
    assert put.endswith("grüß".encode())


JSON = json.dumps({"status": "ok", "db": {"up": True, "n": 1}, "list": [{"a": 1, "b": 2}]})


@pytest.mark.parametrize(
    "expect",
    [
        {},
        {"contains": '"db"'},
        {"json": {"status": "ok"}},
        {"json": {"db": {"up": True}}},
        {"json": {"db": {"n": 1.0}}},
        {"json": {"list": [{"a": 1}]}},
        {"json": {}},
        {"max_ms": 5000},
    ],
)
async def test_an_answer_as_expected_passes(expect: dict[str, Any]) -> None:
    async with serve(answer(JSON.encode())) as server:
        (result,) = await run_http(server, {"expect": expect})
    assert result.ok, result
    assert result.verdict is Verdict.PASS
    assert result.message == "GET /: as expected"


@pytest.mark.parametrize(
    ("expect", "words"),
    [
        ({"status": 201}, "status is 200, expected 201"),
        ({"contains": "atlas"}, '"atlas" is not in the body'),
        ({"json": {"status": "fail"}}, 'json.status is ⟦"ok"⟧, expected "fail"'),
        ({"json": {"db": {"up": 1}}}, "json.db.up is ⟦true⟧, expected 1"),
        ({"json": {"db": {"n": True}}}, "json.db.n is ⟦1⟧, expected true"),
        ({"json": {"gone": 1}}, "json.gone is missing, expected 1"),
        ({"json": {"list": []}}, "expected []"),
        ({"json": {"list": [{"a": 2}]}}, "json.list[0].a is ⟦1⟧, expected 2"),
        ({"json": [1]}, "expected [1]"),
        ({"max_ms": 0.001}, "expected at most 0.001 ms"),
    ],
)
async def test_each_difference_is_in_the_message(expect: dict[str, Any], words: str) -> None:
    async with serve(answer(JSON.encode())) as server:
        (result,) = await run_http(server, {"expect": expect})
    assert not result.ok
    assert words in result.message
    assert "status 200" in result.got


async def test_each_difference_is_a_problem_of_its_own() -> None:
    async with serve(answer(JSON.encode())) as server:
        failed, passed = await run_http(
            server, {"expect": {"status": 201, "json": {"status": "fail"}}}, {}
        )
    assert failed.problems == [
        "status is 200, expected 201",
        'json.status is ⟦"ok"⟧, expected "fail"',
    ]
    assert failed.message == f"GET /: {'; '.join(failed.problems)}"
    assert passed.problems == []


async def test_a_failing_response_is_kept_with_explaining_headers() -> None:
    headers = f"location: /sign-in\r\nSet-Cookie: secret\r\nAllow: {'GET, ' * 100}\r\n"
    async with serve(answer(status="302 Found", headers=headers)) as server:
        failed, passed = await run_http(server, {}, {"expect": {"status": 302}})
    assert failed.headers["Location"] == "/sign-in"
    assert set(failed.headers) == {"Location", "Allow"}
    assert len(failed.headers["Allow"]) == 200
    assert passed.headers == {}


async def test_a_redirect_is_not_followed() -> None:
    async with serve(answer(status="302 Found", headers="Location: /x\r\n")) as server:
        (result,) = await run_http(server, {"expect": {"status": 302}})
    assert result.ok
    assert len(server.requests) == 1


@pytest.mark.parametrize("body", [b"", b"<html>", b"\xff", b"[" * 100_000, b'{"a": nope}'])
async def test_a_body_that_is_no_json_fails(body: bytes) -> None:
    async with serve(answer(body)) as server:
        (result,) = await run_http(server, {"expect": {"json": {"a": 1}}})
    assert not result.ok
    assert "the body is not JSON" in result.message


async def test_all_tests_are_run_even_if_one_fails(tmp_path: Path) -> None:
    plan = SmokePlan.model_validate(
        {
            "http": [{"name": "a", "path": "/"}, {"name": "b", "path": "/"}],
            "command": [{"name": "c", "run": ["false"]}, {"name": "d", "run": ["true"]}],
        }
    )
    async with serve(answer(status="500 No")) as server:
        results = await run_smoke(
            plan,
            base_url=server.url,
            headers=RequestShape().headers_for(server.port),
            env=dict(os.environ),
            directory=tmp_path,
            deploy_id="d-1",
        )
    assert [(r.name, r.kind, r.ok) for r in results] == [
        ("a", "http", False),
        ("b", "http", False),
        ("c", "command", False),
        ("d", "command", True),
    ]
    assert results[2].message == "false: exit 1"


LONG = b"HTTP/1.1 200 OK\r\nContent-Length: 100000000000\r\n\r\n"


@pytest.mark.parametrize(
    ("handler", "words"),
    [
        (raw(b"", hold=True), "no answer within 0.2 s"),
        (raw(LONG, hold=True), "answered 200, but the body did not end"),
        (raw(b"garbage\r\n\r\n"), "not HTTP"),
        (raw(b""), "without an answer"),
    ],
)
async def test_no_whole_answer_is_a_failure(handler: Handler, words: str) -> None:
    async with serve(handler) as server:
        (result,) = await run_http(server, {"timeout_seconds": 0.2})
    assert (result.ok, result.got) == (False, "no complete answer")
    assert words in result.message


async def test_only_the_beginning_of_an_endless_body_is_read() -> None:
    async with serve(endless(b"atlas" * 10_000, head=LONG)) as server:
        found, missing, parsed = await run_http(
            server,
            {"expect": {"contains": "atlas"}},
            {"expect": {"contains": "other"}},
            {"expect": {"json": {"a": 1}}},
        )
    assert found.ok
    assert '"other" is not in the first 1048576 bytes' in missing.message
    assert "was not read as JSON" in parsed.message
    assert len(found.got) < 1000


async def test_a_closed_port_is_a_failure() -> None:
    (result,) = await run_http(Server(unused_port()), {})
    assert not result.ok
    assert "connection refused" in result.message


async def test_an_excerpt_has_no_control_characters() -> None:
    async with serve(answer(b"\x1b[2J\r\x00\xff\xe2\x80\xae ok")) as server:
        (result,) = await run_http(server, {})
    assert result.got.isprintable()
    assert "\\x1b[2J" in result.got
