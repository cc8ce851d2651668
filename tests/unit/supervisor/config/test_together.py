from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from atlas_supervisor.config import (
    Settings,
    load_settings,
    load_worker_env,
    warnings,
)
from tests.unit.supervisor.config.support import TLS, Faults, Load, write


def test_two_ports_alike_are_refused_with_both_keys(faults: Faults) -> None:
    assert faults("STAGING_PORT=9000\nCONTROL_PORT=9000") == [
        "STAGING_PORT=9000 and CONTROL_PORT=9000: accepted: a port of its own for each"
    ]


def test_a_port_alike_to_a_default_is_refused(faults: Faults) -> None:
    (fault,) = faults("PUBLIC_PORT=8791")
    assert "ACTIVE_PORT=8791 and PUBLIC_PORT=8791" in fault


def test_ports_that_are_turned_off_may_be_alike(load: Load) -> None:
    settings = load("PUBLIC_PORT=0\nCONTROL_PORT=0")
    assert settings.public_port == settings.control_port == 0


def test_a_bad_port_is_not_taken_for_its_default(faults: Faults) -> None:
    (fault,) = faults("ACTIVE_PORT=x\nSTAGING_PORT=8791")
    assert fault.startswith("ACTIVE_PORT=x")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_control_off_loopback_needs_tls(
    faults: Faults, load: Load, pair: tuple[Path, Path], host: str
) -> None:
    assert pair[0].exists()
    (fault,) = faults(f"CONTROL_HOST={host}")
    assert fault.startswith(f"CONTROL_HOST={host}: accepted: a loopback address")
    assert str(load(f"CONTROL_HOST={host}\n{TLS}").control_host) == host


@pytest.mark.usefixtures("pair")
@pytest.mark.parametrize("line", TLS.split())
def test_a_certificate_and_its_key_come_together(faults: Faults, line: str) -> None:
    (fault,) = faults(line)
    assert "accepted: both or neither" in fault


def test_a_file_that_is_no_certificate_is_refused(faults: Faults, pair: tuple[Path, Path]) -> None:
    pair[0].write_text("no certificate")
    (fault,) = faults(TLS)
    assert fault.startswith("CONTROL_TLS_CERT=")
    pair[0].unlink()
    (fault,) = faults(TLS)
    assert "No such file" in fault


def test_a_key_with_a_password_is_refused_without_asking_for_it(
    faults: Faults, pair: tuple[Path, Path]
) -> None:
    command = ["openssl", "ec", "-in", str(pair[1]), "-aes256", "-passout", "pass:hunter2"]
    subprocess.run([*command, "-out", str(pair[1])], check=True, capture_output=True)
    (fault,) = faults(TLS)
    assert "CONTROL_TLS_KEY" in fault


def test_smoke_tests_are_not_needed_unless_they_were_asked_for(
    load: Load, faults: Faults, tmp_path: Path
) -> None:
    assert load().smoke_file is None
    (fault,) = faults("SMOKE_FILE=smoke.toml")
    assert fault.startswith(f"SMOKE_FILE={tmp_path}/smoke.toml: No such file")


def test_the_default_smoke_file_is_used_if_it_is_there(load: Load, tmp_path: Path) -> None:
    (tmp_path / "smoke.toml").touch()
    assert load().smoke_file == tmp_path / "smoke.toml"


def test_faults_of_the_smoke_file_are_reported_with_the_others(
    faults: Faults, tmp_path: Path
) -> None:
    (tmp_path / "smoke.toml").write_text("[[http]]\nname = 'a'\npath = 'no'\nstatus = 1")
    found = faults("ACTIVE_PORT=x")
    assert len(found) == 3
    assert sum(fault.startswith("SMOKE_FILE=") for fault in found) == 2


def test_the_worker_environment_is_read_literally(tmp_path: Path) -> None:
    path = tmp_path / "worker.env"
    path.write_text("export A='x y'\nB=${A}\nC=\n")
    assert load_worker_env(path) == {"A": "x y", "B": "${A}", "C": ""}


