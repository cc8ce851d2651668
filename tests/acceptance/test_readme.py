"""Every command of the README, run as it stands, in the README's order."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness import processes_with
from tests.terminal import Terminal, commands, copy_checkout

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()

SUITE = "$ ./scripts/test\n"
"""It runs this test: within itself it would never end."""


def section(title: str) -> str:
    """Return one section of the README."""
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


@pytest.mark.timeout(240)  # it installs what a newcomer does: 30 s alone
async def test_the_commands_to_try_it_work_as_they_stand(tmp_path: Path) -> None:
    state = tmp_path / "state"

    async with Terminal(tmp_path, ROOT, STATE_DIR=str(state)) as terminal:
        ran = await terminal.follow(section("Try it").replace(SUITE, ""))
        await terminal.stop_daemon()

    assert {"./scripts/demo --once", "./scripts/start", "./scripts/atlasctl deploy"} <= {*ran}
    assert not processes_with("ATLAS_STATE_DIR", str(state))


@pytest.mark.timeout(240)  # it installs what a newcomer does: 30 s alone
async def test_the_commands_for_a_fastapi_application_work_as_they_stand(tmp_path: Path) -> None:
    copy, home = tmp_path / "copy", tmp_path / "home"
    copy_checkout(copy)

    async with Terminal(tmp_path, copy) as terminal:
        ran = await terminal.follow(section("Your own FastAPI application"))
        await terminal.stop_daemon()

    assert {"atlasctl init --yes", "atlas-supervisor", "atlasctl deploy"} <= {*ran}
    settled = (home / "shop/atlas.env").read_text()
    assert "WORKER_COMMAND=python -m atlas_worker.asgi main:app\n" in settled
    assert not processes_with("ATLAS_STATE_DIR", str(home / "shop/state"))


def test_no_command_of_the_readme_is_outside_of_these_sections() -> None:
    tested = section("Try it") + section("Your own FastAPI application")

    assert len(list(commands(README))) == len(list(commands(tested))) > 10
