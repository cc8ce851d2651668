"""Installs the daemon as a systemd service, says what it does, and does nothing twice."""

from __future__ import annotations

import argparse
import difflib
import os
import pwd
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from atlas_supervisor.config import load_settings, warnings
from atlas_supervisor.errors import SettingsError
from atlas_supervisor.workers.standalone import nothing_recorded
from scripts.systemd_unit import ROOT, Service, is_hidden, unit_text

SYSTEM_UNITS = Path("/etc/systemd/system")
RUNNING = Path("/run/systemd/system")
"""There only where systemd runs the machine: sd_booted(3)."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
START_SECONDS = 60.0
REFUSED, WRONG_USAGE = 1, 2


class InstallError(Exception):
    """It can't be installed; the text says why, and what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        install(options)
    except InstallError as error:
        print(f"install-systemd: {error}", file=sys.stderr)
        return REFUSED
    except SettingsError as error:
        for fault in error.faults:
            print(fault, file=sys.stderr)
        print(f"install-systemd: {env_file_of(options)} is refused, see above", file=sys.stderr)
        return WRONG_USAGE
    return 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="install-systemd", description=__doc__)
    made.add_argument("--name", type=name, help="the application, where there are several")
    made.add_argument(
        "--user", help="the daemon's user (default: atlas, or atlas-NAME; it is made if missing)"
    )
    made.add_argument(
        "--worker-user", help="run the daemon as root and its workers as this user (WORKER_USER)"
    )
    made.add_argument(
        "--env-file", type=Path, help="the settings (default: atlas.env here, /etc/atlas/NAME.env)"
    )
    made.add_argument(
        "--writable",
        action="append",
        default=[],
        type=Path,
        metavar="FOLDER",
        help="a folder that the application writes to; may be repeated",
    )
    made.add_argument("--unit-dir", type=Path, default=SYSTEM_UNITS, metavar="DIR")
    made.add_argument("--print", action="store_true", help="print the unit and change nothing")
    made.add_argument("--force", action="store_true", help="replace a unit that differs")
    made.add_argument("--now", action="store_true", help="enable the service, and start it")
    return made


def name(text: str) -> str:
    if not NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r}: letters, digits, '_', '.' and '-' only")
    return text


def env_file_of(options: argparse.Namespace) -> Path:
    given: Path | None = options.env_file
    default = ROOT / "atlas.env" if options.name is None else Path(f"/etc/atlas/{options.name}.env")
    return Path(os.path.abspath(given or default))  # noqa: PTH100 - its links stay


def install(options: argparse.Namespace) -> None:
    service = checked(options)
    text = unit_text(service)
    if options.print:
        print(text, end="")
        return
    refuse_early(options, service, text)
    prepare_user(service)
    refuse_unreadable(service)
    set_worker_user(options, service.env_file)
    prepare_state(service)
    changed = write_unit(options.unit_dir / service.unit, text)
    if RUNNING.is_dir() and changed:
        systemctl("daemon-reload")
    for warning in warnings(service.settings):
        print(f"warning: {warning}")
    if options.now:
        start(service, changed=changed)
    else:
        print(f"next: systemctl enable --now {service.unit}")


# What is refused, before anything is changed.


def checked(options: argparse.Namespace) -> Service:
    """Return the service to install. Raises InstallError and SettingsError."""
    env_file = env_file_of(options)
    if not env_file.is_file():
        raise InstallError(f"there is no {env_file}: name the settings with --env-file FILE")
    # As the service will read them: without the variables of this shell.
    given = {"WORKER_USER": options.worker_user} if options.worker_user else {}
    settings = load_settings(env_file, given, nothing_recorded)
    workers = settings.worker_user
    user = options.user or ("root" if workers else default_user(options))
    if workers and user_id(user) != 0:
        raise InstallError(
            f"WORKER_USER={workers} needs a daemon that root runs: --user root, not {user}"
        )
    if options.user and user_id(options.user) is None:
        raise InstallError(
            f"there is no user {options.user}: make it with `useradd --system {options.user}`"
        )
    writable = tuple(Path(os.path.abspath(each)) for each in options.writable)  # noqa: PTH100
    for folder in writable:
        if not folder.is_dir():
            raise InstallError(f"--writable {folder}: there is no such folder")
    return Service(options.name, user, env_file, settings, writable)


def default_user(options: argparse.Namespace) -> str:
    return "atlas" if options.name is None else f"atlas-{options.name}"


def user_id(user: str) -> int | None:
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        return None


def refuse_early(options: argparse.Namespace, service: Service, text: str) -> None:
    own = options.unit_dir == SYSTEM_UNITS
    if (own or options.now) and not RUNNING.is_dir():
        raise InstallError(
            f"systemd does not run this machine ({RUNNING} is missing); --print shows the unit, "
            "--unit-dir DIR writes it somewhere else"
        )
    if own and os.geteuid() != 0:
        raise InstallError("installing a service needs root: use sudo, or see it with --print")
    if not options.unit_dir.is_dir():
        raise InstallError(f"--unit-dir {options.unit_dir}: there is no such folder")
    if options.now and options.unit_dir.resolve() not in searched():
        raise InstallError(f"--now: systemd does not look for units in {options.unit_dir}")
    unit = options.unit_dir / service.unit
    if unit.exists() and not options.force and (before := unit.read_text()) != text:
        sys.stdout.writelines(
            difflib.unified_diff(
                before.splitlines(keepends=True),
                text.splitlines(keepends=True),
                str(unit),
                "what would be installed",
            )
        )
        raise InstallError(
            f"{unit} differs, see above: replace it with --force. Changes of your own belong into "
            f"a drop-in (systemctl edit {service.unit}), which is never touched"
        )


