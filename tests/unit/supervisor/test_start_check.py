"""What a start would refuse, found without starting."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from atlas_supervisor.config import load_settings
from atlas_supervisor.main import main
from atlas_supervisor.start_check import CheckReport, refused_changes, report, shown

SECRET = "a-secret-that-is-not-shown"


def checked(folder: Path, **settings: object) -> CheckReport:
    env_file = folder / "atlas.env"
    lines = {"SMOKE_FILE": "", **settings}
    env_file.write_text("".join(f"{key}={value}\n" for key, value in lines.items()))
    return report(load_settings(env_file, {}))


def test_a_folder_without_faults_is_left_untouched(tmp_path: Path) -> None:
    found = checked(tmp_path, LLM_URL=f"http://user:{SECRET}@127.0.0.1:1/")

    assert found.faults == []
    assert found.version
    assert found.shown["PUBLIC_PORT"] == "8790"
    assert SECRET not in found.model_dump_json()
    assert [path.name for path in tmp_path.iterdir()] == ["atlas.env"]


def test_each_setting_that_differs_has_another_digest(tmp_path: Path) -> None:
    before = checked(tmp_path, LLM_URL="http://127.0.0.1:1/")
    after = checked(tmp_path, LLM_URL=f"http://user:{SECRET}@127.0.0.1:1/", CHANNEL="beta")

    changed = {key for key, value in before.digests.items() if after.digests[key] != value}
    assert changed == {"LLM_URL", "CHANNEL"}


def test_faults_in_the_state_folder_that_refuse_a_start_are_reported(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "control.token").write_text("short\n")
    (state / "control.token").chmod(0o640)
    (state / "logs").mkdir()
    (state / "logs" / "supervisor.jsonl").mkdir()
    with closing(sqlite3.connect(state / "atlas.db")) as database:
        database.execute("PRAGMA user_version = 9999")
        database.commit()

    faults = "\n".join(checked(tmp_path).faults)

    assert "control.token has 5 characters, a token at least 16" in faults
    assert "supervisor.jsonl can't be written: " in faults
    assert "atlas.db has schema version 9999 and this supervisor knows versions up to" in faults


def test_a_planted_file_is_a_fault(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "deploy_state.json").symlink_to("/etc/hostname")

    (fault,) = checked(tmp_path).faults

    assert "deploy_state.json is a link" in fault


def test_a_view_token_is_looked_at_like_the_token_and_not_made(tmp_path: Path) -> None:
    view = tmp_path / "view.token"
    assert checked(tmp_path, CONTROL_VIEW_TOKEN_FILE=view).faults == []
    assert not view.exists()

    view.write_text(SECRET)
    view.chmod(0o644)
    (fault,) = checked(tmp_path, CONTROL_VIEW_TOKEN_FILE=view).faults
    assert fault.startswith(f"CONTROL_VIEW_TOKEN_FILE: {view} is open to every user")

    token = tmp_path / "token"
    for path in (view, token):
        path.write_text(SECRET)
        path.chmod(0o600)
    settings = {"CONTROL_TOKEN_FILE": token, "CONTROL_VIEW_TOKEN_FILE": view}
    (fault,) = checked(tmp_path, **settings).faults
    assert "has the token of CONTROL_TOKEN_FILE" in fault
    assert SECRET not in fault


def test_a_password_for_etcd_that_others_may_know_or_that_is_none_is_a_fault(
    tmp_path: Path,
) -> None:
    password = tmp_path / "password"
    fleet = {"FLEET_ETCD_ENDPOINTS": "http://127.0.0.1:1", "FLEET_HOST": "web1"}
    settings = {**fleet, "FLEET_ETCD_USER": "atlas", "FLEET_ETCD_PASSWORD_FILE": password}
    password.write_text(f"{SECRET}\n")
    password.chmod(0o600)
    assert checked(tmp_path, **settings).faults == []
    password.chmod(0o604)
    (fault,) = checked(tmp_path, **settings).faults
    assert fault.startswith(f"FLEET_ETCD_PASSWORD_FILE: {password} is open to every user")
    assert SECRET not in fault
    password.chmod(0o600)
    password.write_text("\n")
    (fault,) = checked(tmp_path, **settings).faults
    assert fault == f"FLEET_ETCD_PASSWORD_FILE: {password} must have one line, the password"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_token_that_could_not_be_made_is_a_fault(tmp_path: Path) -> None:
    folder = tmp_path / "sealed"
    folder.mkdir(mode=0o500)

    (fault,) = checked(tmp_path, CONTROL_TOKEN_FILE=folder / "token").faults

    assert "CONTROL_TOKEN_FILE" in fault


def test_a_change_that_only_a_restart_can_make_is_named(tmp_path: Path) -> None:
    before = shown(load_settings(_env_file(tmp_path, ""), {}))
    after = shown(
        load_settings(
            _env_file(
                tmp_path,
                "PUBLIC_HOST=127.0.0.2\nPUBLIC_PORT=8795\nACTIVE_PORT=8796\nSTAGING_PORT=8797\n"
                "STATE_DIR=other\nWORKER_COMMAND=serve {port}\nRELAY_PROXY_PROTOCOL=true\n"
                "LOG_LEVEL=debug\n",
            ),
            {},
        )
    )

    lines = list(refused_changes(before, after))

    assert [line.split("=")[0].split(":")[0] for line in lines] == [
        *("PUBLIC_HOST", "PUBLIC_PORT", "ACTIVE_PORT", "STAGING_PORT", "STATE_DIR"),
        *("WORKER_COMMAND", "RELAY_PROXY_PROTOCOL"),
    ]
    assert "PUBLIC_PORT=8795: a reload can't change it; it is 8790" in lines
    assert list(refused_changes(before, before)) == []


def test_the_program_prints_the_report_as_one_line_and_faults_with_exit_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    env_file = _env_file(tmp_path, "PUBLIC_PORT=http\n")
    command = ["--check-start", "--env-file", str(env_file)]

    assert main(command) == 2
    bad = capsys.readouterr()
    _env_file(tmp_path, "")
    assert main(command) == 0
    good = capsys.readouterr()

    assert (bad.err, good.err) == ("", "")
    (fault,) = json.loads(bad.out)["faults"]
    assert fault.startswith("PUBLIC_PORT=http (line 2): accepted: ")
    assert json.loads(good.out)["faults"] == []


def _env_file(folder: Path, text: str) -> Path:
    path = folder / "atlas.env"
    path.write_text(f"SMOKE_FILE=\n{text}")
    return path
