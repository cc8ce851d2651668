from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from atlas_worker.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def supervisor(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[str, socket.socket]]:
    name = f"@atlas-{os.getpid()}-{time.monotonic_ns()}"
    address = name if request.param == "abstract" else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(address.replace("@", "\0"))
        sock.settimeout(5)
        yield address, sock


def test_ready_carries_the_kits_mark_in_one_message(supervisor: tuple[str, socket.socket]) -> None:
    address, sock = supervisor
    assert Notifier(address).ready()
    assert sock.recv(4096) == b"READY=1\nX_ATLAS_KIT=1"


def test_stopping_is_told(supervisor: tuple[str, socket.socket]) -> None:
    address, sock = supervisor
    assert Notifier(address).stopping()
    assert sock.recv(4096) == b"STOPPING=1"


def test_the_address_is_taken_out_of_the_environment() -> None:
    environ = {"NOTIFY_SOCKET": "@somebody", "PATH": "/bin"}
    Notifier.from_environment(environ)
    assert environ == {"PATH": "/bin"}


@pytest.mark.parametrize("address", ["", "@nobody-is-here", "/no/such/socket", "x" * 500, "a\0b"])
def test_nobody_there_is_no_error(address: str) -> None:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address})
    assert not notifier.ready()
    assert not notifier.stopping()


def test_a_dead_supervisors_socket_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
    assert not Notifier(str(path)).ready()


def test_a_stopped_supervisor_holds_nobody_up(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        notifier = Notifier(str(path))
        began = time.monotonic()
        while notifier.ready():  # until the queue is full, as nobody reads it
            assert time.monotonic() < began + 10
        assert time.monotonic() < began + 10
