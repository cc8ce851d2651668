"""Who may do what: attacks over TCP and the Unix socket."""

from __future__ import annotations

import asyncio
import json
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from atlas_supervisor.api.security import is_loopback
from tests.unit.supervisor.api.support import BEARER, TOKEN, Server, running

OTHER_UID = 65534

CHANGES = [
    "/deploy/bluegreen",
    "/deploy/switch",
    "/deploy/abort",
    "/deploy/rollback",
    "/deploy/mode",
]
READS = ["/deploy/status", "/deploy/history", "/livez", "/readyz", "/docs", "/openapi.json"]


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user of the machine can enter."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.mark.parametrize("path", CHANGES)
async def test_no_change_over_tcp_without_the_token(tmp_path: Path, path: str) -> None:
    async with running(tmp_path) as server:
        answer = await server.tcp("POST", path)
    assert (answer.status, answer.code) == (401, "token_required")
    assert answer.headers["WWW-Authenticate"].startswith("Bearer ")
    hint = answer.json["error"]["hint"]
    assert "control.token" in hint
    assert "atlasctl" in hint
    assert str(tmp_path) not in hint
    assert server.control.asked == []


@pytest.mark.parametrize("path", READS)
async def test_reading_is_open_on_loopback(tmp_path: Path, path: str) -> None:
    async with running(tmp_path) as server:
        assert (await server.tcp("GET", path)).status == 200


@pytest.mark.parametrize(
    "lines",
    [
        ["Authorization: Bearer wrong-token-wrong-token"],
        [f"Authorization: Bearer {TOKEN}x"],
        [f"Authorization: Bearer {TOKEN[:-1]}"],
        [f"Authorization: Bearer {TOKEN.upper()}"],
        [f"Authorization: Basic {TOKEN}"],
        [f"Authorization: {TOKEN}"],
        [f"Authorization: Bearer{TOKEN}"],
        [f"Authorization: Bearer {TOKEN} {TOKEN}"],
        ["Authorization: Bearer"],
        ["Authorization: Bearer "],
        ["Authorization:"],
        ["Authorization: Bearer tökén-tökén-tökén"],
        ["Authorization: Bearer \udcff\udcfe\udc80"],
        [f"Authorization: Bearer {TOKEN}", "Authorization: Bearer wrong"],
        [f"Authorization: Bearer {TOKEN}", f"Authorization: Bearer {TOKEN}"],
        [f"X-Authorization: Bearer {TOKEN}"],
        [f"Cookie: token={TOKEN}"],
        ["Authorization: Digest " + "a" * 4000],
    ],
)
async def test_anything_but_the_exact_token_is_401(tmp_path: Path, lines: list[str]) -> None:
    async with running(tmp_path) as server:
        answer = await server.head(
            "POST /deploy/switch HTTP/1.1", f"Host: {server.authority}", *lines
        )
    assert answer.status == 401
    assert answer.code in ("token_required", "token_wrong")
    assert "WWW-Authenticate" in answer.headers
    assert server.control.asked == []


@pytest.mark.parametrize("query", ["token", "access_token", "authorization"])
async def test_a_token_in_the_query_is_ignored(tmp_path: Path, query: str) -> None:
    async with running(tmp_path) as server:
        assert (await server.tcp("POST", f"/deploy/switch?{query}={TOKEN}")).status == 401


async def test_the_bearer_scheme_is_case_insensitive(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        for scheme in ("Bearer", "bearer", "BEARER"):
            headers = {"Authorization": f"{scheme} {TOKEN}"}
            assert (await server.tcp("POST", "/deploy/switch", headers=headers)).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:{port}",
        "127.0.0.1.evil.example:{port}",
        "localhost.evil.example",
        "localhost.:{port}",
        "127.0.0.1:1",
        "127.0.0.1:",
        "127.0.0.1:0{port}1",
        "127.0.0.1:{port}:{port}",
        "127.0.0.1:٤٢",
        "user@127.0.0.1:{port}",
        "127.0.0.1:{port}@evil.example",
        "127.0.0.1, evil.example",
        "[::1",
        "::1",
        "0.0.0.0:{port}",
        "127.1:{port}",
        "2130706433:{port}",
        "127.0.0.1\\@evil.example",
        "",
    ],
)
async def test_a_request_for_another_host_is_refused(tmp_path: Path, host: str) -> None:
    async with running(tmp_path) as server:
        name = host.format(port=server.options.port)
        for path in ("/deploy/status", "/nope"):
            answer = await server.head(f"GET {path} HTTP/1.1", f"Host: {name}")
            assert (answer.status, answer.code) == (421, "wrong_host"), name


