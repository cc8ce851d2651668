"""A reader's terminal: the commands of a document run in it as they stand, in its order.

What a reader would fetch from a package index comes from the environment that the tests run in. pip
takes it for installed, so it makes no programs of it: `write_programs` does.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
import sysconfig
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Self

from scripts.doc_blocks import Command, blocks
from tests.harness import free_ports

ROOT = Path(__file__).parents[1]
NOT_IN_A_COPY = (".git", ".venv", "state", ".*_cache", "*.egg-info", "build", "node_modules")
SOURCES = ("supervisor", "worker")
START_SECONDS = 30
DAEMONS = ("./scripts/start", "atlas-supervisor")
"""They run until they are stopped; the reader's other terminal goes on meanwhile."""


def commands(text: str) -> Iterator[Command]:
    """Yield the commands of all blocks."""
    for block in blocks(text):
        yield from block.commands()


PORTS = {
    "ACTIVE_PORT": 8791,
    "STAGING_PORT": 8792,
    "PUBLIC_PORT": 8790,
    "CONTROL_PORT": 8793,
}
PYTHON = """#!/usr/bin/env bash
set -e
if [ "$1 $2" != "-m venv" ]; then exec '{python}' "$@"; fi
'{python}' "$@" --without-pip
bin="${{@: -1}}/bin"
echo '{index}' > "$(echo "$bin"/../lib/python*/site-packages)/index.pth"
printf '#!/bin/sh\\nexec "$(dirname "$0")/python" -m pip "$@"\\n' > "$bin/pip"
chmod +x "$bin/pip"
"""
"""A Python whose new environments find all packages, pip too, which takes long to install."""


class Terminal:
    """A reader's terminal: bash with a home folder and ports of its own, and no settings else.

    `folder` is for the home and what else the terminal needs, `where` its first folder.
    """

    command: Sequence[str] = ("bash",)
    _status = 0
    """That of the command before."""
    _daemon: int | None = None
    _process: asyncio.subprocess.Process

    def __init__(self, folder: Path, where: Path, **environment: str) -> None:
        self.home = folder / "home"
        self.home.mkdir(exist_ok=True)
        programs = write_python(folder / "programs", sysconfig.get_path("purelib"))
        self.ports: Mapping[str, int] = dict(zip(PORTS, free_ports(4), strict=True))
        self.where = where
        self.environment = {
            **self._common(programs),
            "HEALTH_INTERVAL_SECONDS": "0.05",
            **environment,
            **{key: str(port) for key, port in self.ports.items()},
        }

    def _common(self, programs: Path) -> dict[str, str]:
        """Return the environment of every terminal."""
        return {
            "HOME": str(self.home),
            "PATH": f"{programs}:/usr/local/bin:/usr/bin:/bin",
            "SSL_CERT_FILE": os.devnull,  # aiohttp's import would read all certificates
            "PIP_NO_INDEX": "1",
            "PIP_NO_BUILD_ISOLATION": "0",  # pip's way to say: without isolation
        }

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *self.command,
            cwd=self.where,
            env=self.environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        return self

    async def __aexit__(self, *exception: object) -> None:
        if self._daemon is not None:
            await self.run(f"kill {self._daemon}")
        if self._process.stdin is not None:
            self._process.stdin.close()
        await self._process.wait()

    async def follow(
        self, text: str, *, before: Mapping[str, Callable[[], Awaitable[object]]] | None = None
    ) -> dict[str, str]:
        """Run a text's commands in order; return what each one printed, the last time that it ran.

        Each must print the steps that the text shows, and succeed, except for deploys that the text
        has fail. A daemon that they start goes on until another one is started. `before` has what
        to do before some of them.
        """
        ran = {}
        for command in commands(text):
            if before and command.text in before:
                await before[command.text]()
            if command.text in DAEMONS:
                await self.start_daemon(command.text)
                ran[command.text] = ""
                continue
            status, output = await self.run(command.text)
            fails = "deploy" in command.text and "✗ failed" in command.shown
            assert status == fails, f"{command.text}\n{output}"
            assert not missing_steps(command.shown, output), output
            ran[command.text] = output
        return ran

    async def run(self, text: str) -> tuple[int, str]:
        """Run one command; return its exit status and output."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        whole = (
            f"(exit {self._status})\n{{ {text}\n}} </dev/null\nstatus=$?; echo; echo --- $status\n"
        )
        self._process.stdin.write(whole.encode())
        lines: list[str] = []
        while not (match := re.fullmatch(r"--- (\d+)", lines[-1]) if lines else None):
            line = await self._process.stdout.readline()
            assert line, "\n".join(lines)
            lines.append(line.decode().rstrip("\n"))
        self._status = int(match[1])
        return self._status, "\n".join(lines[:-1]).removesuffix("\n")

    async def start_daemon(self, text: str) -> None:
        """Run a daemon in another terminal, and wait until its worker serves."""
        await self.stop_daemon()
        _, output = await self.run(f"{text} >>~/daemon.out 2>&1 & echo $!")
        self._daemon = int(output.split()[-1])
        await self.until_answered(self.address)

    async def until_answered(self, url: str) -> None:
        """Wait until a URL has an answer, of any status."""
        answered = f"until curl -s -o /dev/null {url}; do sleep 0.1; done"
        status, _ = await self.run(f"timeout {START_SECONDS} sh -c '{answered}'")
        assert status == 0, (await self.run("cat ~/daemon.out"))[1]

    async def stop_daemon(self) -> None:
        """End the daemon as Ctrl-C does."""
        if self._daemon is not None:
            pid, self._daemon = self._daemon, None
            status, _ = await self.run(f"kill -INT {pid}; wait {pid}")
            assert status == 0, (await self.run("cat ~/daemon.out"))[1]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.ports['PUBLIC_PORT']}/"


def copy_checkout(to: Path) -> None:
    """Copy the repository, as a fresh clone has it: a build may leave files behind.

    With what was compiled of the sources, which stays valid.
    """

    def ignored(folder: str, names: list[str]) -> set[str]:
        found = shutil.ignore_patterns(*NOT_IN_A_COPY)(folder, names)
        is_source = bool({*SOURCES}.intersection(Path(folder).relative_to(ROOT).parts[:1]))
        return found if is_source else {*found, "__pycache__"}

    shutil.copytree(ROOT, to, ignore=ignored)


def write_python(folder: Path, index: str, python: str = sys.executable) -> Path:
    """Write a `python3` whose environments find the packages of a folder; return its own folder."""
    if not folder.exists():
        folder.mkdir()
        (folder / "python3").write_text(PYTHON.format(python=python, index=index))
        (folder / "python3").chmod(0o755)
    return folder


def write_programs(environment: Path, seen_as: Path, programs: Collection[str]) -> None:
    """Write console programs of this environment into another one, which may be seen elsewhere."""
    for each in entry_points(group="console_scripts"):
        if each.name in programs:
            path = environment / "bin" / each.name
            call = f"import sys; from {each.module} import {each.attr}; sys.exit({each.attr}())"
            path.write_text(f"#!/bin/sh\nexec '{seen_as}/bin/python' -c '{call}' \"$@\"\n")
            path.chmod(0o755)


def missing_steps(shown: list[str], output: str) -> list[str]:
    """Return the steps that a document shows and the command did not print: mark and word."""
    marked = (line.split() for line in shown if line[:1] in ("✓", "✗"))
    steps = (" ".join(words[:2]) for words in marked if words[1][0].isalpha())
    return [step for step in steps if step not in output]
