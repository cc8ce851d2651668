"""What `./scripts/start` and `./scripts/test` install, and how they set up `.venv`.

The set-up runs with a real venv and pip, and with an index that is a folder. Only that pip is not
installed into each venv, which takes longer than all the rest: it is this environment's. The
README's test has it installed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pip
import pytest

ROOT = Path(__file__).parents[2]
PIP = Path(pip.__file__).parent
LOCKS = ("requirements.lock", "requirements-dev.lock")

SCREEN = ("atlas_supervisor.cli.top.app", "atlas_supervisor.cli.top.dialogs")
"""What alone imports Textual, which is an extra."""
COMMANDS = ("atlas_worker.app.server", "scripts.demonstration")
IMPORTED = f"""
import sys
before = {{*sys.modules}}  # what .pth files of installed packages import at every start
import importlib, json, pkgutil, atlas_supervisor, atlas_worker.app
for name in {COMMANDS}:
    importlib.import_module(name)
for package in (atlas_supervisor, atlas_worker.app):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if module.name not in {SCREEN}:
            importlib.import_module(module.name)
print(json.dumps(sorted({{name.partition(".")[0] for name in {{*sys.modules}} - before}})))
"""

BACKEND = """
import os, zipfile

def build_editable(folder, config_settings=None, metadata_directory=None):
    name = "project-1.0-py3-none-any.whl"
    metadata = "Metadata-Version: 2.1\\nName: project\\nVersion: 1.0\\n"
    with zipfile.ZipFile(os.path.join(folder, name), "w") as wheel:
        wheel.writestr("project-1.0.dist-info/METADATA", metadata)
        wheel.writestr("project-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nTag: py3-none-any\\n")
        wheel.writestr("project-1.0.dist-info/RECORD", "")
    return name
"""
PYTHON = """#!/usr/bin/env bash
set -e
if [ "$1 $2" != "-m venv" ]; then exec '{python}' "$@"; fi
'{python}' "$@" --without-pip
ln -s '{pip}' "${{@: -1}}"/lib/python*/site-packages
"""
PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""


def canonical(name: str) -> str:
    """Return a distribution's name as indexes compare it."""
    return re.sub("[-_.]+", "-", name).lower()


def locked(name: str) -> set[str]:
    """Return the names of the distributions in a lock file."""
    text = (ROOT / name).read_text()
    return {canonical(each) for each in re.findall(r"^([\w.-]+)==", text, flags=re.MULTILINE)}


@pytest.mark.parametrize("name", [*LOCKS, "requirements-peers.lock"])
def test_a_lock_file_pins_every_distribution_by_hash_and_names_no_index(name: str) -> None:
    entries = re.split(r"(?m)^(?=[^\s#])", (ROOT / name).read_text())[1:]
    assert len(entries) > 20
    for entry in entries:
        pin, *hashes = [line.strip().removesuffix(" \\") for line in entry.strip().splitlines()]
        assert re.fullmatch(r"[\w.-]+==[\w.]+( ; .+)?", pin), pin
        assert hashes, pin
        assert all(re.fullmatch("--hash=sha256:[0-9a-f]{64}", each) for each in hashes), pin


def test_the_second_lock_file_only_adds() -> None:
    assert not locked(LOCKS[0]) & locked(LOCKS[1])


def test_the_daemon_the_client_and_the_demo_import_only_what_start_installs() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    distributions = packages_distributions()
    imported = {
        canonical(name)
        for module in json.loads(done.stdout)
        for name in distributions.get(module, [])
    } - {"atlas-supervisor"}
    assert len(imported) > 15
    assert imported <= locked(LOCKS[0])


class Repository:
    """A folder with the set-up script, two lock files, and an index that has what they pin."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "a repository"
        self.index = folder / "an index"
        self.index.mkdir()
        (self.folder / "scripts").mkdir(parents=True)
        shutil.copy(ROOT / "scripts" / "_setup", self.folder / "scripts")
        (self.folder / "pyproject.toml").write_text(PROJECT)
        (self.folder / "backend.py").write_text(BACKEND)
        self.python = folder / "python"
        self.python.write_text(PYTHON.format(python=sys.executable, pip=PIP))
        self.python.chmod(0o755)
        self.lock("requirements.lock", self.wheel("setuptools") + self.wheel("needed"))
        self.lock("requirements-dev.lock", self.wheel("tool"))

    def wheel(self, name: str) -> str:
        """Put a wheel into the index, and return its entry in a lock file."""
        path = self.index / f"{name}-1.0-py3-none-any.whl"
        folder = f"{name}-1.0.dist-info"
        with zipfile.ZipFile(path, "w") as wheel:
            wheel.writestr(
                f"{folder}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
            )
            wheel.writestr(f"{folder}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            wheel.writestr(f"{folder}/RECORD", "")
        return (
            f"{name}==1.0 \\\n    --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"
        )

    def lock(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def start(self, *layer: str) -> subprocess.Popen[str]:
        """Begin what a command does first."""
        return subprocess.Popen(
            ["bash", "-c", 'source scripts/_setup; setup "$@"', "setup", *layer],
            cwd=self.folder,
            env={
                "PATH": os.environ["PATH"],
                "ATLAS_PYTHON": str(self.python),
                "PIP_CONFIG_FILE": os.devnull,
                "PIP_NO_INDEX": "1",
                "PIP_FIND_LINKS": self.index.as_uri(),  # pip splits it at spaces
            },
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *layer: str) -> tuple[int, str]:
        """Do what a command does first; returns its exit status and what it wrote."""
        process = self.start(*layer)
        _, wrote = process.communicate(timeout=90)
        return process.returncode, wrote

    def installed(self) -> set[str]:
        found = self.folder.glob(".venv/lib/python*/site-packages/*-1.0.dist-info")
        return {path.name.partition("-")[0] for path in found}


@pytest.mark.timeout(180)  # two environments are made: ten times as long on a busy machine
def test_the_environment_is_built_once_in_layers_and_anew_where_it_was_moved_or_linked(
    tmp_path: Path,
) -> None:
    repository = Repository(tmp_path)
    both = [repository.start(), repository.start()]
    wrote = [process.communicate(timeout=90)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], wrote
    assert "".join(wrote).count("making .venv") == 1, wrote
    daemon = {"setuptools", "needed", "project"}
    assert repository.installed() == daemon
    assert repository.run() == (0, "")

    lock = (repository.folder / "requirements-dev.lock").read_text()
    repository.lock("requirements-dev.lock", lock[:-5] + "0000\n")
    status, said = repository.run("dev")
    assert status == 1
    assert "DO NOT MATCH THE HASHES" in said
    assert "setup: pip failed" in said
    assert repository.run() == (0, "")  # what the daemon needs is still there

    repository.lock("requirements-dev.lock", lock)
    status, said = repository.run("dev")
    assert (status, "making .venv" in said) == (0, False), said
    assert repository.installed() == {*daemon, "tool"}
    assert repository.run("dev") == (0, "")

    theirs = (repository.folder / ".venv").rename(tmp_path / "theirs")
    (repository.folder / ".venv").symlink_to(theirs)
    repository.folder = repository.folder.rename(tmp_path / "elsewhere")
    repository.index.rename(tmp_path / "gone")
    status, said = repository.run()
    assert (status, "making .venv" in said, "pip failed" in said) == (1, True, True), said
    assert not list(repository.folder.glob(".venv/.made-*"))
    assert len(list(theirs.glob(".made-*"))) == 3, "the environment behind a link was changed"
