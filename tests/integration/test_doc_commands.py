"""The calls of the client and the API in the documents, run as they stand with a real daemon.

`scripts/doc_commands.py` says which tests run the others.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from scripts.doc_blocks import Command, blocks, documents
from scripts.doc_commands import CLIENTS, RUNNER, does_not_end, programs, run_by
from tests.harness import DaemonProcess, Setting, write_release
from tests.integration.support import SCRIPTED, bash, environment, until_phase
from tests.unit.supervisor.cli.support import call_client

ROOT = Path(__file__).parents[2]
RELEASES = ("1.1", "1.3.2", "1.3.3", "1.4.0", "1.5.0", "2.1")
OF_A_DAEMON = ("canary ramp", "--url")
"""What the daemon here has no settings for, or no address."""
STEERED = {
    "docs/how-to/feature-canary.md": (),
    "docs/how-to/go-back.md": ("1.3.2", "1.3.3", "1.4.0"),
    "docs/how-to/ramp.md": (),
    "docs/how-to/split-traffic.md": (),
}
"""Pages whose commands must succeed one after the other, and what is deployed before."""


def commands(name: str) -> Iterator[Command]:
    """Yield the commands of a page that are run here."""
    for block in blocks((ROOT / name).read_text()):
        for command in block.commands():
            if run_by(name, command.text) == RUNNER:
                yield command


def settings_of(name: str) -> dict[str, Setting]:
    """Return the settings that a page shows."""
    found: dict[str, Setting] = {}
    for block in blocks((ROOT / name).read_text()):
        found |= block.settings
    return found


@asynccontextmanager
async def prepared(
    folder: Path, settings: Mapping[str, Setting], *deployed: str
) -> AsyncIterator[DaemonProcess]:
    """A daemon with the releases that the documents name."""
    talks = {"behaviour.json": '{"say": "started"}'}  # a log that is followed has a line
    for name in RELEASES:
        write_release(folder / "releases" / name, name, talks)
    given: dict[str, Setting] = {
        "RELEASES_DIR": folder / "releases",
        "WORKER_COMMAND": SCRIPTED,
        "STOP_TIMEOUT_SECONDS": 2,
        **settings,
    }
    async with DaemonProcess.running(folder, given, files=talks) as daemon:
        for name in deployed:
            assert (await daemon.deploy(name)).status == 200
        yield daemon


async def run(daemon: DaemonProcess, text: str) -> tuple[int, str]:
    """Run a command as it stands, but for the places that it names; return status and output."""
    env_file = shlex.quote(str(daemon.env_file))
    text = re.sub(r"(?:/etc/atlas|/srv/\w+)/\w+\.env", lambda _: env_file, text)
    words = shlex.split(text, comments=True)
    is_call = words[0] in CLIENTS and not does_not_end(text)
    if is_call and "--" not in words and not {"&&", "|"} & {*words}:
        done = await call_client(*words[1:], env={"ATLAS_ENV_FILE": str(daemon.env_file)})
        return done.code, done.out + done.err
    for port, real in (("8793", daemon.control_port), ("8790", daemon.public_port)):
        text = text.replace(f"127.0.0.1:{port}", f"127.0.0.1:{real}")
    if does_not_end(text):
        return await first_line(text, daemon)
    return await bash(text, daemon.folder, ATLAS_ENV_FILE=daemon.env_file)


async def first_line(text: str, daemon: DaemonProcess) -> tuple[int, str]:
    """Run a command until it prints a line, and end it; return 0 and the line, else 1."""
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", text),
        cwd=daemon.folder,
        env=environment(ATLAS_ENV_FILE=daemon.env_file),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), 30)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        await process.wait()
    return (0 if line else 1), line.decode()


async def test_the_commands_of_all_other_pages_reach_a_daemon_and_are_understood(
    tmp_path: Path,
) -> None:
    pages = [str(path.relative_to(ROOT)) for path in documents()]
    seen: set[str] = set()
    skipped: list[str] = []
    (tmp_path / "manage.py").touch()
    async with prepared(tmp_path, {"KEEP_WARM_FOREIGN": "true"}, "1.4.0") as daemon:
        for page in pages:
            for command in commands(page) if page not in STEERED else ():
                text = command.bare.replace("./scripts/atlasctl", "atlasctl")
                if text in seen or any(word in text for word in OF_A_DAEMON):
                    continue
                if "jq" in programs(text) and shutil.which("jq") is None:
                    skipped.append(text)
                    continue
                seen.add(text)
                status, printed = await run(daemon, text)
                assert status in {0, 1}, f"{page}: {text}\n{printed}"
                assert "Traceback" not in printed
                if text.startswith("curl"):
                    assert status == 0 and '"error"' not in printed, f"{text}\n{printed}"  # noqa: PT018
    assert len(seen) > 30
    if skipped:
        pytest.skip(f"needs jq: {', '.join(skipped)}")


@pytest.mark.parametrize("page", STEERED)
async def test_the_commands_of_a_page_succeed_in_order(tmp_path: Path, page: str) -> None:
    async with prepared(tmp_path, settings_of(page), *STEERED[page]) as daemon:
        for command in commands(page):
            text = command.bare
            ramps = "deploy" in text and page.endswith("ramp.md")
            if "abort" in text and page.endswith("ramp.md"):  # the page's other end
                continue
            status, printed = await run(daemon, text + " --no-wait" if ramps else text)
            assert status == 0, f"{text}\n{printed}"
            if ramps:
                await until_phase(daemon, "ramp")
