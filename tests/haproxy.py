"""A real HAProxy with a configuration of its own, if the machine has one (Debian: haproxy)."""

from __future__ import annotations

import asyncio
import csv
import os
import re
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.harness import DaemonProcess

PROGRAM = shutil.which("haproxy", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
SOCKET = "admin.sock"
MISSING = "HAProxy is not installed (Debian: haproxy)"


@dataclass(frozen=True)
class HAProxy:
    """One that runs."""

    folder: Path
    """It has the socket of the runtime API, under the name `SOCKET`."""

    async def command(self, text: str) -> str:
        """Send a command of its runtime API; return the answer."""
        # A socket's path may have 107 bytes; by way of a descriptor any folder is near.
        folder = os.open(self.folder, os.O_PATH | os.O_DIRECTORY)
        try:
            path = f"/proc/self/fd/{folder}/{SOCKET}"
            reader, writer = await asyncio.open_unix_connection(path)
        finally:
            os.close(folder)
        writer.write(f"{text}\n".encode())
        answer = await reader.read()
        writer.close()
        return answer.decode()

    async def servers(self) -> dict[str, dict[str, str]]:
        """Return the columns of `show stat` for each server, by its name."""
        lines = (await self.command("show stat")).removeprefix("# ").strip().splitlines()
        rows = csv.DictReader(lines)
        return {row["svname"]: row for row in rows if row["svname"] not in {"FRONTEND", "BACKEND"}}

    async def until(self, server: str, status: str, *, within: float = 20.0) -> None:
        """Wait until a server has a status, such as UP, DRAIN or DOWN."""
        async with asyncio.timeout(within):
            while not (await self.servers())[server]["status"].startswith(status):  # noqa: ASYNC110
                await asyncio.sleep(0.02)


@asynccontextmanager
async def haproxy(folder: Path, configuration: str) -> AsyncIterator[HAProxy]:
    """Check the configuration, serve it, and wait until it is served; end it at the end."""
    assert PROGRAM is not None, MISSING
    command = (PROGRAM, "-C", str(folder), "-f", str(_written(folder, configuration)))
    checked = await asyncio.create_subprocess_exec(
        *(*command, "-c"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    complaints, _ = await checked.communicate()
    assert checked.returncode == 0, complaints.decode()
    assert b"WARNING" not in complaints, complaints.decode()
    with (folder / "log").open("wb") as output:
        served = await asyncio.create_subprocess_exec(
            *(*command, "-db"),
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C in a terminal is for the program that runs it
        )
    try:
        async with asyncio.timeout(10):
            while not (folder / SOCKET).exists():
                assert served.returncode is None, (folder / "log").read_text()
                await asyncio.sleep(0.02)
        yield HAProxy(folder)
    finally:
        served.kill()  # what it carries ends with it; SIGTERM would wait for streams
        await served.wait()


def _written(folder: Path, configuration: str) -> Path:
    """Write the configuration, with a runtime API; return its file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "haproxy.cfg"
    file.write_text(f"{configuration}\nglobal\n    stats socket unix@{SOCKET} level admin\n")
    return file


def on_loopback(page: str, port: int, daemons: Mapping[str, DaemonProcess]) -> str:
    """Return the configuration that a page documents, with these addresses in place of its own."""
    found = re.search(r"^```haproxy\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert found, "the page has no configuration"
    text, replaced = re.subn(r"bind :80$", f"bind 127.0.0.1:{port}", found[1], flags=re.MULTILINE)
    assert replaced == 1
    text, replaced = re.subn(r"^    server .*\n", "", text, flags=re.MULTILINE)
    assert replaced == len(daemons)
    servers = (
        f"    server {name} 127.0.0.1:{daemon.public_port}"
        f" agent-port {daemon.settings['FLEET_AGENT_PORT']}\n"
        for name, daemon in daemons.items()
    )
    return text + "".join(servers)
