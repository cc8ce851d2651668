"""What another user of the machine has planted in STATE_DIR refuses the start, with a remedy.

Before, a planted token was taken, planted links were followed and truncated, and a FIFO hung the
start.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from atlas_supervisor.config import load_settings
from atlas_supervisor.errors import StartRefusedError
from atlas_supervisor.store.state_folder import insecure_parents, prepare, refuse_planted
from atlas_supervisor.workers.standalone import become_worker

OTHER = 65534
VICTIM = "precious\n"
FILES = (
    *("control.token", "supervisor.lock", "supervisor.sock", "deploy_state.json"),
    *("audit_head.json", "atlas.db", "atlas.db-wal", "atlas.db-shm"),
    *("logs/supervisor.jsonl", "logs/supervisor.jsonl.1", "logs/worker-blue.log"),
    *("logs/worker-green.log", "logs/worker-green.log.1"),
)
WRITTEN = ("supervisor.lock", "atlas.db", "atlas.db-wal", "logs/supervisor.jsonl")
FOLDERS = (".", "logs", "canary")
SET_ASIDE = {"deploy_state.json", "audit_head.json"}
SOCKET = "supervisor.sock"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A state folder as the daemon leaves it behind."""
    state = tmp_path / "state"
    for name in FOLDERS:
        (state / name).mkdir(mode=0o750, parents=True)
    for name in FILES:
        (state / name).touch(mode=0o640)
    (tmp_path / "victim").write_text(VICTIM)
    return state


def fault(folder: Path) -> str:
    """Return why the folder is refused; nothing in it may have been changed."""
    with pytest.raises(StartRefusedError) as raised:
        prepare(folder, folder / "control.token")
    assert str(raised.value).startswith(f"STATE_DIR={folder} can't be used: ")
    assert (folder.parent / "victim").read_text() == VICTIM
    return str(raised.value)


def test_a_folder_that_the_daemon_has_made_is_accepted(folder: Path) -> None:
    prepare(folder, folder / "control.token")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750


@pytest.mark.parametrize("name", FILES)
def test_a_link_in_place_of_a_file_is_refused_and_not_followed(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).symlink_to(folder.parent / "victim")
    assert f"{name} is a link" in fault(folder)


@pytest.mark.parametrize("name", ["logs", "canary"])
def test_a_link_in_place_of_a_folder_is_refused(folder: Path, name: str) -> None:
    (folder / name).rename(folder.parent / "elsewhere")
    (folder / name).symlink_to(folder.parent / "elsewhere")
    assert f"{name} is a link" in fault(folder)


@pytest.mark.parametrize("name", [each for each in FILES if each not in {*SET_ASIDE, SOCKET}])
def test_a_fifo_in_place_of_a_file_is_refused_at_once(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert f"{name}: it is not a regular file; remove it" in fault(folder)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_file_with_a_second_name_is_refused_before_it_is_written(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).hardlink_to(folder.parent / "victim")
    printed = fault(folder)
    assert "a hard link" in printed
    assert "mv " in printed


@pytest.mark.parametrize("name", [each for each in (*FILES, *FOLDERS) if each != SOCKET])
def test_a_file_that_every_user_may_write_is_refused_with_the_command_that_mends_it(
    folder: Path, name: str
) -> None:
    path = folder / name
    path.chmod(path.stat().st_mode | stat.S_IWOTH)
    assert f"{path} is writable by every user; chmod o-w '{path}'" in fault(folder)


def test_the_daemons_own_group_may_write_and_loses_that_at_the_start(folder: Path) -> None:
    folder.chmod(0o770)
    (folder / "logs").chmod(0o770)
    os.chown(folder, -1, os.getegid())
    prepare(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750


def test_a_link_of_our_own_may_lead_to_the_folder(folder: Path) -> None:
    link = folder.with_name("by-link")
    link.symlink_to(folder)
    prepare(link, link / "control.token")
    (folder / "supervisor.lock").chmod(0o666)
    assert "supervisor.lock is writable by every user" in fault(link)


def test_a_folder_above_that_every_user_may_write_is_warned_about(tmp_path: Path) -> None:
    open_folder = tmp_path / "open"
    (open_folder / "state").mkdir(parents=True)
    before = insecure_parents(open_folder / "state")
    open_folder.chmod(0o777)
    added = set(insecure_parents(open_folder / "state")) - set(before)
    assert len(added) == 1
    assert f"the folder {open_folder} is writable by every user" in added.pop()
    open_folder.chmod(0o1777)  # as /tmp, where only an owner may rename
    assert insecure_parents(open_folder / "state") == before


@pytest.mark.needs_root
@pytest.mark.parametrize("name", [*FILES, *FOLDERS])
def test_a_file_of_another_user_is_refused_for_root_too(folder: Path, name: str) -> None:
    os.chown(folder / name, OTHER, OTHER)
    printed = fault(folder)
    assert f"belongs to uid {OTHER}" in printed
    assert f"chown -R {os.geteuid()} " in printed


@pytest.mark.needs_root
def test_a_group_that_is_not_the_daemons_may_not_write(folder: Path) -> None:
    os.chown(folder, -1, OTHER)
    folder.chmod(0o750)
    prepare(folder)
    folder.chmod(0o770)
    assert f"is writable by the group {OTHER}, which is not ours; chmod g-w" in fault(folder)


@pytest.mark.needs_root
def test_a_folder_of_root_is_trusted_by_a_daemon_of_another_user(folder: Path) -> None:
    folder.chmod(0o755)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.chdir(folder)  # the folders above are closed to it
            os.setresuid(OTHER, OTHER, OTHER)
            refuse_planted(Path())
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.needs_root
def test_the_plain_worker_does_not_run_what_another_users_state_file_names(
    folder: Path,
) -> None:
    os.chown(folder / "deploy_state.json", OTHER, OTHER)
    env_file = folder.parent / "atlas.env"
    env_file.write_text(f"STATE_DIR={folder}\nSMOKE_FILE=\n")
    with pytest.raises(StartRefusedError, match=f"belongs to uid {OTHER}"):
        become_worker(load_settings(env_file, {}), {})
