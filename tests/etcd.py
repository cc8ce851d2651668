"""Real etcd clusters on free loopback ports and a temporary folder; Debian's service stays off.

    with cluster(tmp_path) as etcd:                 # or members=3
        async with EtcdEngine(etcd.endpoints, "/atlas/test/") as engine: ...

A module shares one cluster, in a fixture of its own, and each test takes a prefix of its own.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import shutil
import signal
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from atlas_supervisor.fleet.engine import Changes
from tests.harness import free_ports

PROGRAM = shutil.which("etcd")
MISSING = "etcd is not installed (Debian: etcd-server)"

_START_SECONDS = 30.0
_STOP_SECONDS = 10.0
_QUIET = ("--logger=zap", "--log-outputs=stderr", "--log-level=warn")


@dataclass(frozen=True)
class Certificates:
    """An authority, with a certificate for 127.0.0.1 and clients', each with its key."""

    ca: Path
    server: tuple[Path, Path]
    client: tuple[Path, Path]
    named_client: tuple[Path, Path]
    """One that has a CommonName."""

    def arguments(self) -> tuple[str, ...]:
        """Return the options with which etcd uses them, and asks clients for theirs."""
        certificate, key = self.server
        files = (f"--cert-file={certificate}", f"--key-file={key}")
        return (*files, f"--trusted-ca-file={self.ca}", "--client-cert-auth")

    def context(self) -> ssl.SSLContext:
        """Return a client's."""
        context = ssl.create_default_context(cafile=self.ca)
        context.load_cert_chain(*self.client)
        return context


@dataclass
class Member:
    """One member: what it is started with, and its process while it runs."""

    name: str
    folder: Path
    client_url: str
    peer_url: str
    arguments: tuple[str, ...]
    wrapper: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str) -> None:
        """Start it, or start it again with the data that it has."""
        assert PROGRAM is not None, MISSING
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                (*self.wrapper, PROGRAM, *self.arguments, *arguments),
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in a terminal is for the program that runs it
            )

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(how)
        try:
            self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def suspend(self) -> None:
        """Hang it: its connections stay, and nothing is answered."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        os.waitpid(self.process.pid, os.WUNTRACED)  # only then no thread of it goes on

    def resume(self) -> None:
        """Let it go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def log(self) -> str:
        """Return its log."""
        with suppress(FileNotFoundError):
            return (self.folder / "log").read_text(errors="replace")
        return ""


@dataclass
class Cluster:
    """A cluster of one or three members."""

    members: list[Member] = field(default_factory=list)
    certificates: Certificates | None = None

    @property
    def endpoints(self) -> list[str]:
        """The client URLs of all members."""
        return [member.client_url for member in self.members]

    def post(
        self, path: str, content: dict[str, Any], *, member: int = 0, token: str = ""
    ) -> dict[str, Any]:
        """Ask a member, beside the engine under test."""
        connection = _connection(self.members[member], self.certificates)
        try:
            headers = {"Authorization": token} if token else {}
            connection.request("POST", path, json.dumps(content), headers)
            answer = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        assert isinstance(answer, dict)
        return answer

    def revision(self) -> int:
        """Return the store's revision."""
        status = self.post("/v3/maintenance/status", {})
        return int(status["header"]["revision"])

    def compact(self) -> None:
        """Forget all history before the present revision."""
        answer = self.post("/v3/kv/compaction", {"revision": str(self.revision())})
        assert "error" not in answer, answer

    def start(self) -> None:
        """Start all members that do not run, and wait until each has a leader."""
        peers = ",".join(f"{member.name}={member.peer_url}" for member in self.members)
        for member in self.members:
            if member.process is None:
                member.start(f"--initial-cluster={peers}")
        self.until_ready()

    def until_ready(self) -> None:
        """Wait until each running member has a leader."""
        deadline = time.monotonic() + _START_SECONDS
        for member in self.members:
            while not _has_leader(member, self.certificates):
                running = member.process is not None and member.process.poll() is None
                assert running, f"etcd has ended:\n{member.log()}"
                assert time.monotonic() < deadline, f"etcd does not answer:\n{member.log()}"
                time.sleep(0.05)

    def stop(self) -> None:
        """End all members."""
        for member in self.members:
            member.stop(signal.SIGKILL)