async def test_loopback_names_and_configured_names_are_allowed(tmp_path: Path) -> None:
    async with running(tmp_path, allowed_hosts=("Atlas.Internal", "fd00::1")) as server:
        for name in ("localhost", "LocalHost", "127.0.0.1", "[::1]", "atlas.internal", "[fd00::1]"):
            for port in ("", f":{server.options.port}"):
                answer = await server.head("GET /livez HTTP/1.1", f"Host: {name}{port}")
                assert answer.status == 200, name + port


async def test_no_host_and_two_hosts_are_refused(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        ours = f"Host: {server.authority}"
        for lines in (
            ["GET /livez HTTP/1.1"],
            ["GET /livez HTTP/1.0"],
            ["GET /livez HTTP/1.1", ours, ours],
            ["GET /livez HTTP/1.1", ours, "Host: evil.example"],
            ["GET /livez HTTP/1.1", ours, "Host : evil.example"],
            ["GET /livez HTTP/1.1", ours, " folded"],
        ):
            answer = await server.head(*lines)
            assert (answer.status, answer.code) == (400, "bad_request"), lines


async def test_the_host_of_an_absolute_target_is_checked(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        ours = f"Host: {server.authority}"
        good = await server.head(f"GET http://{server.authority}/livez HTTP/1.1", ours)
        foreign = await server.head("GET http://evil.example/livez HTTP/1.1", ours)
        user = await server.head(f"GET http://{server.authority}@evil.example/livez HTTP/1.1", ours)
        inverse = await server.head(
            f"GET http://{server.authority}/livez HTTP/1.1", "Host: evil.example"
        )
    assert good.status == 200
    assert (foreign.status, user.status, inverse.status) == (421, 421, 421)


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "",
        "http://localhost",  # another application of this machine
        "http://127.0.0.1:1",
        "https://127.0.0.1:{port}",
        "file://",
        "chrome-extension://abcdef",
        "127.0.0.1:{port}",
        "http://127.0.0.1:{port}.evil.example",
        "http://127.0.0.1:{port}/path",
        "http://127.0.0.1:{port} http://evil.example",
        "\udcff",
    ],
)
async def test_a_foreign_origin_is_refused(tmp_path: Path, origin: str) -> None:
    async with running(tmp_path) as server:
        lines = (
            f"Host: {server.authority}",
            f"Authorization: Bearer {TOKEN}",
            f"Origin: {origin.format(port=server.options.port)}",
        )
        for request in ("GET /deploy/status", "POST /deploy/switch", "OPTIONS /deploy/switch"):
            answer = await server.head(f"{request} HTTP/1.1", *lines)
            assert (answer.status, answer.code) == (403, "foreign_origin")
            assert not any(name.startswith("Access-Control") for name in answer.headers)
    assert server.control.asked == []


