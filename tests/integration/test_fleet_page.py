"""docs/fleet.md as it stands: certificates, three members of etcd, users, a backup."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from atlas_supervisor.config import load_settings
from atlas_supervisor.fleet.documents import KILL
from atlas_supervisor.fleet.engine import Put
from atlas_supervisor.fleet.etcd import engine_of
from tests import etcd
from tests.harness import free_ports, missing
from tests.integration.support import bash

PAGE = (Path(__file__).parents[2] / "docs/fleet.md").read_text()
NEEDED = missing("etcd", "etcdctl", "openssl")


def block(containing: str) -> str:
    """Return the one block with this in it."""
    fenced: list[str] = re.findall(r"^```\w+\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (found,) = (each for each in fenced if containing in each)
    return found


class Machines:
    """Three machines of the page, on addresses of loopback and with all files in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ports = dict(zip(("2379", "2380"), free_ports(2), strict=True))

    def here(self, text: str, name: str = "a") -> str:
        """Return a text of the page with this machine's addresses, ports and files."""
        for documented, port in self._ports.items():
            text = text.replace(f":{documented}", f":{port}")
        text = text.replace("10.0.0.", "127.0.0.").replace("/etc/etcd/", f"{self.folder}/")
        text = text.replace("/etc/atlas/", f"{self.folder}/")
        return re.sub(r"/host\.(pem|key)", rf"/{name}.\1", text)

    @contextmanager
    def etcd(self) -> Iterator[etcd.Cluster]:
        """Run the three members, each with the page's settings."""
        documented = block("ETCD_NAME")
        own = (self.folder / "a.pem", self.folder / "a.key")
        certificates = etcd.Certificates(self.folder / "ca.pem", own, own, own)
        cluster = etcd.Cluster(certificates=certificates)
        for number, name in enumerate("abc", 1):
            other = re.sub(
                r"^(ETCD_(?:LIST|ADV|INITIAL_ADV).*)10\.0\.0\.1",
                rf"\g<1>10.0.0.{number}",
                documented,
                flags=re.MULTILINE,
            )
            lines = self.here(other.replace("ETCD_NAME=a", f"ETCD_NAME={name}"), name).splitlines()
            url = next(each.partition("=")[2] for each in lines if "LISTEN_CLIENT" in each)
            home = self.folder / f"etcd-{name}"
            arguments = (f"--data-dir={home / 'data'}", "--unsafe-no-fsync", "--log-level=warn")
            wrapper = ("env", *lines)
            cluster.members.append(etcd.Member(name, home, url, "", arguments, wrapper))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


@pytest.mark.skipif(bool(NEEDED), reason=f"needs {NEEDED}")
async def test_the_tutorials_etcd_has_tls_and_users_survives_a_member_and_is_backed_up(
    tmp_path: Path,
) -> None:
    machines = Machines(tmp_path)
    secrets = {"ROOT_PASSWORD": "r00t", "ATLAS_PASSWORD": "s3cret", "BACKUP": tmp_path}
    status, printed = await bash(machines.here(block("openssl req")), tmp_path)
    assert status == 0, printed
    (tmp_path / "etcd.password").write_text("s3cret\n")
    (tmp_path / "etcd.password").chmod(0o600)
    env_file = tmp_path / "atlas.env"
    env_file.write_text(machines.here(block("FLEET_ETCD_USER")))
    with machines.etcd() as cluster:
        status, printed = await bash(machines.here(block("auth enable")), tmp_path, **secrets)
        assert status == 0, printed
        async with engine_of(load_settings(env_file, {})) as engine:
            assert await engine.commit([], Put(KILL, b"{}")) is not None
            cluster.members[0].stop()
            assert (await engine.read(KILL)).value(KILL) == b"{}"
        cluster.members[0].start()
        backup = machines.here(block("snapshot save"))
        status, printed = await bash(backup, tmp_path, **secrets)
        assert status == 0, printed
        assert (tmp_path / "etcd.db").stat().st_size > 0
        other = shlex.join(("etcdctl", "--user", "atlas:s3cret", "put", "/other", "x"))
        exported = re.sub(r"^etcdctl .*\n|ETCDCTL_USER=\S+", "", backup, flags=re.MULTILINE)
        status, printed = await bash(f"{exported}\n{other}", tmp_path, **secrets)
        assert "permission denied" in printed
