"""A bearer token: created once, readable by the daemon's user and the file's group only.

The group is for operators: its members may do everything over TCP (docs/security.md). A file that
other users may read or write, or have put there, is refused.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from atlas_supervisor.errors import StartRefusedError
from atlas_supervisor.system.secret_file import Secret, read_secret

MIN_LENGTH = 16
_MODE = 0o640
_TOKEN = Secret("token", "remove it, and a new one is created")


def load_or_create_token(path: Path, key: str = "CONTROL_TOKEN_FILE") -> str:
    """Return the token in `path`, creating the file (mode 0640, 32 random bytes) if it is missing.

    `key` is the setting that names the file.
    Raises StartRefusedError if the file can't be read or created, or has no usable token.
    """
    try:
        try:
            text, fault = read_secret(path, _TOKEN)
        except FileNotFoundError:
            _try_to_create(path, key)
            text, fault = read_secret(path, _TOKEN)
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


def _try_to_create(path: Path, key: str) -> None:
    try:
        _create(path)
    except OSError as error:
        raise StartRefusedError(
            f"{key}: {path} can't be created: {error.strerror}; "
            "see that its folder is there and writable, and that the disk has room"
        ) from error


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
