"""A daemon that starts on the state folder of an earlier supervisor, which was killed.

The earlier one wrote a version before the transition that brought it, and apart from it. So it may
have been killed with one written and not the other, and before either.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from tests.harness import DaemonProcess, Setting, write_release
from tests.integration.support import everything_agrees, public_version, rows, scripted_daemon

EARLIER = Path(__file__).parent / "earlier_state"
ACTIVE, STAGING = 17536, 24992
"""The ports that the earlier supervisor was set up with."""

SWITCHING = """
DELETE FROM transitions WHERE id >= 31;
DELETE FROM steps WHERE name IN ('switch', 'guard')
AND deploy_id = (SELECT deploy_id FROM deploys ORDER BY rowid DESC LIMIT 1);
UPDATE deploys SET phase = 'switch', result = NULL, active_port = staging_port,
    staging_port = active_port WHERE rowid = (SELECT max(rowid) FROM deploys)
"""
"""What it would have left if killed after the state file was written and before the transition."""

NOT_NOTED = f"{SWITCHING}; DELETE FROM versions WHERE release = 'r2';"  # noqa: S608  # our own


def leave(daemon: DaemonProcess, changes: str) -> None:
    """Put the earlier state into the daemon's folder, with the ports that it has here."""
    folder = daemon.state_dir
    active, staging = daemon.settings["ACTIVE_PORT"], daemon.settings["STAGING_PORT"]
    shutil.rmtree(folder)
    folder.mkdir()
    shutil.copy(EARLIER / "audit_head.json", folder)
    state = json.loads((EARLIER / "deploy_state.json").read_text())
    state |= {"active_port": active, "staging_port": staging}
    (folder / "deploy_state.json").write_text(json.dumps(state))
    with closing(sqlite3.connect(folder / "atlas.db")) as connection, connection:
        script = (EARLIER / "atlas.sql").read_text()
        connection.executescript(script.replace("/srv/atlas", str(daemon.folder)))
        for column in ("active_port", "staging_port"):
            case = f"CASE {column} WHEN {ACTIVE} THEN {active} ELSE {staging} END"
            connection.execute(f"UPDATE deploys SET {column} = {case}")  # noqa: S608  # our own
        connection.executescript(changes)


@asynccontextmanager
async def started_on(folder: Path, changes: str) -> AsyncIterator[DaemonProcess]:
    """Start a daemon on the earlier state."""
    for name in ("r1", "r2"):
        write_release(folder / "releases" / name, name)
    settings: dict[str, Setting] = {
        "RELEASES_DIR": folder / "releases",
        "CANARY_ENABLED": "true",
        "CANARY_PERCENTAGE": 0.5,
    }
    async with scripted_daemon(folder, settings) as daemon:
        await daemon.stop()
        leave(daemon, changes)
        await daemon.start()
        yield daemon


def versions(daemon: DaemonProcess) -> list[str | None]:
    return [
        name
        for (name,) in rows(daemon, "SELECT release FROM versions WHERE NOT undone ORDER BY id")
    ]


async def verified(daemon: DaemonProcess) -> int:
    """Check that the audit trail is whole; return how many entries it has."""
    found = (await daemon.request("GET", "/deploy/audit/verify")).json
    assert found["ok"], found
    return int(found["entries"])


@pytest.mark.parametrize(
    "changes",
    ["", SWITCHING, NOT_NOTED],
    ids=["while warm", "before the transition", "before the version"],
)
async def test_the_daemon_goes_on_where_an_earlier_supervisor_was_killed(
    tmp_path: Path, changes: str
) -> None:
    async with started_on(tmp_path, changes) as daemon:
        status = await daemon.status()
        assert (status["mode"], status["version"]) == ("bluegreen", "r2")
        assert await public_version(daemon) == "r2"
        await everything_agrees(daemon)

        deploys = (await daemon.request("GET", "/deploy/history")).json["deploys"]
        assert [(each["release"], each["result"], each["phase"]) for each in deploys] == [
            ("r2", "switched", "ended"),
            ("bad", "failed", "ended"),
            ("r2", "rolled_back", "ended"),
            ("r1", "switched", "ended"),
        ]
        assert deploys[1]["steps"][-1]["detail"]["probes"][0]["status"] == 500
        assert "the supervisor ended during" in deploys[0]["reason"]
        assert versions(daemon) == [None, "r1", "r2"]
        assert rows(daemon, "SELECT key FROM idempotency_keys") == [("back",)]
        features = (await daemon.request("GET", "/deploy/canary")).json["features"]
        assert {each["feature"]: each["share"] for each in features}["web"] == 0.8
        entries = await verified(daemon)
        assert entries > 15

        # And it goes on working on all of it.
        back = await daemon.request("POST", "/deploy/rollback")
        assert (back.json["result"], back.json["release"]) == ("switched", "r1")
        assert await public_version(daemon) == "r1"
        assert versions(daemon) == [None, "r1"]
        await everything_agrees(daemon)
        assert await verified(daemon) > entries
