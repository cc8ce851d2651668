"""Checks of one installation, without a daemon. With one: tests/integration/test_doctor.py."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from atlas_supervisor.doctor.__main__ import examine
from atlas_supervisor.doctor.finding import Finding, Level
from tests.harness import free_ports

KEYS = ("PUBLIC_PORT", "ACTIVE_PORT", "STAGING_PORT", "CONTROL_PORT")


@pytest.fixture
def env_file(tmp_path: Path) -> Path:
    lines = [f"{key}={port}" for key, port in zip(KEYS, free_ports(4), strict=True)]
    path = tmp_path / "atlas.env"
    path.write_text("\n".join(["SMOKE_FILE=", *lines, ""]))
    return path


def add(env_file: Path, line: str) -> None:
    with env_file.open("a") as file:
        file.write(f"{line}\n")


def found(env_file: Path, check: str) -> list[Finding]:
    return [each for each in examine(env_file).findings if each.check == check]


def make_kit(folder: Path, version: str) -> None:
    """Make an environment with a distribution of this version, or with none."""
    packages = folder / ".venv/lib/python3.11/site-packages"
    packages.mkdir(parents=True)
    if version:
        (packages / f"atlas_supervisor-{version}.dist-info").mkdir()
        metadata = packages / f"atlas_supervisor-{version}.dist-info/METADATA"
        metadata.write_text(f"Metadata-Version: 2.1\nName: atlas-supervisor\nVersion: {version}\n")


def test_a_folder_that_is_well_has_no_failure_and_is_left_untouched(env_file: Path) -> None:
    report = examine(env_file)

    assert [each for each in report.findings if each.status is Level.FAIL] == []
    assert all(each.mend for each in report.findings if each.status is not Level.OK)
    checks = {each.check for each in report.findings}
    assert checks >= {"settings", "daemon", "permissions", "disk", "ports", "worker", "kit"}
    assert [path.name for path in env_file.parent.iterdir()] == ["atlas.env"]


def test_without_an_env_file_the_machine_is_checked_all_the_same() -> None:
    checks = [each.check for each in examine(None).findings]

    assert checks[0] == "settings"
    assert "steering" in checks


def test_each_fault_of_the_settings_fails_and_the_machine_is_checked_all_the_same(
    env_file: Path,
) -> None:
    add(env_file, "GARD_SECONDS=3")
    add(env_file, "HEALTH_PROBES=none")

    report = examine(env_file)

    faults = [each for each in report.findings if each.status is Level.FAIL]
    assert [each.check for each in faults] == ["settings", "settings"]
    assert "GUARD_SECONDS" in faults[1].message or "GUARD_SECONDS" in faults[0].message
    assert any(each.check == "steering" for each in report.findings)


def test_a_port_of_another_program_fails_with_its_process(env_file: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        text = env_file.read_text().splitlines()
        lines = [line for line in text if not line.startswith("ACTIVE_PORT")]
        env_file.write_text("\n".join([*lines, f"ACTIVE_PORT={port}", ""]))
        ports = found(env_file, "ports")

    assert [each.status for each in ports].count(Level.FAIL) == 1
    failed = next(each for each in ports if each.status is Level.FAIL)
    assert f"ACTIVE_PORT={port} is taken: pid {os.getpid()} (" in failed.message
    assert failed.mend == "Stop that program, or set another ACTIVE_PORT."


def test_a_token_that_others_may_read_fails_with_what_mends_it(env_file: Path) -> None:
    state = env_file.parent / "state"
    state.mkdir(mode=0o750)
    (state / "control.token").write_text("a-token-that-is-long-enough\n")
    (state / "control.token").chmod(0o644)

    (failed,) = (each for each in found(env_file, "permissions") if each.status is Level.FAIL)

    assert "is open to every user" in failed.message
    assert "remove it, and a new one is created" in str(failed.mend)


@pytest.mark.needs_root
def test_root_looks_at_a_state_folder_as_its_owner_does(env_file: Path) -> None:
    state = env_file.parent / "state"
    state.mkdir(mode=0o750)
    os.chown(state, 65534, 65534)
    env_file.parent.chmod(0o700)

    (closed,) = found(env_file, "permissions")
    for folder in (env_file.parent, *env_file.parent.parents):
        if folder.name.startswith(("pytest-", "process", "test_")):
            folder.chmod(0o755)
    opened = found(env_file, "permissions")

    assert closed.status is Level.FAIL
    assert "Permission denied" in closed.message
    assert not [each for each in opened if each.status is Level.FAIL], opened


@pytest.mark.needs_root
def test_a_state_folder_of_another_user_is_to_be_looked_at_by_root(
    env_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (env_file.parent / "state").mkdir(mode=0o700)
    for folder in (env_file.parent, *env_file.parent.parents):
        if folder.name.startswith(("pytest-", "process", "test_")):
            folder.chmod(0o755)
    monkeypatch.setattr("atlas_supervisor.doctor.__main__.machine", lambda _pid: [])
    os.seteuid(65534)
    try:
        (closed,) = found(env_file, "settings")
    finally:
        os.seteuid(0)

    assert closed.status is Level.FAIL
    assert f"sudo atlasctl doctor --env-file {env_file}" in str(closed.mend)


@pytest.mark.parametrize(
    ("command", "program"),
    [
        ("no-such-server --fd {fd}", "no-such-server"),
        ("env A=b no-such-server", "no-such-server"),
        ("A=b python app.py", "A=b"),
    ],
)
def test_a_worker_whose_program_is_missing_fails(
    env_file: Path, command: str, program: str
) -> None:
    add(env_file, f"WORKER_COMMAND={command}")

    (failed,) = found(env_file, "worker")

    assert failed.status is Level.FAIL
    assert f"{program} of WORKER_COMMAND" in failed.message


def test_a_start_script_without_its_folder_in_the_command_is_named_with_it(env_file: Path) -> None:
    (env_file.parent / "run.sh").touch()
    add(env_file, "WORKER_COMMAND=run.sh {fd}")
    (failed,) = found(env_file, "worker")
    assert (failed.status, failed.mend) == (
        Level.FAIL,
        "Write ./run.sh, and see that it is executable (chmod +x).",
    )


@pytest.mark.parametrize(
    ("version", "level", "says"),
    [
        ("", Level.FAIL, "does not have it"),
        ("0.0.1", Level.WARN, "0.0.1 in "),
        (None, Level.OK, "has no .venv"),
    ],
)
def test_the_kit_in_the_workers_own_environment_is_compared_with_the_daemons(
    env_file: Path, version: str | None, level: Level, says: str
) -> None:
    if version is not None:
        make_kit(env_file.parent, version)

    (finding,) = found(env_file, "kit")

    assert finding.status is level
    assert says in finding.message


def test_variables_of_the_shell_that_win_over_the_file_are_named(
    env_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHANNEL", "beta")

    messages = [each.message for each in found(env_file, "settings")]

    assert "the environment of this shell wins over the file: CHANNEL" in messages
