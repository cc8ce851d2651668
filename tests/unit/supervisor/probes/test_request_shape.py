from __future__ import annotations

import asyncio
import shutil
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest

from atlas_supervisor.config.smoke_file import SmokePlan
from atlas_supervisor.model.probe import CheckResult, ProbeResult
from atlas_supervisor.model.verdict import Verdict
from atlas_supervisor.probes.health_probe import HttpProber
from atlas_supervisor.probes.http_client import HttpExchangeError, RequestShape, exchange
from atlas_supervisor.probes.smoke import run_smoke
from tests.harness import free_ports, make_certificate
from tests.unit.supervisor.probes.fakes import Handler, answer, raw, serve

HTTPS = RequestShape("https")
USE_TLS = "it answers TLS: HEALTH_SCHEME=https"
USE_PLAIN = "it answers plain HTTP: HEALTH_SCHEME=http"


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*make_certificate(tmp_path_factory.mktemp("tls")))
    return context


async def probe(port: int, shape: RequestShape, *, timeout_seconds: float = 5) -> ProbeResult:
    async with HttpProber(shape=shape) as prober:
        return await prober.probe(port, "/health", timeout_seconds=timeout_seconds)


async def smoke(port: int, shape: RequestShape, **fields: Any) -> CheckResult:
    plan = SmokePlan.model_validate({"http": [{"name": "home", "path": "/", **fields}]})
    (result,) = await run_smoke(
        plan,
        base_url=shape.base_url(port),
        headers=shape.headers_for(port),
        env={},
        directory=Path(),
        deploy_id="d-1",
    )
    return result


def lines(request: bytes) -> list[str]:
    return request.decode().split("\r\n")


async def test_probes_and_smoke_tests_have_the_host_and_headers_of_the_settings() -> None:
    shape = RequestShape("http", "app.example.org", (("X-Forwarded-Proto", "https"), ("X-A", "1")))
    async with serve(answer()) as server:
        assert (await probe(server.port, shape)).verdict is Verdict.PASS
        assert (await smoke(server.port, shape)).ok
        assert (await smoke(server.port, shape, headers={"host": "other", "x-a": "2"})).ok
    health, first, second = map(lines, server.requests)
    for request in (health, first):
        assert {"Host: app.example.org", "X-Forwarded-Proto: https", "X-A: 1"} <= set(request)
    assert "X-Atlas-Probe: 1" in health
    assert {"X-Forwarded-Proto: https", "host: other", "x-a: 2"} <= set(second)
    assert [line.lower().partition(":")[0] for line in second].count("host") == 1


async def test_without_settings_the_host_is_the_address() -> None:
    async with serve(answer()) as server:
        await probe(server.port, RequestShape())
        await smoke(server.port, RequestShape())
    assert all(f"Host: 127.0.0.1:{server.port}" in lines(r) for r in server.requests)


async def test_a_worker_that_speaks_tls_is_probed_with_the_name_of_the_host(
    tls: ssl.SSLContext,
) -> None:
    names: list[str | None] = []
    tls.sni_callback = lambda _link, name, _context: names.append(name)
    async with serve(answer(), tls=tls) as server:
        for host in ("app.example.org:8443", "", "[::1]:80", "other."):
            shape = RequestShape("https", host)
            assert (await probe(server.port, shape)).verdict is Verdict.PASS
            assert (await smoke(server.port, shape)).ok
    assert names[::2] == names[1::2] == ["app.example.org", None, None, "other"]
    tls.sni_callback = None


async def test_a_smoke_command_gets_the_address_with_its_scheme() -> None:
    plan = SmokePlan.model_validate(
        {"command": [{"name": "c", "run": ["sh", "-c", "echo $ATLAS_STAGING_URL"]}]}
    )
    (result,) = await run_smoke(
        plan,
        base_url=HTTPS.base_url(7),
        headers=HTTPS.headers_for(7),
        env={"PATH": "/usr/bin:/bin"},
        directory=Path(),
        deploy_id="d",
    )
    assert result.got == "https://127.0.0.1:7"


async def test_plain_http_to_a_tls_worker_says_which_setting_helps(tls: ssl.SSLContext) -> None:
    async with serve(answer(), tls=tls) as server:
        result = await probe(server.port, RequestShape())
        check = await smoke(server.port, RequestShape())
    assert result.verdict is Verdict.FAIL
    assert USE_TLS in result.message
    assert USE_TLS in check.message


@pytest.mark.parametrize(
    "body",
    [
        b"<center>The plain HTTP request was sent to HTTPS port</center>",
        b"Client sent an HTTP request to an HTTPS server.\n",
        b"Bad Request\r\nThis combination of host and port requires TLS.\r\n",
        b"The client sent a plain HTTP request, but\nthis server only speaks HTTPS on this port.",
    ],
)
async def test_a_tls_worker_that_refuses_plain_http_in_words_is_recognized(body: bytes) -> None:
    async with serve(answer(body, status="400 Bad Request")) as server:
        assert USE_TLS in (await probe(server.port, RequestShape())).message
        # It does not speak plain HTTP either, as far as its answer to a TLS probe shows.
        assert USE_PLAIN not in (await probe(server.port, HTTPS, timeout_seconds=0.1)).message


