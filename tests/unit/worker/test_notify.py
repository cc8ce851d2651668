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


def test_ready_and_the_kit_are_reported_in_one_message(
    supervisor: tuple[str, socket.socket],
) -> None:
    address, sock = supervisor
    assert Notifier(address).ready()
    assert sock.recv(4096) == b"READY=1\nX_ATLAS_KIT=1"


def test_stopping_is_reported(supervisor: tuple[str, socket.socket]) -> None:
    address, sock = supervisor
    assert Notifier(address).stopping()
    assert sock.recv(4096) == b"STOPPING=1"


def test_the_address_is_removed_from_the_environment() -> None:
    environ = {"NOTIFY_SOCKET": "@receiver", "PATH": "/bin"}
    Notifier.from_environment(environ)
    assert environ == {"PATH": "/bin"}


@pytest.mark.parametrize("address", ["", "@no-receiver", "/no/such/socket", "x" * 500, "a\0b"])
def test_a_missing_receiver_is_not_an_error(address: str) -> None:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address})
    assert not notifier.ready()
    assert not notifier.stopping()


def test_the_socket_of_a_dead_supervisor_is_not_an_error(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
    assert not Notifier(str(path)).ready()


def test_a_stopped_supervisor_does_not_block(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        notifier = Notifier(str(path))
        began = time.monotonic()
        while notifier.ready():  # until the queue is full
            assert time.monotonic() < began + 10
        assert time.monotonic() < began + 10
