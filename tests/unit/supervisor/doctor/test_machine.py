"""Checks of the machine, each on a machine that is well and on one that is not."""

from __future__ import annotations

import resource
from datetime import UTC, datetime
from pathlib import Path

import pytest

from atlas_supervisor.doctor import machine
from atlas_supervisor.doctor.finding import Level, fail, ok, report, warn
from atlas_supervisor.system import clock


def test_the_report_is_as_bad_as_its_worst_finding() -> None:
    assert report([]).status is Level.OK
    assert report([ok("a", ""), warn("b", "", "")]).status is Level.WARN
    assert report([warn("b", "", ""), fail("c", "", ""), ok("a", "")]).status is Level.FAIL


def test_a_kernel_that_does_not_steer_fails_with_the_relay_as_its_mend(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert machine.steering().status is Level.OK

    def refused() -> None:
        raise OSError("the kernel accepts the steering program and ignores it")

    monkeypatch.setattr(machine, "prove_steering", refused)
    found = machine.steering()

    assert found.status is Level.FAIL
    assert "{port}" in str(found.mend)


@pytest.mark.parametrize(("most", "level"), [("4096", Level.OK), ("128", Level.WARN)])
def test_a_short_queue_of_the_kernel_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: str, level: Level
) -> None:
    (tmp_path / "somaxconn").write_text(f"{most}\n")
    monkeypatch.setattr(machine, "_SOMAXCONN", tmp_path / "somaxconn")

    found = machine.somaxconn()

    assert found.status is level
    assert found.mend in {None, "sysctl -w net.core.somaxconn=4096"}


@pytest.mark.parametrize(("hard", "level"), [(64, Level.FAIL), (512, Level.WARN), (1024, Level.OK)])
def test_the_limit_of_open_files_is_that_of_a_start(
    monkeypatch: pytest.MonkeyPatch, hard: int, level: Level
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _limit: (64, hard))

    assert machine.open_files(None).status is level


def test_a_year_that_can_not_be_right_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.clock_of_machine().status in {Level.OK, Level.WARN}
    monkeypatch.setattr(clock, "now", lambda: datetime(1970, 1, 1, tzinfo=UTC))

    found = machine.clock_of_machine()

    assert found.status is Level.FAIL
    assert "1970-01-01" in found.message


FAILED_AND_INACTIVE = (
    r"Id=atlas-supervisor@a.service\nActiveState=failed\nMainPID=0\n\n"
    r"Id=b.service\nActiveState=inactive\nMainPID=0\n"
)
SYSTEMCTL = """\
#!/bin/sh
case "$1" in
--version) echo 'systemd {version} ({version}.1)' ;;
show) printf '{shown}' ;;
list-unit-files) printf '{installed}' ;;
esac
"""


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ((252, "", ""), ["ok", "ok none is installed"]),
        ((240, "", ""), ["warn version 240; the unit needs 249", "ok none is installed"]),
        (
            (252, r"Id=atlas-supervisor.service\nActiveState=active\nMainPID=7\n", ""),
            ["ok", "ok atlas-supervisor.service is active; it runs this daemon"],
        ),
        (
            (252, FAILED_AND_INACTIVE, ""),
            ["ok", "fail atlas-supervisor@a.service", "ok b.service is inactive"],
        ),
        (
            (252, "", r"atlas-supervisor.service disabled enabled\n"),
            ["ok", "warn atlas-supervisor.service is installed, and does not run"],
        ),
    ],
)
def test_units_are_reported_as_systemd_knows_them(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: tuple[int, str, str],
    expected: list[str],
) -> None:
    version, shown, installed = said
    program = tmp_path / "systemctl"
    program.write_text(SYSTEMCTL.format(version=version, shown=shown, installed=installed))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(machine, "_BOOTED", tmp_path)

    found = [f"{each.status} {each.message}" for each in machine.systemd(7)]

    assert len(found) == len(expected)
    for line, beginning in zip(found, expected, strict=True):
        assert line.startswith(beginning)
