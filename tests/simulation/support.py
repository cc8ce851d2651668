"""The folder on which seeds are played."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from atlas_supervisor.store.database import open_database
from atlas_supervisor.store.state_folder import DATABASE_FILE
from tests.simulation.world import BAD, GOOD, IRREVERSIBLE


def prepare(folder: Path) -> None:
    """Make what no daemon changes: releases, smoke file, and an empty database to begin with."""
    for name in (*GOOD, *BAD):
        (folder / "releases" / name).mkdir(parents=True)
        (folder / "releases" / name / "VERSION").write_text(f"{name}\n")
    (folder / "releases" / IRREVERSIBLE / "release.toml").write_text("irreversible = true\n")
    (folder / "smoke.toml").write_text('[[http]]\nname = "home"\npath = "/"\n')

    async def make() -> None:
        async with open_database(folder / DATABASE_FILE):
            pass

    asyncio.run(make())


def clear(folder: Path) -> None:
    """Make an empty state folder."""
    shutil.rmtree(folder / "state", ignore_errors=True)
    (folder / "state" / "logs").mkdir(parents=True)
    shutil.copyfile(folder / DATABASE_FILE, folder / "state" / DATABASE_FILE)
