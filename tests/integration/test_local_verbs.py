"""The verbs that look at this machine, beside a real daemon: doctor and prune."""

from __future__ import annotations

import asyncio
from pathlib import Path

from atlas_supervisor.doctor.__main__ import examine
from atlas_supervisor.doctor.finding import Level
from tests.harness import Setting, write_release
from tests.integration.support import SCRIPTED, scripted_daemon
from tests.unit.supervisor.cli.support import call_client


async def test_ports_of_a_running_daemon_are_its_own_also_after_its_kill(tmp_path: Path) -> None:
    by_port: dict[str, Setting] = {"WORKER_COMMAND": f"{SCRIPTED} --port {{port}}"}
    async with scripted_daemon(tmp_path, by_port) as daemon:
        pid = daemon.pid
        alive = await asyncio.to_thread(examine, daemon.env_file)
        other = tmp_path / "other.env"
        other.write_text(f"PUBLIC_PORT={daemon.public_port}\nSTATE_DIR=other\n")
        beside = await asyncio.to_thread(examine, other)
        await daemon.kill()
        killed = await asyncio.to_thread(examine, daemon.env_file)
        await daemon.start()

    for report in (alive, killed):
        assert report.status is not Level.FAIL, report
    taken = [each.message for each in beside.findings if each.status is Level.FAIL]
    assert any(f"PUBLIC_PORT={daemon.public_port} is taken: pid " in each for each in taken)
    messages = [f"{each.check}: {each.message}" for each in alive.findings]
    assert any(each.startswith(f"daemon: pid {pid} ") for each in messages)
    assert any(each.startswith("ports: ACTIVE_PORT=") and "is ours" in each for each in messages)
    assert any("workers of an earlier one serve on" in each.message for each in killed.findings)


async def test_prune_leaves_what_runs_and_what_served_on_a_real_daemon(tmp_path: Path) -> None:
    releases = tmp_path / "releases"
    for name in ("old", "first", "second", "other"):
        write_release(releases / name, name)
    settings: dict[str, Setting] = {
        "RELEASES_DIR": releases,
        "WORKER_DIRECTORY": releases / "other",
    }
    async with scripted_daemon(tmp_path, settings) as daemon:
        for name in ("first", "second"):
            answer = await daemon.deploy(name)
            assert answer.json["result"] == "switched"
        options = ("prune", "--keep", "0", "--env-file", daemon.env_file)
        pruned = await call_client(*options, "--yes")
        again = await call_client(*options, "--dry-run")

    assert pruned.code == 0, pruned.err
    assert "removed 1 of 1" in pruned.out
    assert {path.name for path in releases.iterdir()} == {"first", "second", "other"}
    assert "nothing to remove; 3 releases are kept" in again.out