@asynccontextmanager
async def alerting(description: int) -> AsyncIterator[int]:
    """Serve TLS alerts; yield the port."""

    async def alert(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(b"\x15\x03\x03\x00\x02\x02" + bytes([description]))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(alert, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_a_tls_alert_in_answer_to_plain_http_is_recognized() -> None:
    async with alerting(ssl.ALERT_DESCRIPTION_HANDSHAKE_FAILURE) as port:
        result = await probe(port, RequestShape())
    assert USE_TLS in result.message
    assert result.message.isprintable()


@pytest.mark.parametrize("hangs", [False, True])
async def test_tls_to_a_plain_http_worker_says_which_setting_helps(hangs: bool) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await (reader.readuntil(b"\r\n\r\n") if hangs else reader.read(100))
            code = 200 if line.startswith(b"GET ") else 400
            writer.write(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % code)
            await writer.drain()
        except asyncio.IncompleteReadError:
            pass  # the prober has given up
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        result = await probe(port, HTTPS, timeout_seconds=0.2 if hangs else 5)
    assert result.verdict is Verdict.FAIL
    assert USE_PLAIN in result.message


@pytest.mark.parametrize("shape", [RequestShape(), HTTPS])
@pytest.mark.parametrize("handler", [raw(b""), raw(b"", hold=True), raw(b"220 smtp ready\r\n")])
async def test_no_setting_is_suggested_where_the_other_scheme_fails_too(
    handler: Handler, shape: RequestShape
) -> None:
    async with serve(handler) as server:
        result = await probe(server.port, shape, timeout_seconds=0.1)
    assert result.verdict is Verdict.FAIL
    assert "HEALTH_SCHEME" not in result.message


class Alerted:
    """A session whose request ends in an alert after the handshake, as aiohttp reports it.

    With a real worker the alert and the close arrive together, and either may be seen first.
    """

    async def request(self, *_arguments: Any, **_options: Any) -> aiohttp.ClientResponse:
        alert = ssl.SSLError(1, "[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] alert")
        alert.reason = "TLSV13_ALERT_CERTIFICATE_REQUIRED"
        raise aiohttp.ClientOSError(*alert.args) from alert


async def test_an_alert_after_the_handshake_is_no_error_of_the_daemon() -> None:
    (port,) = free_ports(1)
    session = cast("aiohttp.ClientSession", Alerted())
    url = f"https://127.0.0.1:{port}/"
    with pytest.raises(HttpExchangeError) as failed:
        await exchange(session, "GET", url, headers={}, timeout_seconds=5, limit=1)
    assert failed.value.verdict is Verdict.FAIL
    assert "failed: tlsv13 alert certificate required" in str(failed.value)


async def test_a_failed_handshake_fails_in_words(tls: ssl.SSLContext) -> None:
    shape = RequestShape("https", "app.example.org:1")
    tls.sni_callback = lambda *_arguments: ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
    async with serve(answer(), tls=tls) as server:
        closed = await probe(server.port, shape)
    tls.sni_callback = None
    async with alerting(ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME) as port:
        refused = await probe(port, shape)
    assert closed.verdict is refused.verdict is Verdict.FAIL
    assert "closed the connection in the TLS handshake with app.example.org" in closed.message
    assert "TLS with app.example.org failed: tlsv1 unrecognized name" in refused.message
    assert "HEALTH_SCHEME" not in closed.message + refused.message


@pytest.mark.parametrize(
    ("status", "host"), [("400 Bad Request", ""), ("403 Forbidden", "a.b"), ("421 No", "")]
)
async def test_a_refused_host_is_shown(status: str, host: str) -> None:
    shape = RequestShape(host=host)
    async with serve(answer(status=status)) as server:
        result, check = await probe(server.port, shape), await smoke(server.port, shape)
    sent = host or f"127.0.0.1:{server.port}"
    for message in (result.message, check.message):
        assert f"the Host that was sent: {sent} (HEALTH_HOST)" in message


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_shown_with_its_location(status: int) -> None:
    location = "https://app.example.org/health"
    async with serve(answer(status=f"{status} X", headers=f"Location: {location}\r\n")) as server:
        result = await probe(server.port, RequestShape())
        check = await smoke(server.port, RequestShape())
    for message in (result.message, check.message):
        assert f"Location: ⟦{location}⟧" in message
        assert "HEALTH_HEADERS=X-Forwarded-Proto: https" in message
    assert len(server.requests) == 2


async def test_a_long_location_does_not_flood_the_message() -> None:
    headers = f"Location: /{'x' * 5000}\x1b[2J\r\n"
    async with serve(answer(status="302 Found", headers=headers)) as server:
        result = await probe(server.port, RequestShape())
    assert result.message.isprintable()
    assert len(result.message) < 500


async def test_an_expected_redirect_of_a_smoke_test_passes() -> None:
    async with serve(answer(status="301 Moved", headers="Location: /a\r\n")) as server:
        assert (await smoke(server.port, RequestShape(), expect={"status": 301})).ok
