from __future__ import annotations

import sys
from pathlib import Path

import pytest

from atlas_supervisor.errors import SettingsError
from atlas_supervisor.model.release import Release
from atlas_supervisor.workers.launch import worker_environment
from tests.unit.supervisor.workers.support import BLUE, make_settings

SECRETS = {
    "LISTEN_FDS": "3",
    "LISTEN_PID": "1",
    "LISTEN_FDNAMES": "control",
    "NOTIFY_SOCKET": "/run/systemd/notify",
    "WATCHDOG_USEC": "1",
    "CREDENTIALS_DIRECTORY": "/run/credentials",
    "AWS_SECRET_ACCESS_KEY": "x",
    "PYTHONPATH": "/somewhere",
    "CONTROL_TOKEN_FILE": "/token",
}


def made(folder: Path, environ: dict[str, str], **changes: object) -> dict[str, str]:
    return worker_environment(
        make_settings(folder, **changes),
        slot=BLUE,
        port=8791,
        instance="blue-1",
        release=Release(name=None, path=folder, version="v7"),
        environ=environ,
    )


def test_nothing_of_the_daemons_own_environment_leaks(tmp_path: Path) -> None:
    values = made(tmp_path, {**SECRETS, "PATH": "/bin", "HOME": "/root", "LC_ALL": "C"})
    assert not values.keys() & SECRETS.keys()
    assert values["HOME"] == "/root"
    assert values["LC_ALL"] == "C"


def test_the_contracts_variables_are_there(tmp_path: Path) -> None:
    values = made(tmp_path, {}, channel="beta", llm_model="small", memory_enabled=False)
    assert values["ATLAS_SLOT"] == "blue"
    assert values["ATLAS_PORT"] == "8791"
    assert values["ATLAS_INSTANCE"] == "blue-1"
    assert values["ATLAS_VERSION"] == "v7"
    assert values["ATLAS_CHANNEL"] == "beta"
    assert values["ATLAS_STATE_DIR"] == str(tmp_path / "state")
    assert values["ATLAS_SUPERVISOR_SOCKET"] == str(tmp_path / "state" / "supervisor.sock")
    assert values["LLM_MODEL"] == "small"
    assert values["LLM_API_KEY_FILE"] == ""
    assert values["SCHEDULER_ENABLED"] == "true"
    assert values["MEMORY_ENABLED"] == "false"


def test_the_releases_own_programs_come_first_and_then_the_daemons(tmp_path: Path) -> None:
    own = str(Path(sys.executable).parent)
    assert made(tmp_path, {"PATH": "/bin"})["PATH"] == f"{own}:/bin"
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    assert made(tmp_path, {"PATH": "/bin"})["PATH"] == f"{tmp_path}/.venv/bin:{own}:/bin"


def test_the_operators_file_is_read_anew_and_adds_to_the_rest(tmp_path: Path) -> None:
    extra = tmp_path / "worker.env"
    extra.write_text("SECRET=one\nHOME=/elsewhere\nPATH=/opt/bin\n")
    environ = {"HOME": "/root", "PATH": "/bin"}
    values = made(tmp_path, environ, worker_env_file=extra)
    assert values["SECRET"] == "one"
    assert values["HOME"] == "/elsewhere"
    assert values["PATH"].endswith(":/opt/bin")
    extra.write_text("SECRET=two\n")
    assert made(tmp_path, environ, worker_env_file=extra)["SECRET"] == "two"


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"LISTEN_FDS=1\n", b"A=1\nA=2\n"])
def test_an_operators_file_that_went_bad_is_refused(tmp_path: Path, content: bytes | None) -> None:
    extra = tmp_path / "worker.env"
    extra.write_bytes(b"SECRET=one\n")
    settings = make_settings(tmp_path, worker_env_file=extra)
    extra.unlink() if content is None else extra.write_bytes(content)
    release = Release(name=None, path=tmp_path, version="v7")
    with pytest.raises(SettingsError):
        worker_environment(settings, slot=BLUE, port=1, instance="i", release=release, environ={})
