"""The audit trail of a real daemon: what is in it, and what the client finds out about it."""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.harness import DaemonProcess, eventually
from tests.integration.support import release, rows, scripted_daemon
from tests.unit.supervisor.cli.support import Outcome, call_client

QUICK = {"HEALTH_PROBES": 1}
USER = f"uid:{os.geteuid()}"


async def atlasctl(daemon: DaemonProcess, *arguments: str) -> Outcome:
    return await call_client("--env-file", daemon.env_file, *arguments)


def tamper(daemon: DaemonProcess, statement: str, *values: str) -> None:
    """Change the database behind the running daemon's back."""
    with closing(sqlite3.connect(daemon.state_dir / "atlas.db", timeout=10)) as connection:
        connection.execute(statement, values)
        connection.commit()


async def entries(daemon: DaemonProcess) -> list[dict[str, Any]]:
    """Return the whole trail, oldest first."""
    answer = await daemon.request("GET", "/deploy/audit", params={"limit": "1000"})
    return list(reversed(answer.json["entries"]))


async def test_every_change_is_in_it_once_with_who_asked_and_how_it_came_out(
    tmp_path: Path,
) -> None:
    async with scripted_daemon(tmp_path, {**QUICK, "AUTO_SWITCH_ON_HEALTH": "false"}) as daemon:
        user = (USER, "unix")
        own = ("supervisor", "internal")
        release(daemon, "v2")
        first = (await daemon.deploy()).json["deploy_id"]
        assert (await daemon.request_tcp("POST", "/deploy/switch")).status == 200
        await daemon.ended(first)
        second = (await daemon.deploy()).json["deploy_id"]
        assert (await daemon.request("POST", "/deploy/abort")).status == 200
        tried = (await daemon.deploy(dry_run="true")).json["deploy_id"]
        release(daemon, "v3", health=500)
        failed = (await daemon.deploy()).json["deploy_id"]
        assert (await daemon.request_tcp("POST", "/deploy/abort", token="guessed")).status == 401
        await daemon.request("POST", "/deploy/mode", json={"mode": "bluegreen"})
        # Results and refused requests are written a moment later.
        await eventually(
            lambda: rows(daemon, "SELECT count(*) FROM audit") >= [(17,)], what="17 entries"
        )
        found = Counter(
            (each["actor"], each["origin"], each["action"], each["subject"], each["outcome"])
            for each in await entries(daemon)
        )
        assert found == Counter(
            [
                (*own, "daemon", None, "started"),
                (*user, "deploy", first, "begun"),
                (*own, "deploy", first, "awaiting_switch"),
                ("token", "127.0.0.1", "switch", first, "switched"),
                (*own, "deploy", first, "switched"),
                (*user, "deploy", second, "begun"),
                (*own, "deploy", second, "awaiting_switch"),
                (*user, "abort", second, "aborted"),
                (*own, "deploy", second, "aborted"),
                (*user, "dry_run", tried, "begun"),
                (*own, "deploy", tried, "dry_run_passed"),
                (*user, "deploy", failed, "begun"),
                (*own, "rollback", failed, "not_needed"),
                (*own, "mode", failed, "single"),
                (*own, "deploy", failed, "failed"),
                ("anonymous", "127.0.0.1", "request", None, "refused"),
                (*user, "mode", None, "bluegreen"),
            ]
        )
        await daemon.stop()
        assert rows(daemon, "SELECT action, outcome FROM audit ORDER BY id")[-1] == (
            *("daemon", "stopped"),
        )


async def test_a_row_that_was_changed_behind_its_back_is_found_by_the_client(
    tmp_path: Path,
) -> None:
    async with scripted_daemon(tmp_path, QUICK) as daemon:
        for mode in ("single", "bluegreen", "single"):
            await daemon.request("POST", "/deploy/mode", json={"mode": mode})
        whole = await atlasctl(daemon, "audit", "--verify")
        assert whole.code == 0, whole
        assert "4 entries" in whole.out
        assert (await entries(daemon))[-1]["hash"] in whole.out
        listed = await atlasctl(daemon, "audit", "--limit", "2")
        assert [line.split()[0] for line in listed.out.splitlines()] == ["id", "4", "3"]

        tamper(daemon, "UPDATE audit SET actor = 'uid:4711' WHERE id = 3")
        changed = await atlasctl(daemon, "audit", "--verify")
        assert changed.code == 1, changed
        assert "broken at entry 3: entry 3 is not as it was written" in changed.out
        tamper(daemon, "UPDATE audit SET actor = ? WHERE id = 3", USER)
        assert (await atlasctl(daemon, "audit", "--verify")).code == 0

        tamper(daemon, "DELETE FROM audit WHERE id = 4")
        cut = await atlasctl(daemon, "audit", "--verify")
        assert cut.code == 1, cut
        assert "broken at entry 4" in cut.out
        await daemon.stop()
        await daemon.start()
        after = await atlasctl(daemon, "audit", "--verify")
        assert after.code == 1, after
        assert "broken at entry 4: entry 4 is missing" in after.out


async def test_a_daemon_that_is_killed_leaves_a_trail_that_is_whole(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path, QUICK) as daemon:
        await daemon.request("POST", "/deploy/mode", json={"mode": "single"})
        await daemon.kill()
        await daemon.start()
        found = (await daemon.request("GET", "/deploy/audit/verify")).json
        assert (found["ok"], found["entries"]) == (True, 4)
        assert [each["outcome"] for each in await entries(daemon)] == [
            *("started", "single", "started", "adopted"),
        ]
