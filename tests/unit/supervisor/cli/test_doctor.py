"""`atlasctl doctor`: it shows the findings of a real look, and its exit status is for scripts."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.harness import free_ports
from tests.unit.supervisor.cli.support import Call


def write_settings(folder: Path, *lines: str) -> Path:
    keys = ("PUBLIC_PORT", "ACTIVE_PORT", "STAGING_PORT", "CONTROL_PORT")
    ports = [f"{key}={port}" for key, port in zip(keys, free_ports(4), strict=True)]
    path = folder / "atlas.env"
    path.write_text("\n".join(["SMOKE_FILE=", *ports, *lines, ""]))
    return path


async def test_findings_are_shown_with_what_mends_them(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    findings = [
        {"check": "git", "status": "ok", "message": "2.39\x1b[2J", "mend": None},
        {"check": "clock", "status": "warn", "message": "it may be off", "mend": "set it"},
    ]
    printed = json.dumps({"status": "warn", "findings": findings})
    done = subprocess.CompletedProcess([], 0, printed, "")
    monkeypatch.setattr("atlas_supervisor.cli.doctor.run_program", lambda *_: done)

    outcome = await call("doctor", "--env-file", write_settings(tmp_path))

    assert outcome.code == 0
    assert outcome.out.splitlines() == [
        r"✓ git    2.39\x1b[2J",
        "! clock  it may be off",
        "         mend: set it",
        "",
        "! 1 warning",
    ]


async def test_a_failure_is_exit_1_also_as_json(call: Call, tmp_path: Path) -> None:
    env_file = write_settings(tmp_path, "WORKER_COMMAND=no-such-server")

    outcome = await call("--json", "doctor", "--env-file", env_file)

    assert outcome.code == 1
    report = json.loads(outcome.out)
    assert report["status"] == "fail"
    assert "worker" in [each["check"] for each in report["findings"] if each["status"] == "fail"]


async def test_a_daemon_on_another_machine_can_not_be_examined(call: Call) -> None:
    outcome = await call("doctor", env={"ATLAS_ENV_FILE": "/no/such/file"})
    assert outcome.code == 2

    outcome = await call("--url", "http://127.0.0.1:1", "doctor")
    assert outcome.code == 2
    assert "looks at this machine" in outcome.err