@contextmanager
def cluster(
    folder: Path,
    *,
    members: int = 1,
    certificates: Certificates | None = None,
    durable: bool = False,
) -> Iterator[Cluster]:
    """Run a cluster on loopback, with TLS for clients if there are certificates.

    Unless it is `durable`, it waits for no disk: it survives its own end, not the machine's.
    """
    ports = free_ports(2 * members)
    made = Cluster(certificates=certificates)
    scheme, arguments = ("https", certificates.arguments()) if certificates else ("http", ())
    if not durable:
        arguments = (*arguments, "--unsafe-no-fsync")
    for number in range(members):
        client, peer = ports[2 * number : 2 * number + 2]
        urls = f"{scheme}://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
        made.members.append(member(folder, f"m{number}", *urls, arguments=arguments))
    try:
        made.start()
        yield made
    finally:
        made.stop()


def member(
    folder: Path,
    name: str,
    client_url: str,
    peer_url: str,
    *,
    arguments: Sequence[str] = (),
    wrapper: Sequence[str] = (),
) -> Member:
    """Return a member that is not started; `wrapper` comes before the program."""
    home = folder / name
    addresses = (
        f"--name={name}",
        f"--data-dir={home / 'data'}",
        f"--listen-client-urls={client_url}",
        f"--advertise-client-urls={client_url}",
        f"--listen-peer-urls={peer_url}",
        f"--initial-advertise-peer-urls={peer_url}",
    )
    every = (*addresses, *_QUIET, *arguments)
    return Member(name, home, client_url, peer_url, every, tuple(wrapper))


def _has_leader(each: Member, certificates: Certificates | None) -> bool:
    connection = _connection(each, certificates)
    try:
        connection.request("GET", "/health")
        return bool(json.loads(connection.getresponse().read()).get("health") == "true")
    except (OSError, http.client.HTTPException, ValueError):
        return False
    finally:
        connection.close()


def _connection(each: Member, certificates: Certificates | None) -> http.client.HTTPConnection:
    address = urlsplit(each.client_url)
    assert address.hostname is not None
    if certificates is None:
        return http.client.HTTPConnection(address.hostname, address.port, timeout=10)
    context = certificates.context()
    return http.client.HTTPSConnection(address.hostname, address.port, timeout=10, context=context)


def make_certificates(folder: Path) -> Certificates:
    """Make certificates with a SAN; only one client's has a CommonName too."""
    folder.mkdir()
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    ca, ca_key = folder / "ca.pem", folder / "ca-key.pem"

    def make(name: str, subject: str, extension: str, *signed: str) -> tuple[Path, Path]:
        certificate, key = folder / f"{name}.pem", folder / f"{name}-key.pem"
        made = ("-subj", subject, "-addext", extension, "-keyout", str(key))
        command = ("openssl", "req", "-x509", "-days", "2", *curve, *made, "-out", str(certificate))
        subprocess.run((*command, *signed), check=True, capture_output=True)
        return certificate, key

    make("ca", "/O=atlas tests", "keyUsage=critical,keyCertSign")
    by_ca = ("-CA", str(ca), "-CAkey", str(ca_key), "-addext", "basicConstraints=CA:FALSE")
    server = make("server", "/O=etcd", "subjectAltName=IP:127.0.0.1", *by_ca)
    san = "subjectAltName=DNS:supervisor"
    client = make("client", "/O=supervisor", san, *by_ca)
    named = make("named", "/O=supervisor/CN=supervisor", san, *by_ca)
    return Certificates(ca, server, client, named)


async def next_of(changes: AsyncIterator[Changes]) -> Changes:
    """Return the next changes of a watch."""
    async with asyncio.timeout(20):
        return await anext(changes)
