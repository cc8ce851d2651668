"""The bearer token: created once, readable by the daemon's user and group only."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from atlas_supervisor.errors import StartRefusedError
from atlas_supervisor.system.files import open_regular

MIN_LENGTH = 16
MAX_LENGTH = 4096
_MODE = 0o640


def load_or_create_token(path: Path) -> str:
    """Return the token in `path`, creating the file (mode 0640, 32 random bytes) if it is missing.

    Raises StartRefusedError if the file can't be read or created, or has no usable token.
    """
    try:
        try:
            text = _read(path)
        except FileNotFoundError:
            _create(path)
            text = _read(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise StartRefusedError(
            f"CONTROL_TOKEN_FILE: {path} can't be used: {reason}; "
            "remove it, and a new one is created, or correct its owner and mode"
        ) from error
    token = text.strip()
    if len(token) < MIN_LENGTH:
        raise StartRefusedError(
            f"CONTROL_TOKEN_FILE: {path} has {len(token)} characters, a token at least "
            f"{MIN_LENGTH}; remove the file, and a new one is created"
        )
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise StartRefusedError(
            f"CONTROL_TOKEN_FILE: {path} has more than one word of printable ASCII; "
            "remove the file, and a new one is created"
        )
    return token


def _read(path: Path) -> str:
    # One byte over the limit suffices; a wrong path may name an endless device.
    with open(open_regular(path, os.O_RDONLY), "rb") as file:  # noqa: PTH123  # a descriptor
        data = file.read(MAX_LENGTH + 1)
    if len(data) > MAX_LENGTH:
        raise OSError(0, f"it has more than {MAX_LENGTH} bytes", str(path))
    return data.decode("ascii")


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
