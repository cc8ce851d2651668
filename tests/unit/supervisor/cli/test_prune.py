"""`atlasctl prune`: which release folders are removed, and that nothing else ever is."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from atlas_supervisor.cli import prune
from tests.unit.supervisor.cli.fakes import Played, record, slot, status
from tests.unit.supervisor.cli.support import Call

NAMES = [f"1.{number}" for number in range(9)]
"""Oldest first."""


@pytest.fixture
def folder(env_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """RELEASES_DIR with nine releases; one more thing of each kind that must stay."""
    path = env_file.parent / "releases"
    for number, name in enumerate(NAMES):
        (path / name / "deep").mkdir(parents=True)
        (path / name / "deep/file").write_text("x" * 5000)
        if number == 0:
            (path / name / "link").symlink_to(env_file.parent / "outside")
        os.utime(path / name, (1000 + number, 1000 + number))
    outside = env_file.parent / "outside"
    outside.mkdir()
    (outside / "kept").write_text("")
    (path / "elsewhere").symlink_to(outside)
    (path / ".half-copied").mkdir()
    (path / "a-file").write_text("")
    settings = {
        "RELEASES_DIR": str(path),
        "WORKER_DIRECTORY": str(env_file.parent),
        "STATE_DIR": str(env_file.parent / "state"),
    }
    monkeypatch.setattr(prune, "checked_settings", lambda _file: settings)
    return path


def play(
    daemon: Played,
    *,
    runs: Iterable[str] = (),
    served: Iterable[str] = (),
    versions: Iterable[str] = (),
    **fields: Any,
) -> None:
    """Play a daemon on which these releases run, and have served."""
    releases = [
        {"name": name, "version": f"v{name}", "slots": ["blue"] if name in runs else []}
        for name in [*NAMES, "elsewhere", "a-file"]
    ]
    earlier: list[dict[str, str | None]] = [
        {"release": name, "version": f"v{name}"} for name in served
    ]
    earlier += [{"release": None, "version": version} for version in versions]
    daemon.play("GET", "/deploy/releases", {"releases": releases})
    daemon.play("GET", "/deploy/status", status(**fields))
    daemon.play("GET", "/deploy/rollback", {"versions": earlier})


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name in NAMES)


def others(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name not in NAMES}


OTHERS = {"elsewhere", ".half-copied", "a-file"}


async def test_the_newest_those_that_run_and_those_that_served_are_kept(
    daemon: Played, atlasctl: Call, folder: Path
) -> None:
    play(daemon, runs=["1.2"], served=["1.7", "1.6", "1.5", "1.3"])

    outcome = await atlasctl("prune", "--keep", "1", "--yes")

    assert outcome.code == 0, outcome.err
    assert left(folder) == ["1.2", "1.3", "1.5", "1.6", "1.7", "1.8"]
    assert "removed 3 of 3" in outcome.out
    assert others(folder) == OTHERS
    assert (folder.parent / "outside/kept").exists()


async def test_a_dry_run_shows_and_removes_nothing(
    daemon: Played, atlasctl: Call, folder: Path
) -> None:
    play(daemon)

    outcome = await atlasctl("prune", "--dry-run")
    assert outcome.code == 0
    assert "1.3" in outcome.out
    assert "1.4" not in outcome.out
    assert "nothing was removed" in outcome.out

    outcome = await atlasctl("prune", "--dry-run", "--json", "--keep", "8")
    answer = json.loads(outcome.out)
    assert (answer["removed"], answer["dry_run"], answer["bytes"] > 0) == (["1.0"], True, True)
    assert left(folder) == NAMES


async def test_without_a_terminal_nothing_is_removed_unless_it_is_confirmed(
    daemon: Played, atlasctl: Call, folder: Path
) -> None:
    play(daemon)

    outcome = await atlasctl("prune")

    assert outcome.code == 2
    assert "--yes" in outcome.err
    assert left(folder) == NAMES


async def test_releases_without_a_name_are_kept_by_version_link_and_state_file(
    daemon: Played, atlasctl: Call, folder: Path
) -> None:
    state = {"active_release": {"path": str(folder / "1.1")}}
    (folder.parent / "state/deploy_state.json").write_text(json.dumps(state))
    (folder / "current").symlink_to("1.2")
    green = slot("green", 8792, "staging", "warm", version="v1.3")
    play(daemon, versions=["v1.4"], slots=[green])

    outcome = await atlasctl("prune", "--keep", "0", "--yes")

    assert outcome.code == 0, outcome.err
    assert left(folder) == ["1.1", "1.2", "1.3", "1.4"]
    assert (folder / "current").is_symlink()


async def test_a_deploy_that_starts_meanwhile_keeps_its_release(
    daemon: Played, atlasctl: Call, folder: Path
) -> None:
    play(daemon)
    deploying = status(deploy_in_progress=True, last_deploy=record(release="1.1"))
    before = status()
    # One look at all of them, one at 1.1, and one after its rename: by then it is deployed.
    daemon.play("GET", "/deploy/status", before, before, deploying)

    outcome = await atlasctl("prune", "--keep", "7", "--yes")

    assert "1.1 is used by now: kept" in outcome.out
    assert left(folder) == NAMES[1:]
    assert (folder / "1.1/deep/file").exists()
    assert "removed 1 of 2" in outcome.out


async def test_a_removal_that_was_interrupted_is_finished(
    daemon: Played, atlasctl: Call, folder: Path
) -> None:
    (folder / ".0.9.pruned/deep").mkdir(parents=True)
    play(daemon)

    outcome = await atlasctl("prune", "--keep", "9", "--yes")

    assert outcome.code == 0
    assert not (folder / ".0.9.pruned").exists()
    assert left(folder) == NAMES


async def test_a_folder_that_can_not_be_removed_is_named(
    daemon: Played, atlasctl: Call, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", "deep")

    play(daemon)
    monkeypatch.setattr("shutil.rmtree", refused)

    outcome = await atlasctl("prune", "--yes")

    assert outcome.code == 1
    assert "deep can't be removed: Permission denied" in outcome.err


async def test_prune_needs_release_folders_and_a_daemon_on_this_machine(
    atlasctl: Call, call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await atlasctl("prune", "--yes")).code == 3
    assert left(folder) == NAMES
    assert (await call("prune", "--url", "http://127.0.0.1:1")).code == 2

    monkeypatch.setattr(prune, "checked_settings", lambda _file: {"RELEASES_DIR": ""})
    refused = await atlasctl("prune", "--yes")
    assert refused.code == 1
    assert "RELEASES_DIR is not set" in refused.err
