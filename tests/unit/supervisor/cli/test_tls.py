"""`--url https://…`: which certificates are trusted, and what a refusal says."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp import web

from tests.unit.supervisor.cli.fakes import status
from tests.unit.supervisor.cli.support import Call, program, run

pytestmark = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="needs openssl to make a certificate"
)


@dataclass(frozen=True)
class Secured:
    """A daemon with a self-signed certificate for `localhost`, and one without TLS."""

    port: int
    plain_port: int
    own: Path
    other: Path

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"


def certificate(folder: Path) -> Path:
    """Make a self-signed certificate for `localhost`."""
    folder.mkdir()
    subprocess.run(
        (
            *("openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-addext", "subjectAltName=DNS:localhost", "-keyout", "key.pem", "-out", "cert.pem"),
        ),
        cwd=folder,
        check=True,
        capture_output=True,
    )
    return folder / "cert.pem"


@pytest.fixture
async def secured(tmp_path: Path) -> AsyncIterator[Secured]:
    async def answer(_request: web.Request) -> web.Response:
        return web.json_response(status())

    own, other = certificate(tmp_path / "own"), certificate(tmp_path / "other")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(own, own.with_name("key.pem"))
    app = web.Application()
    app.router.add_get("/deploy/status", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port, plain_port = (address[1] for address in runner.addresses)
        yield Secured(port, plain_port, own, other)
    finally:
        await runner.cleanup()


async def test_the_daemon_s_own_certificate_is_trusted_if_it_is_named(
    secured: Secured, call: Call
) -> None:
    named = await call("status", "--url", secured.url, "--cacert", secured.own)
    assert (named.code, named.err) == (0, "")
    by_environment = {"ATLAS_CACERT": str(secured.own)}
    assert (await call("status", "--url", secured.url, env=by_environment)).code == 0


async def test_without_a_name_the_system_s_certificates_are_trusted(secured: Secured) -> None:
    trusting = await run(
        program("status", "--url", secured.url), SSL_CERT_FILE=str(secured.own), SSL_CERT_DIR=""
    )
    assert (trusting.code, trusting.err) == (0, "")


async def test_a_certificate_that_is_not_trusted_is_a_refusal_with_the_way_out(
    secured: Secured, call: Call
) -> None:
    for options in ([], ["--cacert", secured.other]):
        refused = await call("status", "--url", secured.url, *options)
        assert refused.code == 1
        assert "is not trusted: self-signed certificate." in refused.err
        assert "--cacert" in refused.err
        assert "No daemon" not in refused.err


async def test_a_certificate_for_another_name_is_said_to_be_one(
    secured: Secured, call: Call
) -> None:
    url = f"https://127.0.0.1:{secured.port}"
    refused = await call("status", "--url", url, "--cacert", secured.own)
    assert refused.code == 1
    assert "not valid for '127.0.0.1'" in refused.err
    assert "Use a name in --url that the certificate is made for." in refused.err


async def test_the_wrong_scheme_is_suspected(secured: Secured, call: Call) -> None:
    for url, other in (
        (f"https://localhost:{secured.plain_port}", "use http:// in --url"),
        (f"http://localhost:{secured.port}", "use https:// in --url"),
    ):
        refused = await call("status", "--url", url)
        assert refused.code == 3
        assert other in refused.err


async def test_a_certificate_file_that_can_t_be_used_is_wrong_usage(
    secured: Secured, call: Call, env_file: Path
) -> None:
    bad = await call("status", "--url", secured.url, "--cacert", env_file)
    assert bad.code == 2
    assert "PEM" in bad.err
    missing = {"ATLAS_CACERT": str(env_file.with_name("missing.pem"))}
    assert "missing.pem" in (await call("status", "--url", secured.url, env=missing)).err
    for options in (["--url", "http://localhost:1"], ["--env-file", env_file]):
        assert (await call("status", "--cacert", secured.own, *options)).code == 2
