"""A bearer token: created once, readable by the daemon's user and the file's group only.

The group is for operators: its members may do everything over TCP (docs/security.md). A file that
other users may read or write, or have put there, is refused.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from atlas_supervisor.errors import StartRefusedError
from atlas_supervisor.system.files import open_regular

MIN_LENGTH = 16
MAX_LENGTH = 4096
_MODE = 0o640


def load_or_create_token(path: Path, key: str = "CONTROL_TOKEN_FILE") -> str:
    """Return the token in `path`, creating the file (mode 0640, 32 random bytes) if it is missing.

    `key` is the setting that names the file.
    Raises StartRefusedError if the file can't be read or created, or has no usable token.
    """
    try:
        try:
            text, fault = _read(path)
        except FileNotFoundError:
            _create(path)
            text, fault = _read(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise StartRefusedError(
            f"{key}: {path} can't be used: {reason}; "
            "remove it, and a new one is created, or correct its owner and mode"
        ) from error
    token = text.strip()
    if len(token) < MIN_LENGTH:
        raise StartRefusedError(
            f"{key}: {path} has {len(token)} characters, a token at least "
            f"{MIN_LENGTH}; remove the file, and a new one is created"
        )
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise StartRefusedError(
            f"{key}: {path} has more than one word of printable ASCII; "
            "remove the file, and a new one is created"
        )
    if fault is not None:
        raise StartRefusedError(f"{key}: {path} {fault}")
    return token


def _read(path: Path) -> tuple[str, str | None]:
    """Return the content, and why other users may know it."""
    # Outside of STATE_DIR it may be a link, as container platforms mount secrets.
    descriptor = open_regular(path.resolve(), os.O_RDONLY)
    with open(descriptor, "rb") as file:  # noqa: PTH123  # a descriptor
        found = os.fstat(descriptor)
        data = file.read(MAX_LENGTH + 1)  # a wrong path may name an endless device
    if len(data) > MAX_LENGTH:
        raise OSError(0, f"it has more than {MAX_LENGTH} bytes", str(path))
    return data.decode("ascii"), _fault(found) or _fault(path.lstat())


def _fault(found: os.stat_result) -> str | None:
    """Return why other users may know the content or have written it, and what to do."""
    own, mode = os.geteuid(), stat.S_IMODE(found.st_mode)
    if found.st_uid not in {own, 0}:
        return f"belongs to uid {found.st_uid}; remove it, and a new one is created"
    if stat.S_ISLNK(found.st_mode):
        return None
    if mode & stat.S_IRWXO:
        return (
            f"is open to every user (mode {mode:04o}), who may know the token by now; remove it, "
            "and a new one is created, or, if it is still a secret, chmod o= it"
        )
    if mode & stat.S_IWGRP and found.st_gid != os.getegid():
        return f"is writable by the group {found.st_gid}, which is not ours; chmod g-w it"
    return None


def _create(path: Path) -> None:
    """Write a new token beside `path` and link it there, so that the file is complete or absent."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            os.fchmod(file.fileno(), _MODE)  # regardless of the umask
            file.write(secrets.token_urlsafe(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(fresh, path)  # unlike a rename, never replaces a file
        except FileExistsError:
            return
    finally:
        fresh.unlink()
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
