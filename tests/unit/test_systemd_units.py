"""The shipped units, and their installer as far as it needs neither root nor a running systemd."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from pathlib import Path

import pytest

from scripts import systemd_installer
from scripts.systemd_unit import ROOT, TEMPLATE, UNIT, Service, argument, unit_text, word

OWN_USER = pwd.getpwuid(os.geteuid()).pw_name
analyzed = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="needs systemd-analyze"
)


def env_file(folder: Path, **settings: object) -> Path:
    """Write settings that are right, and these."""
    path = folder / "atlas.env"
    path.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
    return path


def service(folder: Path, **settings: object) -> Service:
    options = systemd_installer.parser().parse_args(
        ["--env-file", str(env_file(folder, **settings)), "--user", OWN_USER]
    )
    return systemd_installer.checked(options)


def values(text: str, key: str) -> list[str]:
    """Return the values of a key in a unit."""
    return [line.partition("=")[2] for line in text.splitlines() if line.startswith(f"{key}=")]


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ("systemd-analyze", "--no-pager", *arguments), capture_output=True, text=True, check=False
    )


def test_the_template_is_the_unit_with_the_application_s_name_in_it() -> None:
    one, many = ((ROOT / "scripts" / name).read_text() for name in (UNIT, TEMPLATE))
    own, other = (text[text.index("[Unit]") :] for text in (one, many))
    assert other == (
        own.replace("Description=ATLAS Supervisor", "Description=ATLAS Supervisor of %i")
        .replace("/etc/atlas/atlas.env", "/etc/atlas/%i.env")
        .replace("User=atlas", "User=atlas-%i")
        .replace("StateDirectory=atlas/atlas", "StateDirectory=atlas/%i")
    )


@analyzed
@pytest.mark.parametrize("name", [UNIT, TEMPLATE])
def test_the_shipped_units_expose_little(name: str) -> None:
    said = analyze("security", "--offline=true", str(ROOT / "scripts" / name)).stdout
    exposure = float(said.partition("Overall exposure level")[2].partition(": ")[2].split()[0])
    assert exposure <= 1.6


@analyzed
@pytest.mark.parametrize("folder", ["plain", 'a b%i\'s "$HOME" \\ c'])
def test_a_unit_that_is_installed_is_valid_whatever_the_paths_are(
    tmp_path: Path, folder: str
) -> None:
    place = tmp_path / folder
    place.mkdir()
    made = service(place, STATE_DIR="state")
    unit = tmp_path / UNIT
    unit.write_text(unit_text(made))
    checked = analyze("verify", "--man=no", str(unit))
    assert (checked.returncode, str(unit) in checked.stderr) == (0, False), checked.stderr
    assert "Unknown" not in checked.stderr
    assert f"--env-file {argument(made.env_file)}" in values(unit.read_text(), "ExecStart")[0]


@pytest.mark.parametrize(
    ("path", "quoted", "in_a_command"),
    [
        ("/srv/shop", "/srv/shop", "/srv/shop"),
        ("/srv/my shop", '"/srv/my shop"', '"/srv/my shop"'),
        ("/srv/100%", "/srv/100%%", "/srv/100%%"),
        ("/srv/$HOME", "/srv/$HOME", "/srv/$$HOME"),
        ('/srv/"a" \\', '"/srv/\\"a\\" \\\\"', '"/srv/\\"a\\" \\\\"'),
    ],
)
def test_a_path_is_one_word_of_a_unit(path: str, quoted: str, in_a_command: str) -> None:
    assert word(Path(path)) == quoted
    assert argument(Path(path)) == in_a_command


def test_state_below_var_lib_is_made_by_systemd_and_other_state_is_opened(tmp_path: Path) -> None:
    text = unit_text(service(tmp_path, STATE_DIR="/var/lib/shops/one"))
    assert values(text, "StateDirectory") == ([] if OWN_USER == "root" else ["shops/one"])
    text = unit_text(service(tmp_path, STATE_DIR="/srv/state"))
    assert values(text, "StateDirectory") == values(text, "StateDirectoryMode") == []
    assert values(text, "ReadWritePaths") == ["/srv/state"]


def test_folders_that_the_sandbox_would_hide_are_bound_into_it(tmp_path: Path) -> None:
    made = service(tmp_path, STATE_DIR="/home/bob/state", WORKER_COMMAND="/home/bob/v/bin/serve")
    text = unit_text(made)
    assert values(text, "ProtectHome") == ["tmpfs"]
    assert "/home/bob/state" in values(text, "BindReadOnlyPaths")
    assert "/home/bob/v" in values(text, "BindReadOnlyPaths")
    assert values(text, "BindPaths")[-1] == "/home/bob/state"


def test_a_port_below_1024_takes_one_capability(tmp_path: Path) -> None:
    text = unit_text(service(tmp_path, PUBLIC_PORT=80))
    bounding = values(text, "CapabilityBoundingSet")
    assert bounding[0].split()[-1] == "CAP_NET_BIND_SERVICE"
    if OWN_USER != "root":
        assert bounding == values(text, "AmbientCapabilities") == ["CAP_NET_BIND_SERVICE"]


def test_a_long_drain_makes_a_long_stop(tmp_path: Path) -> None:
    text = unit_text(service(tmp_path, DRAIN_TIMEOUT_SECONDS=300, STOP_SIGNAL="QUIT"))
    assert values(text, "TimeoutStopSec") == ["340"]
    assert values(text, "ExecStopPost")[0].endswith(" %t/%N 310 QUIT")


def install(*arguments: object) -> int:
    return systemd_installer.main([*map(str, arguments)])


def test_it_is_installed_once_and_a_unit_that_differs_is_shown_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    units = tmp_path / "units"
    units.mkdir()
    common = ("--env-file", env_file(tmp_path), "--user", OWN_USER, "--unit-dir", units)
    assert install(*common) == 0
    assert f"wrote {units / UNIT}" in capsys.readouterr().out
    assert install(*common) == 0
    assert f"unchanged: {units / UNIT}" in capsys.readouterr().out
    (units / UNIT).write_text((units / UNIT).read_text().replace("WatchdogSec=30", "WatchdogSec=9"))
    assert install(*common) == 1
    said = capsys.readouterr()
    assert "-WatchdogSec=9\n+WatchdogSec=30\n" in said.out
    assert "replace it with --force" in said.err
    assert "WatchdogSec=9" in (units / UNIT).read_text()
    assert install(*common, "--force") == 0
    assert "WatchdogSec=30" in (units / UNIT).read_text()


def test_print_shows_the_unit_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = env_file(tmp_path)
    assert install("--env-file", path, "--user", OWN_USER, "--name", "shop", "--print") == 0
    assert "\nDescription=ATLAS Supervisor of %i\n" in capsys.readouterr().out
    assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (("--user", "no-such-user"), 1, "there is no user no-such-user: make it with `useradd"),
        (("--env-file", "/no/such.env"), 1, "there is no /no/such.env: name the settings with"),
        (("--unit-dir", "/no/such"), 1, "--unit-dir /no/such: there is no such folder"),
        (("--writable", "/no/such"), 1, "--writable /no/such: there is no such folder"),
        (("--worker-user", "no-such-user"), 2, "WORKER_USER=no-such-user: accepted: a user"),
        (("--worker-user", "root"), 2, "WORKER_USER=root: accepted: a user other than root"),
    ],
)
def test_a_service_that_cannot_be_installed_is_refused_with_the_reason(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    code: int,
    why: str,
) -> None:
    path = env_file(tmp_path)
    common = ("--env-file", path, "--user", OWN_USER, "--unit-dir", tmp_path)
    assert install(*common, *arguments) == code
    assert why in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == [path]


def test_faults_of_the_settings_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert install("--env-file", env_file(tmp_path, PUBLIC_PROT=80), "--print") == 2
    assert "PUBLIC_PROT=*** (line 1): no such key" in capsys.readouterr().err


def test_a_machine_without_systemd_is_told_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systemd_installer, "RUNNING", tmp_path / "none")
    assert install("--env-file", env_file(tmp_path), "--user", OWN_USER) == 1
    assert "systemd does not run this machine" in capsys.readouterr().err


def test_a_name_that_is_no_word_of_a_unit_s_name_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit, match="2"):
        install("--name", "../shop", "--print")
    assert "letters, digits" in capsys.readouterr().err


def test_end_workers_is_for_systemd_alone() -> None:
    done = subprocess.run(
        (ROOT / "scripts/end-workers", "/no/such", "1", "TERM"),
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"]},
    )
    assert (done.returncode, "only systemd runs this" in done.stderr) == (2, True)
