"""A damaged database is set aside, however the damage shows; it never ends a start."""

from __future__ import annotations

import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from atlas_supervisor.doctor.installation import history
from tests.harness import DaemonProcess
from tests.integration.support import (
    everything_agrees,
    public_version,
    release,
    scripted_daemon,
    state_file,
)
from tests.invariants import invariants_hold

DAMAGES = {
    "text that is no Unicode": "UPDATE deploys SET reason = CAST(x'c328' AS TEXT)",
    "a detail that is no JSON": """UPDATE steps SET detail = '{"message": '""",
    "an instance of another kind": "INSERT INTO instances VALUES"
    " ('blue-1', 'blue', 1, 1, '', '', 0, NULL);UPDATE instances SET slot = CAST(x'c328' AS TEXT)",
    "a column with another name": "ALTER TABLE deploys RENAME COLUMN active_port TO active_pora",
    "a table that is gone": "DROP TABLE versions",
    "a schema that is no Unicode": "PRAGMA writable_schema = 1; UPDATE sqlite_schema SET sql = "
    "replace(sql, 'CREATE TABLE audit', 'CREATE TABLE ' || CAST(x'c328' AS TEXT))",
}


def damage(daemon: DaemonProcess, script: str) -> None:
    with closing(sqlite3.connect(daemon.state_dir / "atlas.db")) as connection:
        connection.executescript(script)
        connection.commit()


def set_aside(daemon: DaemonProcess) -> list[Path]:
    return [
        path
        for path in daemon.state_dir.glob("atlas.db.unreadable-*")
        if not path.name.endswith(("-wal", "-shm"))
    ]


async def started(daemon: DaemonProcess) -> None:
    """Start the daemon, and check that it serves what it served and starts no traceback."""
    output = daemon.folder / "daemon.out"
    output.write_text("")
    before = state_file(daemon)
    await daemon.start()
    assert "Traceback" not in output.read_text()
    assert state_file(daemon)["active_port"] == before["active_port"]
    assert await public_version(daemon) == "v2"
    await everything_agrees(daemon)


async def says_what_is_lost(daemon: DaemonProcess, aside: Path) -> None:
    """Check that status, health, metrics and doctor name the damaged database."""
    (note,) = (await daemon.status())["fallback_suggestions"]
    assert (note["code"], str(aside) in note["message"]) == ("history_lost", True)
    health = (await daemon.request("GET", "/health")).json
    assert health["checks"]["database"]["status"] == "warn"
    assert aside.name in health["checks"]["database"]["message"]
    assert "\natlas_history_lost 1.0\n" in (await daemon.request("GET", "/metrics")).json
    (finding,) = history(daemon.state_dir)
    assert (finding.status, str(aside) in str(finding.mend)) == ("warn", True)


async def test_a_database_with_content_that_cannot_be_read_is_set_aside(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        release(daemon, "v2")
        assert (await daemon.deploy()).status == 200
        await daemon.stop()
        whole = tmp_path / "whole"
        daemon.state_dir.rename(whole)
        for name, script in DAMAGES.items():
            shutil.copytree(whole, daemon.state_dir)
            damage(daemon, script)
            await started(daemon)
            assert len(set_aside(daemon)) == 1, name
            await says_what_is_lost(daemon, set_aside(daemon)[0])
            await invariants_hold(daemon)
            await daemon.stop()
            shutil.rmtree(daemon.state_dir)


@pytest.mark.fault("Database", "eight random bytes in it", "they end no start")
async def test_eight_random_bytes_never_end_a_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each start is on an older database than the state folder tells of, so the trail has gaps.
    monkeypatch.setattr(DaemonProcess, "check_at_end", None)
    async with scripted_daemon(tmp_path) as daemon:
        release(daemon, "v2")
        assert (await daemon.deploy()).status == 200
        await daemon.stop()
        database = daemon.state_dir / "atlas.db"
        whole = database.read_bytes()
        for seed in range(8):
            chance = random.Random(seed)  # noqa: S311 - each run has the same bytes
            content = bytearray(whole)
            for _ in range(8):
                content[chance.randrange(len(content))] = chance.randrange(256)
            for path in daemon.state_dir.glob("atlas.db*"):
                path.unlink()
            database.write_bytes(content)
            await started(daemon)
            await daemon.stop()
        await daemon.start()
