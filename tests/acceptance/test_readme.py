"""Every command of the README, run as it stands, in the README's order."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
import signal
import sys
import sysconfig
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.doc_blocks import Command, blocks
from tests.harness import eventually, free_ports, processes_with

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()

DAEMONS = ("./scripts/start", "atlas-supervisor")
"""They run until they are stopped; the README's other terminal goes on meanwhile."""
SUITE = "./scripts/test"
"""It runs this test: within itself it would never end."""
PYTHON = f"""#!/bin/sh
[ "$1 $2" != "-m venv" ] || set -- "$@" --without-pip
exec {shlex.quote(sys.executable)} "$@"
"""
"""A Python whose new environments have no pip yet: to install it takes as long as all the rest."""
NOT_IN_A_COPY = (
    "__pycache__",
    ".git",
    ".venv",
    "state",
    ".*_cache",
    "*.egg-info",
    "build",
    "node_modules",
)


def commands(text: str) -> Iterator[Command]:
    """Yield the commands of all blocks."""
    for block in blocks(text):
        yield from block.commands()


class Shell:
    """A reader's terminal: bash with a home folder and ports of its own, and no settings else."""

    def __init__(self, folder: Path, where: Path, **environment: str) -> None:
        self._where, self._environment = where, environment
        self.ports = dict(
            zip(
                ("ACTIVE_PORT", "STAGING_PORT", "PUBLIC_PORT", "CONTROL_PORT"),
                free_ports(4),
                strict=True,
            )
        )
        self._folder = folder
        self._home = folder / "home"
        self._home.mkdir()
        self._daemon: int | None = None
        self._log = folder / "daemon.out"
        self._process: asyncio.subprocess.Process

    async def open(self) -> None:
        programs = self._folder / "programs"
        programs.mkdir()
        python = programs / "python3"
        python.write_text(PYTHON)
        python.chmod(0o755)
        self._process = await asyncio.create_subprocess_exec(
            "bash",
            cwd=self._where,
            env={
                "HOME": str(self._home),
                "PATH": f"{programs}:/usr/local/bin:/usr/bin:/bin",
                "SSL_CERT_FILE": os.devnull,  # aiohttp's import would read all certificates
                "PIP_NO_INDEX": "1",
                "PIP_NO_BUILD_ISOLATION": "0",  # pip's way to say: without isolation
                "HEALTH_INTERVAL_SECONDS": "0.05",
                **self._environment,
                **{key: str(port) for key, port in self.ports.items()},
            },
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )

    async def run(self, text: str) -> tuple[int, str]:
        """Run one command; return its exit status and output."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{text}\nstatus=$?; echo; echo --- $status\n".encode())
        lines: list[str] = []
        while not (match := re.fullmatch(r"--- (\d+)", lines[-1]) if lines else None):
            line = await self._process.stdout.readline()
            assert line, "\n".join(lines)
            lines.append(line.decode().rstrip("\n"))
        return int(match[1]), "\n".join(lines[:-1])

    async def start_daemon(self, text: str) -> None:
        """Run a daemon in another terminal, and wait until its worker serves."""
        await self.stop_daemon()
        _, output = await self.run(f"{text} >>'{self._log}' 2>&1 & echo $!")
        self._daemon = int(output.split()[-1])
        await eventually(self.serves, within=20, what=f"{text} serves")

    async def stop_daemon(self) -> None:
        """End the daemon as Ctrl-C does."""
        if self._daemon is not None:
            pid, self._daemon = self._daemon, None
            os.kill(pid, signal.SIGINT)
            status, _ = await self.run(f"wait {pid}")
            assert status == 0, self._log.read_text()

    def serves(self) -> bool:
        try:
            urllib.request.urlopen(self.address, timeout=2).close()  # noqa: S310 - our own address
        except urllib.error.HTTPError:
            return True  # the application has no page there
        except OSError:
            return False
        return True

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.ports['PUBLIC_PORT']}/"

    async def close(self) -> None:
        if self._daemon is not None:
            os.kill(self._daemon, signal.SIGTERM)
        if self._process.stdin is not None:
            self._process.stdin.close()
        await self._process.wait()


def offer_packages(environment: Path) -> None:
    """Let a new environment find the packages of this one, pip included: it is the index here."""
    (folder,) = (environment / "lib").glob("python*/site-packages")
    (folder / "index.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = environment / "bin/pip"
    pip.write_text(f'#!/bin/sh\nexec {shlex.quote(str(environment))}/bin/python -m pip "$@"\n')
    pip.chmod(0o755)


def missing_steps(shown: list[str], output: str) -> list[str]:
    """Return the steps that the README shows and the command did not print: mark and word."""
    steps = (" ".join(line.split()[:2]) for line in shown if line[:1] in ("✓", "✗"))
    return [step for step in steps if step not in output]


def section(title: str) -> str:
    """Return one section of the README."""
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


async def run_all(shell: Shell, home: Path, text: str) -> list[str]:
    """Run a text's commands in one shell; return them. Every one must succeed."""
    ran = []
    await shell.open()
    try:
        for command in commands(text):
            if command.text == SUITE:
                continue
            ran.append(command.text)
            if command.text in DAEMONS:
                await shell.start_daemon(command.text)
                continue
            status, output = await shell.run(command.text)
            assert status == 0, f"{command.text}\n{output}"
            assert not missing_steps(command.shown, output), output
            if " -m venv " in command.text:
                offer_packages(Path(command.text.split()[-1].replace("~", str(home))))
        await shell.stop_daemon()
    finally:
        await shell.close()
    return ran


@pytest.mark.timeout(240)  # it installs what a newcomer does: 30 s alone
async def test_the_commands_to_try_it_work_as_they_stand(tmp_path: Path) -> None:
    state = tmp_path / "state"
    shell = Shell(tmp_path, ROOT, STATE_DIR=str(state))

    ran = await run_all(shell, tmp_path / "home", section("Try it"))

    assert {"./scripts/demo --once", "./scripts/start", "./scripts/atlasctl deploy"} <= {*ran}
    assert not processes_with("ATLAS_STATE_DIR", str(state))


@pytest.mark.timeout(240)  # it installs what a newcomer does: 30 s alone
async def test_the_commands_for_a_fastapi_application_work_as_they_stand(tmp_path: Path) -> None:
    copy, home = tmp_path / "copy", tmp_path / "home"  # a build may leave files behind
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*NOT_IN_A_COPY))

    ran = await run_all(Shell(tmp_path, copy), home, section("Your own FastAPI application"))

    assert {"atlasctl init --yes", "atlas-supervisor", "atlasctl deploy"} <= {*ran}
    settled = (home / "shop/atlas.env").read_text()
    assert "WORKER_COMMAND=python -m atlas_worker.asgi main:app\n" in settled
    assert not processes_with("ATLAS_STATE_DIR", str(home / "shop/state"))


def test_no_command_of_the_readme_is_outside_of_these_sections() -> None:
    tested = section("Try it") + section("Your own FastAPI application")

    assert len(list(commands(README))) == len(list(commands(tested))) > 10
