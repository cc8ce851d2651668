"""The API's certificate: read again when it has changed, kept when the new one is unusable."""

from __future__ import annotations

import asyncio
import shutil
import ssl
from pathlib import Path

import pytest

from atlas_supervisor.api.tls import server_context
from atlas_supervisor.errors import StartRefusedError
from tests.harness import make_certificate
from tests.unit.supervisor.api.support import Server, running

pytestmark = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="needs openssl to make a certificate"
)


async def shown(server: Server) -> str:
    """Return the certificate that a new client is shown."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    host, port = server.authority.rsplit(":", 1)
    _, writer = await asyncio.open_connection(host, int(port), ssl=client)
    found: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    await writer.wait_closed()
    return ssl.DER_cert_to_PEM_cert(found)


async def test_a_renewed_certificate_is_used_and_a_broken_one_ignored(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def pair(name: str) -> tuple[str, str]:
        (tmp_path / name).mkdir()
        certificate, key = make_certificate(tmp_path / name)
        return certificate.read_text(), key.read_text()

    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    first, second = pair("first"), pair("second")
    certificate.write_text(first[0])
    key.write_text(first[1])
    async with running(tmp_path, tls=server_context(certificate, key)) as server:
        assert await shown(server) == first[0]

        certificate.write_text(second[0])  # its key is still to come
        assert await shown(server) == first[0]
        assert await shown(server) == first[0]
        assert capfd.readouterr().out.count("certificate_unusable") == 1
        key.write_text(second[1])
        assert await shown(server) == second[0]

        for broken in ("no certificate", ""):
            certificate.write_text(broken)
            assert await shown(server) == second[0]
        key.unlink()
        assert await shown(server) == second[0]
        assert await shown(server) == second[0]
        assert capfd.readouterr().out.count("certificate_unusable") == 3

        certificate.write_text(first[0])
        key.write_text(first[1])
        assert await shown(server) == first[0]


def test_a_pair_that_does_not_fit_refuses_the_start(tmp_path: Path) -> None:
    certificate, _ = make_certificate(tmp_path)
    with pytest.raises(StartRefusedError, match="CONTROL_TLS_CERT="):
        server_context(certificate, certificate)
