"""`python -m atlas_supervisor --check`, mostly as a shell runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from atlas_supervisor.main import main

_CHECK = [sys.executable, "-m", "atlas_supervisor", "--check", "--env-file"]


@pytest.fixture
def env_file(tmp_path: Path) -> Path:
    path = tmp_path / "atlas.env"
    path.write_text("SMOKE_FILE=\n")
    return path


def test_a_reader_that_has_seen_enough_is_no_error(env_file: Path) -> None:
    read, write = os.pipe()
    os.close(read)  # as `head` does; here before the first line, so that nothing is left to chance
    try:
        done = subprocess.run(
            [*_CHECK, env_file], stdout=write, stderr=subprocess.PIPE, text=True, check=False
        )
    finally:
        os.close(write)
    assert done.returncode == 0
    assert "Error" not in done.stderr
    assert "Traceback" not in done.stderr


def test_check_prints_the_effective_settings_OK_and_warnings(env_file: Path) -> None:
    done = subprocess.run([*_CHECK, env_file], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "PUBLIC_PORT=8790\n" in done.stdout
    assert done.stdout.endswith("\nOK\n")
    assert "warning: SMOKE_FILE" in done.stderr


def test_bad_settings_are_printed_with_exit_status_2(
    env_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    env_file.write_text("PUBLC_PORT=1\n")
    assert main(["--check", "--env-file", str(env_file)]) == 2
    printed = capsys.readouterr()
    assert "PUBLC_PORT=*** (line 1): no such key" in printed.err
    assert "PUBLIC_PORT" in printed.err
    assert printed.out == ""


def test_a_missing_env_file_is_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"{tmp_path}/atlas.env: there is no such env file; ")
    assert "--env-file FILE" in said


def test_too_low_a_limit_of_open_files_is_refused_in_words(env_file: Path, tmp_path: Path) -> None:
    code = "import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (64, 64))"
    run = "import runpy; runpy.run_module('atlas_supervisor', run_name='__main__')"
    command = [sys.executable, "-c", f"{code}; {run}", "--env-file", str(env_file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("atlas-supervisor can't start: the limit of open files is 64 ")
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["atlas.env"]


def test_import_shortcuts_are_undone_before_the_daemon_runs() -> None:
    code = """
import gc, os, sys
import atlas_supervisor.__main__
with atlas_supervisor.__main__.without_rich():
    import atlas_supervisor.main

def run():
    print(any(name.startswith("rich") for name in sys.modules))
    import rich
    print(gc.isenabled(), gc.get_freeze_count() > 0)
    print(os.environ["SSL_CERT_FILE"], os.environ.get("SSL_CERT_DIR"))
    return 7

atlas_supervisor.main.main = run
sys.exit(atlas_supervisor.__main__.main())
"""
    environment = {"PATH": os.environ["PATH"], "SSL_CERT_FILE": "/the/machine's"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (7, "")
    assert done.stdout == "False\nTrue True\n/the/machine's None\n"