async def test_of_two_origins_both_are_checked(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        answer = await server.head(
            "GET /livez HTTP/1.1",
            f"Host: {server.authority}",
            f"Origin: http://{server.authority}",
            "Origin: http://evil.example",
        )
    assert answer.status == 403


async def test_the_own_origin_is_allowed(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        for name in ("127.0.0.1", "localhost", "[::1]"):
            headers = {**BEARER, "Origin": f"http://{name}:{server.options.port}"}
            headers["Sec-Fetch-Site"] = "same-origin"
            assert (await server.tcp("POST", "/deploy/switch", headers=headers)).status == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site", "Cross-Site", "nonsense", ""])
async def test_a_cross_site_fetch_is_refused(tmp_path: Path, site: str) -> None:
    async with running(tmp_path) as server:
        headers = {**BEARER, "Sec-Fetch-Site": site}
        for method, path in (("GET", "/deploy/status"), ("POST", "/deploy/switch")):
            answer = await server.tcp(method, path, headers=headers)
            assert (answer.status, answer.code) == (403, "foreign_origin")
        assert (await server.tcp("GET", "/docs", headers={"Sec-Fetch-Site": "none"})).status == 200


async def test_the_unix_socket_checks_the_origin_and_refuses_names_of_the_dns(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as server:
        for host in ("any", "localhost:1", "192.0.2.1:9000", "[::1]:9000"):
            assert (await server.unix("GET", "/livez", headers={"Host": host})).status == 200
        rebound = await server.unix("GET", "/deploy/audit", headers={"Host": "evil.example:8793"})
        assert (rebound.status, rebound.code) == (421, "wrong_host")
        for headers in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
            assert (await server.unix("POST", "/deploy/switch", headers=headers)).status == 403
    assert server.control.asked == []


_CLIENT = """
import http.client, json, os, socket, sys
os.setgroups([])
os.setresgid(int(sys.argv[2]), int(sys.argv[2]), int(sys.argv[2]))
os.setresuid(int(sys.argv[2]), int(sys.argv[2]), int(sys.argv[2]))
answers = []
for method, path in json.loads(sys.argv[3]):
    connection = http.client.HTTPConnection("daemon")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(sys.argv[1])
    connection.request(method, path, headers=json.loads(sys.argv[4]))
    response = connection.getresponse()
    answers.append([response.status, json.loads(response.read())])
    connection.close()
print(json.dumps(answers))
"""


async def ask_as(uid: int, server: Server, *requests: tuple[str, str]) -> list[tuple[int, str]]:
    """Let a child of this uid ask over the Unix socket; return status and error code of each."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-S",
        "-c",
        _CLIENT,
        str(server.options.socket_path),
        str(uid),
        json.dumps(requests),
        json.dumps(BEARER),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await child.communicate()
    return [(status, body.get("error", {}).get("code", "")) for status, body in json.loads(output)]


@pytest.mark.needs_root
async def test_another_user_may_read_over_the_unix_socket_and_change_nothing(
    open_folder: Path,
) -> None:
    async with running(open_folder) as server:
        server.options.socket_path.chmod(0o666)  # as if it were in the socket's group
        answers = await ask_as(
            OTHER_UID, server, ("GET", "/deploy/status"), *(("POST", path) for path in CHANGES)
        )
    assert answers == [(200, ""), *[(403, "not_permitted")] * len(CHANGES)]
    assert server.control.asked == []


@pytest.mark.needs_root
async def test_the_daemons_own_user_may_do_everything_over_the_unix_socket(
    open_folder: Path,
) -> None:
    async with running(open_folder, own_uid=OTHER_UID) as server:
        server.options.socket_path.chmod(0o666)
        assert await ask_as(OTHER_UID, server, ("POST", "/deploy/switch")) == [(200, "")]
        assert await ask_as(0, server, ("POST", "/deploy/switch")) == [(200, "")]
    assert [actor.name for _, _, actor in server.control.asked] == [f"uid:{OTHER_UID}", "uid:0"]
    assert {actor.origin for _, _, actor in server.control.asked} == {"unix"}


@pytest.mark.needs_root
async def test_the_mode_of_the_unix_socket_keeps_other_users_out(open_folder: Path) -> None:
    async with running(open_folder) as server:
        mode = server.options.socket_path.stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o660


@pytest.mark.parametrize(
    ("addresses", "loopback"),
    [
        (["127.0.0.1"], True),
        (["127.8.9.1", "::1"], True),
        ([], True),
        (["0.0.0.0"], False),
        (["::"], False),
        (["127.0.0.1", "10.0.0.1"], False),
        (["fe80::1%eth0"], False),
    ],
)
def test_only_loopback_is_loopback(addresses: list[str], loopback: bool) -> None:
    assert is_loopback(addresses) is loopback
