"""Reads files that hold a secret, and finds out who else may know or have written it."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from atlas_supervisor.system.files import open_regular

MAX_LENGTH = 4096


@dataclass(frozen=True)
class Secret:
    """What a file holds, in words for messages."""

    noun: str
    renewal: str
    """How to get another one."""


def read_secret(path: Path, secret: Secret) -> tuple[str, str | None]:
    """Return the content, and why other users may know it.

    Raises OSError, also if it has more than 4096 bytes, and UnicodeDecodeError if it is not ASCII.
    """
    # Outside of STATE_DIR it may be a link, as container platforms mount secrets.
    descriptor = open_regular(path.resolve(), os.O_RDONLY)
    with open(descriptor, "rb") as file:  # noqa: PTH123  # a descriptor
        found = os.fstat(descriptor)
        data = file.read(MAX_LENGTH + 1)  # a wrong path may name an endless device
    if len(data) > MAX_LENGTH:
        raise OSError(0, f"it has more than {MAX_LENGTH} bytes", str(path))
    return data.decode("ascii"), _fault(found, secret) or _fault(path.lstat(), secret)


def _fault(found: os.stat_result, secret: Secret) -> str | None:
    """Return why other users may know the content or have written it, and what to do."""
    own, mode = os.geteuid(), stat.S_IMODE(found.st_mode)
    if found.st_uid not in {own, 0}:
        return f"belongs to uid {found.st_uid}; {secret.renewal}"
    if stat.S_ISLNK(found.st_mode):
        return None
    if mode & stat.S_IRWXO:
        return (
            f"is open to every user (mode {mode:04o}), who may know the {secret.noun} by now; "
            f"{secret.renewal}, or, if it is still a secret, chmod o= it"
        )
    if mode & stat.S_IWGRP and found.st_gid != os.getegid():
        return f"is writable by the group {found.st_gid}, which is not ours; chmod g-w it"
    return None
