"""Which release has the traffic, and what a rollback goes back to, outlive the daemon."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.faults.support import start_again
from tests.harness import DaemonProcess
from tests.integration.support import (
    WARM,
    everything_agrees,
    public_version,
    releases,
    roll_back,
    rows,
    scripted_daemon,
    slot,
    state_file,
    until_phase,
    write,
)
from tests.invariants import violations

# What is left by a daemon that dies once the file is durable, and before it noted the version.
SWITCHING = """
DELETE FROM transitions WHERE phase IN ('switch', 'guard')
AND deploy_id = (SELECT deploy_id FROM deploys ORDER BY rowid DESC LIMIT 1);
UPDATE deploys SET phase = 'switch', result = NULL,
    active_port = staging_port, staging_port = active_port
WHERE rowid = (SELECT max(rowid) FROM deploys);
INSERT INTO versions (ts, slot, release, directory, version)
VALUES ('', 'green', 'r2', 'releases/r2', 'r2')
"""
REVERTING = """
DELETE FROM transitions WHERE phase LIKE '%revert%'
AND deploy_id = (SELECT deploy_id FROM deploys ORDER BY rowid DESC LIMIT 1);
UPDATE deploys SET phase = 'revert', result = 'switched', ended_ts = NULL,
    active_port = staging_port, staging_port = active_port
WHERE rowid = (SELECT max(rowid) FROM deploys);
DELETE FROM versions WHERE id = (SELECT max(id) FROM versions)
"""


async def brought_back(daemon: DaemonProcess) -> str:
    """Deploy r1 and r2, lose the warm r1 and bring it back through the gates, by a new deploy."""
    for name in ("r1", "r2"):
        assert (await daemon.deploy(name)).status == 200
    os.kill(slot(await daemon.status(), "staging")["pid"], signal.SIGKILL)
    await until_phase(daemon, "ended")
    cold = await roll_back(daemon)
    assert (cold.json["result"], cold.json["release"]) == ("switched", "r1")
    return str(cold.json["deploy_id"])


def versions(daemon: DaemonProcess) -> list[str | None]:
    return [
        name
        for (name,) in rows(daemon, "SELECT release FROM versions WHERE NOT undone ORDER BY id")
    ]


@pytest.mark.fault("Disk and files", "a state file at odds with the database", "the file counts")
async def test_a_rollback_killed_before_its_version_was_written_counts_as_one(
    tmp_path: Path,
) -> None:
    folder = releases(tmp_path, "r1", "r2")
    async with scripted_daemon(tmp_path, {**WARM, "RELEASES_DIR": folder}) as daemon:
        deploy_id = await brought_back(daemon)
        await daemon.kill()
        for statement in SWITCHING.split(";"):
            write(daemon, statement)
        assert versions(daemon) == [None, "r1", "r2"]
        record = await start_again(daemon)
        assert (record["deploy_id"], record["result"]) == (deploy_id, "switched")
        assert await public_version(daemon) == "r1"
        assert versions(daemon) == [None, "r1"]
        await everything_agrees(daemon)
        os.kill(slot(await daemon.status(), "staging")["pid"], signal.SIGKILL)
        await daemon.ended(deploy_id)
        # So the next one goes back by one more, and not to the one that was given up.
        again = await roll_back(daemon)
        assert (again.json["result"], again.json["release"]) == ("switched", None)
        assert await public_version(daemon) == "v1"


async def test_the_revert_of_a_rollback_killed_before_its_version_was_written_counts(
    tmp_path: Path,
) -> None:
    folder = releases(tmp_path, "r1", "r2")
    async with scripted_daemon(tmp_path, {**WARM, "RELEASES_DIR": folder}) as daemon:
        deploy_id = await brought_back(daemon)
        reverted = await roll_back(daemon)
        assert (reverted.json["deploy_id"], reverted.json["result"]) == (deploy_id, "rolled_back")
        await daemon.kill()
        for statement in REVERTING.split(";"):
            write(daemon, statement)
        assert versions(daemon) == [None, "r1"]
        record = await start_again(daemon)
        assert (record["deploy_id"], record["result"]) == (deploy_id, "rolled_back")
        assert await public_version(daemon) == "r2"
        assert versions(daemon) == [None, "r1", "r2"]
        await everything_agrees(daemon)


@pytest.mark.fault("Database", "removed", "the release that had the traffic is started")
async def test_without_its_database_it_starts_the_release_that_had_the_traffic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = releases(tmp_path, "r1", "r2")
    async with scripted_daemon(tmp_path, {"RELEASES_DIR": folder}) as daemon:
        for name in ("r1", "r2"):
            assert (await daemon.deploy(name)).status == 200
        before = state_file(daemon)
        assert (before["active_release"]["name"], before["active_release"]["version"]) == (
            "r2",
            "r2",
        )
        await daemon.stop()
        for path in daemon.state_dir.glob("atlas.db*"):
            path.unlink()
        await daemon.start()
        assert await public_version(daemon) == "r2"
        after = state_file(daemon)
        for field in ("active_port", "active_release", "last_switch_ts"):
            assert after[field] == before[field]
        assert versions(daemon) == ["r2"]
        nothing = await roll_back(daemon)
        assert nothing.json["error"]["code"] == "nothing_to_roll_back"
        monkeypatch.setattr(DaemonProcess, "check_at_end", None)  # the audit trail has a gap
        assert list(await violations(daemon)) == ["the audit trail is whole"]
