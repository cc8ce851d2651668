"""Machines of one network, each a network namespace that ends with its process. Needs root.

    hub: a bridge, and the test itself (`inside`) -- machine 1, machine 2, ...

Nothing of it has a name outside, so nothing is left over, whichever way a test ends.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000


class Network:
    """Machines at 10.77.0.1, .2 and so on; the test is at 10.77.0.254."""

    def __init__(self, machines: int) -> None:
        self._holders = [_holder() for _ in range(machines + 1)]
        hub = self._holders[0]
        _ip(hub, "link", "add", "br0", "type", "bridge")
        _ip(hub, "address", "add", "10.77.0.254/24", "dev", "br0")
        _ip(hub, "link", "set", "br0", "up")
        for number in range(machines):
            holder = self._holders[number + 1]
            peer = ("peer", "name", "eth0", "netns", str(holder.pid))
            _ip(hub, "link", "add", f"v{number}", "type", "veth", *peer)
            _ip(hub, "link", "set", f"v{number}", "master", "br0", "up")
            _ip(holder, "address", "add", f"{self.address(number)}/24", "dev", "eth0")
            _ip(holder, "link", "set", "eth0", "up")
            _ip(holder, "link", "set", "lo", "up")

    @staticmethod
    def address(number: int) -> str:
        """Return a machine's address."""
        return f"10.77.0.{number + 1}"

    def wrapper(self, number: int) -> tuple[str, ...]:
        """Return the words before a command line that run it on a machine."""
        return _enter(self._holders[number + 1])

    def part(self, number: int, others: list[int]) -> None:
        """Let nothing pass between a machine and others; the test still reaches all of them."""
        for other in others:
            route = ("route", "add", "blackhole", f"{self.address(other)}/32")
            _ip(self._holders[number + 1], *route)

    def heal(self, number: int, others: list[int]) -> None:
        """Undo `part`."""
        for other in others:
            route = ("route", "del", "blackhole", f"{self.address(other)}/32")
            _ip(self._holders[number + 1], *route)

    def cut(self, number: int) -> None:
        """Pull a machine's cable."""
        _ip(self._holders[0], "link", "set", f"v{number}", "down")

    def plug_in(self, number: int) -> None:
        """Undo `cut`."""
        _ip(self._holders[0], "link", "set", f"v{number}", "up")

    def inside(self, work: Callable[[], T]) -> T:
        """Call something in the hub, on a thread of its own: a namespace is a thread's."""
        results: list[T] = []
        faults: list[BaseException] = []

        def run() -> None:
            try:
                with Path(f"/proc/{self._holders[0].pid}/ns/net").open("rb") as namespace:
                    entered = ctypes.CDLL(None, use_errno=True).setns(
                        namespace.fileno(), _CLONE_NEWNET
                    )
                if entered != 0:
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
                results.append(work())
            except BaseException as fault:  # noqa: BLE001 - raised again by the test
                faults.append(fault)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        if faults:
            raise faults[0]
        return results[0]

    def close(self) -> None:
        """End the namespaces."""
        for holder in self._holders:
            holder.kill()
            holder.wait()


@contextmanager
def network(machines: int) -> Iterator[Network]:
    """Make a network, and end it."""
    made = Network(machines)
    try:
        yield made
    finally:
        made.close()


def _holder() -> subprocess.Popen[bytes]:
    """Start the process that keeps a namespace, and wait until it has one."""
    script = ("sh", "-c", "echo there; exec sleep infinity")
    process = subprocess.Popen(("unshare", "--net", *script), stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"there\n"
    return process


def _enter(holder: subprocess.Popen[bytes]) -> tuple[str, ...]:
    return "nsenter", "-t", str(holder.pid), "-n"


def _ip(holder: subprocess.Popen[bytes], *arguments: str) -> None:
    subprocess.run((*_enter(holder), "ip", *arguments), check=True, capture_output=True)
