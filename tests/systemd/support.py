"""A machine that a real systemd runs: pid 1 of a private namespace, with a disk of its own.

The disk is a folder: `/etc`, `/srv`, `/tmp` and `/var` of the machine. A reboot is another
namespace over the same folder. The network is the test's own, so ports have to be free ones; a
machine of a person who follows a document has one for itself, and homes.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SYSTEMD = Path("/lib/systemd/systemd")
UNITS = Path("/usr/lib/systemd/system")
NEEDED = ("unshare", "nsenter", "systemctl", "systemd-analyze", "journalctl", "useradd", "mount")
BOOT_SECONDS = 20.0
OWN = ("etc", "srv", "tmp", "var")
A_PERSONS = ("home", "opt", "root", "usr/local/share/man")
# Of all that the machine could start, what a service and the journal need.
KEPT = (
    *("basic", "sysinit", "multi-user", "network", "network-online", "paths", "slices", "sockets"),
    *("timers", "local-fs", "local-fs-pre", "swap", "shutdown", "umount", "final", "network-pre"),
)
JOURNAL = ("systemd-journald.service", "systemd-journald.socket", "systemd-journald-dev-log.socket")
A_PERSONS_UNITS = ("dbus.service", "dbus.socket", "prometheus.service")
"""The bus is how who is not root asks systemd."""

# Else every worker reads all of the machine's certificates, for which see tests/conftest.py.
SYSTEM_CONF = f"[Manager]\nDefaultEnvironment=SSL_CERT_FILE={os.devnull}\n"

BOOT = """
set -e
disk={disk} root={root}
mount --make-rprivate /
umount -R /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs tmpfs /run
mkdir /run/disk
mount --rbind "$disk" /run/disk  # its own path is hidden by what follows
disk=/run/disk
mount --bind "$disk/units" {units}
mount --bind "$disk/generators" /usr/lib/systemd/system-generators
# The repository may be in a folder that is hidden by one of the machine's own.
case $root/ in
  /tmp/* | /var/* | /srv/*) mkdir -p "$disk$root"; mount --bind "$root" "$disk$root" ;;
esac
{before}
for own in {own}; do mount --rbind "$disk/$own" "/$own"; done
cd /
exec env -i container=test PATH="$PATH" {systemd} --system --unit=multi-user.target
"""


def missing(*more: str) -> str | None:
    """Return which programs a machine and `more` need and are not here; None if none is missing."""
    if os.geteuid() != 0:
        return "needs root"
    programs = [name for name in (*NEEDED, *more) if shutil.which(name) is None]
    if not SYSTEMD.exists():
        programs.append("systemd")
    return f"needs {', '.join(programs)}" if programs else None


class Machine:
    """One machine. `boot` starts it, `cut_power` ends all its processes at once."""

    def __init__(self, disk: Path, *, a_persons: bool = False) -> None:
        self.disk = disk
        self._own = (*OWN, *A_PERSONS) if a_persons else OWN
        self._namespaces = ("-m", "-p", "-C", "-u", "-i", *(("-n",) if a_persons else ()))
        self._outer: subprocess.Popen[bytes] | None = None
        self.pid = 0
        """systemd's, as it is out here."""
        for own in self._own:
            (disk / own).mkdir(parents=True)
        for folder in ("lib", "log/journal", "tmp", "cache"):
            (disk / "var" / folder).mkdir(parents=True)
        for temporary in (disk / "tmp", disk / "var/tmp"):
            temporary.chmod(0o1777)
        shutil.copytree("/etc", disk / "etc", symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(disk / "etc/systemd/system")
        (disk / "etc/systemd/system").mkdir()
        (disk / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
        (disk / "etc/systemd/system.conf").write_text(SYSTEM_CONF)
        (disk / "generators").mkdir()  # none of them, so no service from elsewhere
        (disk / "units").mkdir()
        more = A_PERSONS_UNITS if a_persons else ()
        for unit in (*(f"{name}.target" for name in KEPT), *JOURNAL, *more):
            shutil.copy(UNITS / unit, disk / "units" / unit)
        wanted = disk / "units/sockets.target.wants"
        wanted.mkdir()
        for unit in (*JOURNAL[1:], *(("dbus.socket",) if a_persons else ())):
            (wanted / unit).symlink_to(f"../{unit}")

    def boot(self) -> None:
        """Start systemd, and wait until it has started what it is to start."""
        script = BOOT.format(
            disk=shlex.quote(str(self.disk)),
            root=shlex.quote(str(ROOT)),
            units=UNITS,
            own=" ".join(self._own),
            before=self._before(),
            systemd=SYSTEMD,
        )
        isolated = ("unshare", *self._namespaces, "-f", "--kill-child", "--mount-proc")
        with (self.disk.parent / "console").open("ab") as console:
            self._outer = subprocess.Popen(
                (*isolated, "/bin/sh", "-c", script),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )
        self.until(self._is_up, within=BOOT_SECONDS, what="systemd is up")

    def _is_up(self) -> bool:
        assert self._outer is not None
        assert self._outer.poll() is None, (self.disk.parent / "console").read_text()
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text()
        if not children:
            return False
        self.pid = int(children.split()[0])
        state = self.run("systemctl", "is-active", "basic.target", check=False)
        return state.strip() == "active"

    def cut_power(self) -> None:
        """End the machine without asking it."""
        if self._outer is not None:
            self._outer.kill()
            self._outer.wait()
            self._outer = None
            self.until(lambda: not Path(f"/proc/{self.pid}").exists(), what="the namespace ended")

    def _before(self) -> str:
        """Return the commands that prepare a machine before the host's folders are hidden."""
        if self._own == OWN:
            return ""
        (self.disk / "root").chmod(0o755)  # the interpreter may be in root's home
        base = Path(sys.base_prefix)
        lines = ["ip link set lo up"]
        if base.is_relative_to("/root"):
            (self.disk / base.relative_to("/")).mkdir(parents=True)
            lines.append(f"mount --bind {shlex.quote(str(base))} $disk{shlex.quote(str(base))}")
        return "\n".join(lines)

    def inside(self, *command: str) -> tuple[str, ...]:
        """Return the command that runs a program on the machine."""
        return ("nsenter", "-t", str(self.pid), *self._namespaces, *command)

    def run(self, *command: str, check: bool = True, timeout: float = 40) -> str:
        """Run a program on the machine; return its output on both streams."""
        done = subprocess.run(
            self.inside(*command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            cwd="/",
            timeout=timeout,
        )
        assert not check or done.returncode == 0, f"{shlex.join(command)}: {done.stdout}"
        return done.stdout

    def install(self, *arguments: str, check: bool = True) -> str:
        """Run scripts/install-systemd on the machine; return its output."""
        path = f"PATH={os.environ['PATH']}"
        return self.run("env", path, str(ROOT / "scripts/install-systemd"), *arguments, check=check)

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "show", f"--property={name}", "--value", unit).strip()

    def main_pid(self, unit: str) -> int:
        """Return the pid of a unit's main process, as it is out here; 0 if it has none."""
        inner = int(self.show(unit, "MainPID"))
        return next((pid for pid, number in self.processes() if number == inner), 0) if inner else 0

    def processes(self) -> Iterator[tuple[int, int]]:
        """Yield the machine's processes: the pid out here, and the one on the machine."""
        namespace = Path(f"/proc/{self.pid}/ns/pid").readlink()
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and (entry / "ns/pid").readlink() == namespace:
                    status = (entry / "status").read_text()
                    numbers = status.partition("\nNSpid:")[2].partition("\n")[0].split()
                    yield int(entry.name), int(numbers[-1])
            except OSError:
                continue  # it is gone

    def of_unit(self, unit: str) -> list[int]:
        """Return the pids, out here, of a unit's processes."""
        path = Path(f"/proc/{self.pid}/root/sys/fs/cgroup/system.slice")
        files = [*path.glob(f"{unit}/cgroup.procs"), *path.glob(f"*/{unit}/cgroup.procs")]
        return [int(pid) for file in files for pid in file.read_text().split()]

    @staticmethod
    def until(condition: Callable[[], object], *, within: float = 20.0, what: str = "") -> None:
        """Wait until a condition holds, or fail with `what` was waited for."""
        deadline = time.monotonic() + within
        while not condition():
            assert time.monotonic() < deadline, f"not within {within} s: {what}"
            time.sleep(0.02)


@contextmanager
def machine(folder: Path, *, a_persons: bool = False) -> Iterator[Machine]:
    """A machine that has booted; nothing of it is left at the end."""
    disk = folder / "disk"
    disk.mkdir()
    made = Machine(disk, a_persons=a_persons)
    try:
        made.boot()
        yield made
    finally:
        made.cut_power()
