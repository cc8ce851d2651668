"""docs/fleet.md as it stands: etcd with certificates and users, the commands, a reboot."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from atlas_supervisor.config import load_settings
from atlas_supervisor.fleet.documents import KILL
from atlas_supervisor.fleet.engine import Put
from atlas_supervisor.fleet.etcd import engine_of
from tests import etcd
from tests.harness import DaemonProcess, Setting, free_ports, missing, write_release
from tests.integration.support import bash, scripted_daemon
from tests.unit.supervisor.cli.support import call_client

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
            for member in cluster.members:
                member.start()
            cluster.until_ready()
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


@pytest.mark.skipif(etcd.PROGRAM is None, reason=etcd.MISSING)
async def test_the_tutorials_commands_roll_out_halt_kill_and_reboot(tmp_path: Path) -> None:
    for version, health in (("1.0", 200), ("1.1", 200), ("1.2", 500)):
        behaviour = {"behaviour.json": json.dumps({"health": health})}
        write_release(tmp_path / "releases" / version, version, behaviour)
    [port] = free_ports(1)
    with etcd.cluster(tmp_path / "etcd") as cluster:
        settings: dict[str, Setting] = {
            "RELEASES_DIR": tmp_path / "releases",
            "WORKER_DIRECTORY": tmp_path / "releases/1.0",
            "FLEET_ETCD_ENDPOINTS": cluster.endpoints[0],
            "FLEET_HOST": "a",
            "FLEETLOCK_PORT": port,
        }
        async with scripted_daemon(tmp_path / "a", settings) as daemon:
            resume, rollback, abort = block("fleet resume").splitlines()
            await run(daemon, "atlasctl fleet status")
            for command, version in ((block("fleet rollout 1.1"), "1.1"), (rollback, "1.0")):
                await run(daemon, command)
                await until(daemon, lambda fleet: fleet["rollout"]["state"] == "passed")
                assert (await daemon.status())["version"] == version
            await run(daemon, block("fleet rollout 1.2"))
            await until(daemon, lambda fleet: fleet["rollout"]["state"] == "halted")
            await run(daemon, f"atlasctl mode bluegreen\n{resume}")
            await until(daemon, lambda fleet: fleet["rollout"]["state"] == "halted")
            await run(daemon, abort)
            await run(daemon, block("fleet kill"))
            for operation, holders in (("pre-reboot", 1), ("steady-state", 0)):
                script = block(f"/v1/{operation}").replace(":8796/", f":{port}/")
                status, printed = await bash(script, tmp_path)
                assert status == 0, printed
                await until(daemon, lambda fleet: len(fleet["semaphore"]["holders"]) == holders)  # noqa: B023


async def run(daemon: DaemonProcess, script: str) -> None:
    """Run the client's commands on a machine, one after the other."""
    for line in script.splitlines():
        program, *words = shlex.split(line)
        done = await call_client(*words, env={"ATLAS_ENV_FILE": str(daemon.env_file)})
        assert (program, done.code) == ("atlasctl", 0), f"{line}\n{done.out}{done.err}"


async def until(daemon: DaemonProcess, holds: Callable[[Any], bool]) -> None:
    """Wait until this holds of the fleet."""
    async with asyncio.timeout(30):
        while not holds((await daemon.request("GET", "/fleet")).json):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
