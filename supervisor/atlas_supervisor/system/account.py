"""The user that workers run as, if that is another one than the daemon's: `WORKER_USER`.

A hole in an application is then no control of deploys: the worker can't reach the daemon's files,
its socket or its token. What workers need of the state folder they get by their group.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True)
class Account:
    """A user of this machine."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    """All of its groups, the first one included."""
    home: str
    shell: str

    @classmethod
    def named(cls, name: str) -> Self:
        """Look the user up. Raises ValueError for one that would not be apart from root."""
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            raise ValueError("there is no such user") from None
        if found.pw_uid == 0:
            raise ValueError("it is root")
        groups = tuple(sorted(os.getgrouplist(name, found.pw_gid)))
        if 0 in groups:
            raise ValueError(f"it is in group {grp.getgrgid(0).gr_name}, as the daemon's files are")
        return cls(name, found.pw_uid, found.pw_gid, groups, found.pw_dir, found.pw_shell)

    @property
    def environment(self) -> dict[str, str]:
        """What a login of the user would set."""
        shell = self.shell or "/bin/sh"
        return {"HOME": self.home, "USER": self.name, "LOGNAME": self.name, "SHELL": shell}

    @property
    def privileges(self) -> dict[str, Any]:
        """The arguments of `subprocess` that start one of its processes, by root."""
        return {"user": self.uid, "group": self.gid, "extra_groups": list(self.groups)}

    def may(self, wanted: int, path: Path) -> bool:
        """Return whether the file's mode allows the user this: 4 to read, 2 to write, 1 to enter.

        Raises OSError.
        """
        status = path.stat()
        if status.st_uid == self.uid:
            return bool(stat.S_IMODE(status.st_mode) >> 6 & wanted)
        shift = 3 if status.st_gid in self.groups else 0
        return bool(stat.S_IMODE(status.st_mode) >> shift & wanted)


def make_folder(path: Path, account: Account | None, mode: int = 0o700) -> None:
    """Make a folder that workers write to; with an account it is theirs, with all that is in it.

    Links and files that have other names are left alone. Raises OSError.
    """
    path.mkdir(mode=mode, exist_ok=True)
    if account is None or path.lstat().st_uid == account.uid:
        return
    for _, folders, files, descriptor in os.fwalk(path):
        for name in (*folders, *files):
            status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode) or (
                stat.S_ISREG(status.st_mode) and status.st_nlink == 1
            ):
                os.chown(name, account.uid, account.gid, dir_fd=descriptor, follow_symlinks=False)
    os.chown(path, account.uid, account.gid, follow_symlinks=False)  # last: until then it is ours