def searched() -> set[Path]:
    """Return the folders that systemd reads units from."""
    found = systemctl("show", "--property=UnitPath", "--value")
    return {Path(folder).resolve() for folder in found.split()}


# What is done.


def prepare_user(service: Service) -> None:
    if user_id(service.user) is not None:
        return
    shell = next(
        (path for path in ("/usr/sbin/nologin", "/sbin/nologin") if Path(path).exists()), ""
    )
    run(
        "useradd",
        *("--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent"),
        *(("--shell", shell) if shell else ()),
        service.user,
    )
    print(f"made the user {service.user}")


def refuse_unreadable(service: Service) -> None:
    """Raise InstallError for what the service's user can't read, as its own start would find."""
    user = pwd.getpwnam(service.user)
    if os.geteuid() != 0 or user.pw_uid == 0:
        return
    groups = os.getgrouplist(user.pw_name, user.pw_gid)
    settings = service.settings
    for path in (ROOT / "supervisor", service.env_file, settings.worker_directory):
        # A folder that is bound into the sandbox is reached without the folders above it.
        folder, name = (path, ".") if path.is_dir() else (path.parent, path.name)
        found = subprocess.run(
            ("test", "-r", name if is_hidden(path) else path),
            cwd=folder,
            user=user.pw_uid,
            group=user.pw_gid,
            extra_groups=groups,
            check=False,
        )
        if found.returncode:
            raise InstallError(
                f"{service.user} can't read {path}: see its mode and owner, and those above it "
                "(namei -l); for example chgrp, and chmod g+rX"
            )


def set_worker_user(options: argparse.Namespace, env_file: Path) -> None:
    """Write WORKER_USER into the settings, which atlasctl and service_launcher.py read too."""
    if not options.worker_user:
        return
    text = env_file.read_text()
    line = f"WORKER_USER={options.worker_user}"
    pattern = re.compile(r"^\s*(?:export\s+)?WORKER_USER\s*=.*$", re.MULTILINE)
    changed, count = pattern.subn(line, text)
    if not count:
        changed = f"{text}{'' if text.endswith(chr(10)) or not text else chr(10)}{line}\n"
    if changed == text:
        return
    replace(env_file, changed, like=env_file.stat())
    print(f"set {line} in {env_file}")


def prepare_state(service: Service) -> None:
    """Make STATE_DIR, or give one that is empty to the user; systemd does so below /var/lib."""
    folder = service.settings.state_dir
    if service.keeps_state_in_place:
        return
    owner = pwd.getpwnam(service.user)
    if not folder.exists():
        folder.mkdir(mode=0o750, parents=True)
        print(f"made {folder}")
    elif folder.stat().st_uid == owner.pw_uid:
        return
    elif any(not path.name.startswith(".") for path in folder.iterdir()):
        raise InstallError(
            f"STATE_DIR={folder} belongs to another user than {service.user}, who is to write it: "
            f"stop the daemon that uses it, and chown -R {service.user}: {folder}"
        )
    if folder.stat().st_uid != owner.pw_uid:
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        print(f"gave {folder} to {service.user}")


def write_unit(unit: Path, text: str) -> bool:
    """Write the unit; return whether that changed anything."""
    if unit.exists() and unit.read_text() == text:
        print(f"unchanged: {unit}")
        return False
    replace(unit, text)
    print(f"wrote {unit}")
    return True


def replace(path: Path, text: str, like: os.stat_result | None = None) -> None:
    """Replace a file as a whole; with the owner and mode of `like`."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    with fresh.open("x") as file:
        os.fchmod(file.fileno(), 0o644 if like is None else like.st_mode & 0o7777)
        if like is not None:
            os.fchown(file.fileno(), like.st_uid, like.st_gid)
        file.write(text)
    fresh.replace(path)


def start(service: Service, *, changed: bool) -> None:
    was_active = is_active(service.unit)
    systemctl("enable", service.unit)
    if was_active:
        print(f"{service.unit} is running" + (", with the unit before" if changed else ""))
        if changed:
            print(f"next, when an interruption is fine: systemctl restart {service.unit}")
        return
    print(f"starting {service.unit} …", flush=True)
    try:
        systemctl(
            "start", service.unit, seconds=START_SECONDS + service.settings.ready_timeout_seconds
        )
    except (InstallError, subprocess.TimeoutExpired) as error:
        status = systemctl(
            "status", "--no-pager", "--full", "--lines=20", service.unit, check=False
        )
        print(status, file=sys.stderr)
        raise InstallError(f"{service.unit} did not start: {error}") from error
    print(f"{service.unit} serves: systemctl status {service.unit}")


def is_active(unit: str) -> bool:
    return systemctl("is-active", unit, check=False).strip() == "active"


def systemctl(*arguments: str, seconds: float = 30, check: bool = True) -> str:
    return run("systemctl", *arguments, seconds=seconds, check=check)


def run(*command: str, seconds: float = 30, check: bool = True) -> str:
    """Run a program and return its output. Raises InstallError if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    except FileNotFoundError as error:
        raise InstallError(f"{command[0]} is not installed") from error
    if check and done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise InstallError(f"{' '.join(command)} failed: {said or done.returncode}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
