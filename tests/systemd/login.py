"""A person who may use `sudo`, on a machine with what Debian has: the server's documents.

The packages that the daemon and an application need are in a folder of the machine, in place of an
index; and an environment of the daemon is at hand as `./scripts/start` makes it, which every job of
CI has it do and takes half a minute.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path

from tests.systemd.support import ROOT, Machine
from tests.terminal import PORTS, Terminal, copy_checkout, write_programs, write_python

USER = "ops"
HOME = Path("/home", USER)
INDEX = Path("/opt/index")
APPLICATION = ("fastapi", "uvicorn", "gunicorn", "pip")
PROGRAMS = ("atlas-supervisor", "atlasctl", "gunicorn")
STAMPS = {".made-packages": "requirements.lock", ".made-project": "pyproject.toml"}


class Login(Terminal):
    """A shell of the person on the machine; ports are those that the documents name."""

    def __init__(self, machine: Machine, where: str) -> None:
        self.home, self.where, self.ports = HOME, Path("/"), PORTS
        self.environment = {**self._common(HOME / "programs"), "USER": USER, "TERM": "dumb"}
        shell = f"cd {where} && exec bash"
        self.command = machine.inside("/sbin/runuser", "-u", USER, "--", "bash", "-c", shell)


def prepare(machine: Machine) -> None:
    """Make the person, a clone in their home, and what a package index would have."""
    machine.run("useradd", "--create-home", "--shell", "/bin/bash", USER)
    sudoers = machine.disk / "etc/sudoers.d/ops"
    sudoers.write_text(f"{USER} ALL=(ALL) NOPASSWD: ALL\n")
    sudoers.chmod(0o440)
    packages = machine.disk / "var/lib/dpkg"
    packages.mkdir()
    shutil.copy("/var/lib/dpkg/status", packages)
    for folder in ("etc/apt/sources.list.d", "var/lib/dpkg/info"):
        shutil.rmtree(machine.disk / folder, ignore_errors=True)
        (machine.disk / folder).mkdir()
    (machine.disk / "etc/apt/sources.list").write_text("")  # Debian's are not asked by a test

    copy_packages(machine.disk / INDEX.relative_to("/"))
    home = machine.disk / HOME.relative_to("/")
    python = str(Path(sys.executable).resolve())
    write_python(home / "programs", str(INDEX), python)
    copy_checkout(home / "atlas")
    commit = "git init -q . && git add . && git -c user.name=a -c user.email=a@b commit -qm first"
    subprocess.run(("sh", "-c", f"{commit} && git tag v1.0"), cwd=home / "atlas", check=True)
    make_environment(machine, HOME / "atlas")
    machine.run("chown", "-R", f"{USER}:{USER}", str(HOME))


def make_environment(machine: Machine, root: Path) -> None:
    """Make the daemon's environment of a checkout on the machine, as `scripts/_setup` leaves it."""
    checkout = machine.disk / root.relative_to("/")
    shutil.rmtree(checkout / ".venv", ignore_errors=True)
    python = Path(sys.executable).resolve()
    machine.run(str(python), "-m", "venv", "--without-pip", str(root / ".venv"))
    (packages,) = (checkout / ".venv/lib").glob("python*/site-packages")
    paths = (root / "supervisor", root / "worker", INDEX)
    (packages / "atlas.pth").write_text("".join(f"{path}\n" for path in paths))
    copy_distribution("atlas-supervisor", packages, only=".dist-info")
    write_programs(checkout / ".venv", root / ".venv", PROGRAMS)
    for stamp, file in STAMPS.items():
        made = f"# made for {root} with {python}\n"
        (checkout / ".venv" / stamp).write_text(made + (checkout / file).read_text())


def copy_packages(to: Path) -> None:
    """Copy the distributions that the daemon and an application need, with all their files."""
    lock = (ROOT / "requirements.lock").read_text()
    names = re.findall(r"^([\w.-]+)==", lock, flags=re.MULTILINE)
    for name in needed([*names, *APPLICATION]):
        copy_distribution(name, to)


def copy_distribution(name: str, to: Path, *, only: str = "") -> None:
    """Copy the files of an installed distribution whose path contains a text, with their times."""
    made = distribution(name)
    for file in made.files or ():
        source = Path(str(made.locate_file(file)))
        if ".." not in file.parts and only in str(file) and source.exists():
            (to / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, to / file)  # what was compiled of it stays valid


def needed(names: Iterable[str]) -> set[str]:
    """Return the names with those of what they require, without extras."""
    found: set[str] = set()
    left = list(names)
    while left:
        name = left.pop().lower().replace("_", "-")
        if name in found:
            continue
        found.add(name)
        for each in distribution(name).requires or ():
            requirement, _, marker = each.partition(";")
            if (
                "extra" not in marker
                and "python_version" not in marker
                and "platform" not in marker
            ):
                left.append(re.split(r"[^\w.-]", requirement, maxsplit=1)[0])
    return found
