"""Bad input is always answered with 4xx, naming the field at fault."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from atlas_supervisor.model.deploy import Mode
from tests.unit.supervisor.api.support import BEARER, Server, running

JSON = {**BEARER, "Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=-1", "limit"),
        ("limit=", "limit"),
        ("limit", "limit"),
        ("limit=ten", "limit"),
        ("limit=1.5", "limit"),
        ("limit=NaN", "limit"),
        ("limit=%00", "limit"),
        ("limit=5%00", "limit"),
        ("limit=%zz", "limit"),
        ("limit=%D9%A3", "limit"),
        ("limit=" + "9" * 5000, "limit"),
        ("limit=5&limit=6", "limit"),
        ("limit=5&limit=5", "limit"),
        ("limit=5&lim%69t=6", "limit"),
        ("Limit=5", "Limit"),
        ("limits=5", "limits"),
        ("limit[]=5", "limit[]"),
        ("=5", None),
        ("%0a%1b[2J=5", "\\n\\x1b[2J"),
        ("%ff=1", None),
        ("limit=%ed%a0%80", None),
        ("&".join(f"f{n}=1" for n in range(100)), None),
    ],
)
@pytest.mark.fault("Requests", "an odd query", "refused by the name of its field")
async def test_an_invalid_query_is_refused_by_name(
    tmp_path: Path, query: str, field: str | None
) -> None:
    async with running(tmp_path) as server:
        answer = await server.head(
            f"GET /deploy/history?{query} HTTP/1.1", f"Host: {server.authority}"
        )
    assert (answer.status, answer.code) == (400, "invalid_query")
    assert answer.json["error"].get("field") == field


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/deploy/status?x=1", "x"),
        ("/livez?limit=1", "limit"),
        ("/docs?url=http://evil.example/spec.json", "url"),
        ("/openapi.json?v=3", "v"),
        ("/deploy/d1?wait=true", "wait"),
    ],
)
async def test_a_route_without_query_refuses_one(tmp_path: Path, path: str, field: str) -> None:
    async with running(tmp_path) as server:
        answer = await server.tcp("GET", path)
    assert (answer.status, answer.json["error"]["field"]) == (400, field)


@pytest.mark.parametrize(
    ("query", "field"),
    [("dry_run=maybe", "dry_run"), ("wait=2", "wait"), ("dryrun=true", "dryrun")],
)
async def test_a_typo_in_the_query_starts_no_deploy(tmp_path: Path, query: str, field: str) -> None:
    async with running(tmp_path) as server:
        answer = await server.unix("POST", f"/deploy/bluegreen?{query}")
    assert (answer.status, answer.json["error"]["field"]) == (400, field)
    assert server.control.asked == []


async def post(server: Server, path: str, data: bytes, **headers: str) -> Any:
    return await server.tcp("POST", path, data=data, headers={**JSON, **headers})


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (b"{", None),
        (b"{}{}", None),
        (b"null", None),
        (b"[]", None),
        (b'"1.4.0"', None),
        (b"\x00", None),
        (b'\xff{"release": "x"}', None),
        (b'{"release": "\xff"}', None),
        ('{"release": "x"}'.encode("utf-16"), None),
        (b"\xef\xbb\xbf{}", None),
        (b"[" * 60_000, None),
        (b'{"release":' * 5_000 + b"1" + b"}" * 5_000, None),
        (b'{"release": ' + b"[" * 300 + b"]" * 300 + b"}", None),
        (b'{"release": NaN}', None),
        (b'{"release": -Infinity}', None),
        (b'{"release": ' + b"9" * 5000 + b"}", None),
        (b'{"release": 1}', "release"),
        (b'{"release": true}', "release"),
        (b'{"release": ["x"]}', "release"),
        (b'{"release": ""}', "release"),
        (b'{"release": "../../etc"}', "release"),
        (b'{"release": ".."}', "release"),
        (b'{"release": "."}', "release"),
        (b'{"release": "/etc"}', "release"),
        (b'{"release": "a/b"}', "release"),
        (b'{"release": ".hidden"}', "release"),
        (b'{"release": "a\\u0000b"}', "release"),
        (b'{"release": "a\\nb"}', "release"),
        (b'{"release": "x\\n"}', "release"),
        (b'{"release": "\\ud800"}', None),
        (b'{"release": "' + b"x" * 256 + b'"}', "release"),
        (b'{"release": "x", "release": "y"}', "release"),
        (b'{"release": "x", "command": "rm -rf /"}', "command"),
        (b'{"path": "/tmp"}', "path"),
        (b'{"env": {"PATH": "/tmp"}}', "env"),
        (b'{"__proto__": 1}', "__proto__"),
        (b'{"a\\nb\\u001b": 1}', "a\\nb\\x1b"),
    ],
)
@pytest.mark.fault("Requests", "deep, broken or doubled JSON", "refused, and never 500")
async def test_an_invalid_body_is_refused_and_starts_no_deploy(
    tmp_path: Path, data: bytes, field: str | None
) -> None:
    async with running(tmp_path) as server:
        answer = await post(server, "/deploy/bluegreen", data)
    assert (answer.status, answer.code) == (400, "invalid_body")
    assert answer.json["error"].get("field") == field
    assert server.control.asked == []


@pytest.mark.parametrize(
    ("given", "meant"), [("releases/1.1/", ": 1.1"), ("./1.1", ": 1.1"), ("..", "")]
)
async def test_a_path_in_place_of_a_release_is_refused_with_the_name(
    tmp_path: Path, given: str, meant: str
) -> None:
    async with running(tmp_path) as server:
        answer = await post(server, "/deploy/bluegreen", f'{{"release": "{given}"}}'.encode())
    named = "release: a release is named by its folder in RELEASES_DIR alone"
    assert answer.json["error"]["message"] == named + meant


@pytest.mark.parametrize(
    "data", [b"", b"{}", b'{"mode": "green"}', b'{"mode": null}', b'{"mode": 1}', b'{"mode": []}']
)
async def test_an_unknown_mode_is_refused(tmp_path: Path, data: bytes) -> None:
    async with running(tmp_path) as server:
        answer = await post(server, "/deploy/mode", data)
    assert (answer.status, answer.json["error"]["field"]) == (400, "mode")
    assert server.control.asked == []


async def test_a_route_without_body_accepts_an_empty_object(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        assert (await post(server, "/deploy/abort", b"")).status in (200, 409)
        assert len(server.control.asked) == 1
        answer = await post(server, "/deploy/switch", b'{"force": true}')
        assert (answer.status, answer.json["error"]["field"]) == (400, "force")
        assert len(server.control.asked) == 1


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/xml",
        "application/json; charset=utf-16",
        "application/json; charset=nonsense",
        "application/jsonx",
        "application",
        ";;;",
        "",
        "\udcff",
    ],
)
async def test_a_body_of_another_content_type_is_415(tmp_path: Path, content_type: str) -> None:
    body = b'{"mode": "single"}'
    async with running(tmp_path) as server:
        answer = await server.head(
            "POST /deploy/mode HTTP/1.1",
            f"Host: {server.authority}",
            f"Authorization: {BEARER['Authorization']}",
            f"Content-Type: {content_type}",
            f"Content-Length: {len(body)}",
            body=body,
        )
    assert (answer.status, answer.code) == (415, "unsupported_media_type")
    assert server.control.asked == []


@pytest.mark.parametrize(
    "line",
    [
        "X-None: 1",
        "Content-Type: application/json",
        "Content-Type: Application/JSON; charset=UTF-8",
    ],
)
async def test_json_is_accepted_with_its_content_type_or_without(tmp_path: Path, line: str) -> None:
    body = b'{"mode": "single"}'
    async with running(tmp_path) as server:
        answer = await server.head(
            "POST /deploy/mode HTTP/1.1",
            f"Host: {server.authority}",
            f"Authorization: {BEARER['Authorization']}",
            line,
            f"Content-Length: {len(body)}",
            body=body,
        )
    assert answer.status == 200
    assert server.control.asked[0][1] is Mode.SINGLE


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "nonsense"])
async def test_a_compressed_body_is_refused_and_not_inflated(tmp_path: Path, coding: str) -> None:
    bomb = gzip.compress(b" " * 10_000_000)
    async with running(tmp_path) as server:
        answer = await post(server, "/deploy/mode", bomb, **{"Content-Encoding": coding})
    assert (answer.status, answer.code) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    "deploy_id", ["%00", "%ff", "%ed%a0%80", "..%2f..%2fetc", "a%20b", "x" * 4000, "%0a"]
)
async def test_an_odd_deploy_id_is_404(tmp_path: Path, deploy_id: str) -> None:
    async with running(tmp_path) as server:
        answer = await server.head(f"GET /deploy/{deploy_id} HTTP/1.1", f"Host: {server.authority}")
    assert (answer.status, answer.code) == (404, "deploy_not_found")
