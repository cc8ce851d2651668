"""The API's sockets: binding, stale and taken ones, TLS, and closing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import socket
import ssl
import stat
import subprocess
from pathlib import Path

import aiohttp
import pytest
import structlog

import atlas_supervisor.api.server
from atlas_supervisor.errors import StartRefusedError
from tests.unit.supervisor.api.support import BEARER, Server, eventually, free_port, running


def descriptors() -> set[str]:
    """Return the open descriptors, without the one that lists them."""
    found = list(Path("/proc/self/fd").iterdir())
    return {f"{each.name}: {each.readlink()}" for each in found if each.is_symlink()}


def names(folder: Path) -> list[str]:
    return [each.name for each in folder.iterdir()]


async def test_stopping_leaves_no_task_and_no_descriptor(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        await server.unix("GET", "/livez")  # asyncio has opened its own descriptors now
    before = descriptors()
    async with running(tmp_path) as server:
        assert (await server.tcp("GET", "/livez")).status == 200
        mode = server.options.socket_path.stat().st_mode
        assert (stat.S_ISSOCK(mode), stat.S_IMODE(mode)) == (True, 0o660)
    assert descriptors() == before
    assert names(tmp_path) == []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", server.options.port))


async def test_stopping_does_not_wait_for_idle_clients(tmp_path: Path) -> None:
    async with asyncio.timeout(5), running(tmp_path, shutdown_seconds=30) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.options.port)
        writer.write(f"GET /livez HTTP/1.1\r\nHost: {server.authority}\r\n\r\n".encode())
        await reader.readuntil(b'"alive"}')
        silent = await asyncio.open_connection("127.0.0.1", server.options.port)
    assert await reader.read() == b""
    writer.close()
    silent[1].close()


async def test_port_0_turns_tcp_off(tmp_path: Path) -> None:
    async with running(tmp_path, port=0) as server:
        assert (await server.unix("GET", "/livez")).status == 200
        foreign = {"Origin": "http://127.0.0.1:0"}
        assert (await server.unix("GET", "/livez", headers=foreign)).status == 403


async def test_the_socket_has_its_mode_under_any_umask(tmp_path: Path) -> None:
    old = os.umask(0o177)
    try:
        async with running(tmp_path) as server:
            assert stat.S_IMODE(server.options.socket_path.stat().st_mode) == 0o660
    finally:
        os.umask(old)


async def test_a_socket_that_a_dead_daemon_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "supervisor.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    async with running(tmp_path) as server:
        assert (await server.unix("GET", "/livez")).status == 200


async def test_a_socket_in_use_is_not_replaced(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        with pytest.raises(StartRefusedError, match="another daemon listens"):
            async with running(tmp_path):
                pass
        assert (await server.unix("GET", "/livez")).status == 200


async def test_a_socket_with_a_full_backlog_counts_as_in_use(tmp_path: Path) -> None:
    path = tmp_path / "supervisor.sock"
    with socket.socket(socket.AF_UNIX) as other, contextlib.ExitStack() as clients:
        other.bind(str(path))
        other.listen(0)
        for _ in range(2):
            client = clients.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.connect(str(path))
        with pytest.raises(StartRefusedError, match="another daemon listens"):
            async with running(tmp_path):
                pass
    assert path.is_socket()


async def test_a_file_that_is_not_a_socket_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "supervisor.sock"
    path.write_text("precious")
    with pytest.raises(StartRefusedError, match="is not a socket"):
        async with running(tmp_path):
            pass
    assert path.read_text() == "precious"


async def test_a_missing_folder_is_reported(tmp_path: Path) -> None:
    with pytest.raises(StartRefusedError, match="No such file"):
        async with running(tmp_path / "missing"):
            pass


async def test_a_socket_path_over_107_bytes_works(tmp_path: Path) -> None:
    folder = tmp_path / ("a" * 60) / ("b" * 60)
    folder.mkdir(parents=True)
    assert len(str(folder / "supervisor.sock")) > 107
    async with running(folder) as server:
        handle = os.open(folder, os.O_PATH)
        try:
            short = f"/proc/self/fd/{handle}/supervisor.sock"
            connector = aiohttp.UnixConnector(short)
            async with (
                aiohttp.ClientSession(connector=connector) as session,
                session.get("http://daemon/livez") as response,
            ):
                assert response.status == 200
        finally:
            os.close(handle)
        with pytest.raises(StartRefusedError, match="another daemon listens"):
            async with running(folder):
                pass
        assert server.options.socket_path.is_socket()
    assert names(folder) == []


async def test_a_taken_port_is_reported_and_nothing_is_left_behind(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(
            StartRefusedError, match=f"CONTROL_PORT={port} is taken: pid {os.getpid()} "
        ):
            async with running(tmp_path, port=port):
                pass
    assert names(tmp_path) == []


@pytest.mark.parametrize("host", ["no..host", "203.0.113.1"])
async def test_a_foreign_address_is_reported(tmp_path: Path, host: str) -> None:
    with pytest.raises(StartRefusedError, match="CONTROL_"):
        async with running(tmp_path, host=host):
            pass
    assert names(tmp_path) == []


async def test_a_host_that_is_not_loopback_is_refused_without_tls(tmp_path: Path) -> None:
    with pytest.raises(StartRefusedError, match="CONTROL_TLS_CERT"):
        async with running(tmp_path, host="0.0.0.0"):
            pass
    assert names(tmp_path) == []


async def test_ipv6_loopback_works(tmp_path: Path) -> None:
    try:
        port = free_port()
    except OSError:
        pytest.skip("this machine has no IPv6")
    async with (
        running(tmp_path, host="::1", port=port),
        aiohttp.ClientSession() as session,
        session.get(f"http://[::1]:{port}/livez") as response,
    ):
        assert response.status == 200


async def test_accepting_resumes_after_a_lack_of_descriptors(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    loop = asyncio.get_running_loop()
    async with running(tmp_path) as server, asyncio.timeout(5):
        with socket.socket() as client, structlog.testing.capture_logs() as logs:
            client.setblocking(False)
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))  # what is open stays open
            try:
                await loop.sock_connect(client, ("127.0.0.1", server.options.port))
                await eventually(lambda: bool(logs))
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert logs[0]["event"] == "api_accept_failed"
            request = f"GET /livez HTTP/1.1\r\nHost: {server.authority}\r\n\r\n"
            await loop.sock_sendall(client, request.encode())
            assert (await loop.sock_recv(client, 100)).startswith(b"HTTP/1.1 200")


@pytest.fixture
def tls(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The contexts of a server and of a client that trusts it."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    folder = tmp_path / "tls"
    folder.mkdir()
    subprocess.run(
        (
            *("openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"),
        ),
        cwd=folder,
        check=True,
        capture_output=True,
    )
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return server, ssl.create_default_context(cafile=str(folder / "cert.pem"))


async def over_tls(
    server: Server, client: ssl.SSLContext, method: str, path: str, **headers: str
) -> int:
    async with (
        aiohttp.ClientSession() as session,
        session.request(
            method, f"https://{server.authority}{path}", ssl=client, headers=headers
        ) as response,
    ):
        return response.status


async def test_events_come_through_tls_one_by_one_and_end_properly(
    tmp_path: Path, tls: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    async with running(tmp_path, tls=tls[0]) as server:
        port = server.options.port
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls[1], limit=2**20)
        async with asyncio.timeout(5):
            head = f"GET /deploy/events HTTP/1.1\r\nHost: {server.authority}\r\n\r\n"
            writer.write(head.encode())
            await reader.readuntil(b"id: 7\n\n")
            (feed,) = server.control.feeds
            for number in (8, 9, 10):
                feed.tell(number, cause="x" * 100_000)
                await reader.readuntil(b"id: %d\n" % number)
            feed.waiting.put_nowait(None)
            assert (await reader.read()).endswith(b"\r\n0\r\n\r\n")
        writer.close()


async def test_tcp_uses_tls_and_the_unix_socket_does_not(
    tmp_path: Path, tls: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    async with running(tmp_path, tls=tls[0]) as server:
        own = f"https://{server.authority}"
        assert await over_tls(server, tls[1], "GET", "/livez", Origin=own) == 200
        plain = f"http://{server.authority}"
        assert await over_tls(server, tls[1], "GET", "/livez", Origin=plain) == 403
        assert await over_tls(server, tls[1], "POST", "/deploy/switch") == 401
        assert await over_tls(server, tls[1], "POST", "/deploy/switch", **BEARER) == 200
        assert (await server.unix("GET", "/livez")).status == 200


async def test_off_loopback_reading_needs_the_token_too(
    tmp_path: Path,
    tls: tuple[ssl.SSLContext, ssl.SSLContext],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Tests listen on loopback only, so it is called something else.
    monkeypatch.setattr(atlas_supervisor.api.server, "is_loopback", lambda addresses: False)
    async with running(tmp_path, tls=tls[0]) as server:
        for path in ("/deploy/status", "/livez", "/docs", "/openapi.json", "/nope"):
            assert await over_tls(server, tls[1], "GET", path) == 401
        assert await over_tls(server, tls[1], "GET", "/deploy/status", **BEARER) == 200
        assert (await server.unix("GET", "/deploy/status")).status == 200


async def test_an_unfinished_handshake_counts_as_a_connection_and_times_out(
    tmp_path: Path, tls: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    async with running(tmp_path, tls=tls[0], receive_seconds=0.3) as server:
        async with asyncio.timeout(3):
            assert await server.raw(b"") == b""
            assert b"HTTP" not in await server.raw(b"GET /livez HTTP/1.1\r\n\r\n")
    async with running(tmp_path, tls=tls[0], max_connections=2) as server:
        silent = [await asyncio.open_connection("127.0.0.1", server.options.port) for _ in range(2)]
        assert await over_tls(server, tls[1], "GET", "/livez") == 200
        async with asyncio.timeout(3):
            with contextlib.suppress(ConnectionError):
                assert await silent[0][0].read() == b""
        for _, writer in silent:
            writer.close()


async def test_dripped_headers_are_cut_off_over_tls_too(
    tmp_path: Path, tls: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    async with running(tmp_path, tls=tls[0], receive_seconds=1.0) as server:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", server.options.port, ssl=tls[1], server_hostname="127.0.0.1"
        )
        writer.write(b"GET /livez HTTP/1.1\r\n")
        async with asyncio.timeout(5):
            assert (await reader.read()).startswith(b"HTTP/1.1 408")
        writer.close()