@pytest.mark.parametrize(
    "line",
    [
        "ATLAS_SLOT=hunter2",
        "LISTEN_FDS=hunter2",
        "NOTIFY_SOCKET=hunter2",
        "hunter2",
        "A.B=hunter2",
        "OK=hunter2\nOK=hunter2",
        'A="hunter2\0"',
    ],
)
def test_a_bad_line_in_the_worker_environment_is_refused_without_its_value(
    faults: Faults, tmp_path: Path, line: str
) -> None:
    (tmp_path / "worker.env").write_text(f"# mine\n{line}\n")
    (fault,) = faults("WORKER_ENV_FILE=worker.env")
    assert fault.startswith(f"WORKER_ENV_FILE={tmp_path}/worker.env line ")
    assert "hunter2" not in fault


@pytest.mark.parametrize("key", ["WORKER_DIRECTORY", "RELEASES_DIR"])
def test_a_missing_folder_of_releases_is_a_fault_unless_a_recorded_release_can_start(
    tmp_path: Path, faults: Faults, key: str
) -> None:
    (fault,) = faults(f"{key}=gone")
    assert fault.startswith(f"{key}=gone (line 1): accepted: a folder that exists")
    env_file = write(tmp_path, f"{key}=gone")
    settings = load_settings(env_file, {}, lambda _: False)
    assert f"{key}={tmp_path / 'gone'} does not exist" in warnings(settings)[0]
    load_settings(write(tmp_path, ""), {}, not_asked)


def not_asked(_settings: Settings) -> bool:
    raise AssertionError("the record is looked at only if a folder is missing")


FLEET = "FLEET_HOST=a\nFLEET_ETCD_ENDPOINTS=https://a.example:2379\n"


@pytest.mark.parametrize("key", ["FLEETLOCK_PORT", "FLEET_AGENT_PORT"])
def test_a_port_of_the_fleet_is_alike_to_no_other(faults: Faults, key: str) -> None:
    (fault,) = faults(f"{FLEET}{key}=8793")
    assert fault.startswith(f"CONTROL_PORT=8793 and {key}=8793: accepted: a port of its own")


@pytest.mark.parametrize("key", ["FLEET_ETCD_CERT", "FLEET_ETCD_KEY", "FLEET_ETCD_PASSWORD_FILE"])
def test_half_of_a_pair_for_etcd_is_refused(
    faults: Faults, pair: tuple[Path, Path], key: str
) -> None:
    (fault,) = faults(f"{FLEET}{key}={pair[0]}")
    assert fault.startswith(f"{key}={pair[0]}: without ")
    assert "accepted: both or neither" in fault


def test_a_file_without_an_authority_is_refused(faults: Faults, pair: tuple[Path, Path]) -> None:
    (fault,) = faults(f"{FLEET}FLEET_ETCD_CA={pair[1]}")
    assert fault.startswith(f"FLEET_ETCD_CA={pair[1]}: ")
    assert "accepted: certificates of authorities in PEM" in fault


@pytest.mark.parametrize("name", ["localhost", "localhost.localdomain", "no name"])
def test_a_machine_without_a_name_of_its_own_needs_one_in_the_fleet(
    faults: Faults, load: Load, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("atlas_supervisor.config.settings.gethostname", lambda: name)
    endpoints = "FLEET_ETCD_ENDPOINTS=https://a.example:2379"
    (fault,) = faults(endpoints)
    assert fault.startswith("FLEET_HOST=: accepted: a name that no other machine of the fleet has")
    assert load(f"{endpoints}\nFLEET_HOST=web-1").host_in_fleet == "web-1"


def test_a_fleet_without_encryption_beyond_this_machine_is_warned_about(load: Load) -> None:
    near, far = (f"FLEET_HOST=a\nFLEET_ETCD_ENDPOINTS=http://{host}:1" for host in ("[::1]", "b"))
    assert not [line for line in warnings(load(near)) if "FLEET" in line]
    (line,) = [line for line in warnings(load(far)) if "FLEET" in line]
    assert "is sent unencrypted" in line


def test_settings_of_a_fleet_that_is_off_are_warned_about(load: Load) -> None:
    (line,) = [line for line in warnings(load("FLEET_HOST=a")) if "FLEET" in line]
    assert line.startswith("FLEET_HOST has no effect: FLEET_ETCD_ENDPOINTS is empty")
