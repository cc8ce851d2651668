from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from atlas_supervisor.system.passed_sockets import PassedSockets, passing, receive

RECEIVE = """
import json, os
from atlas_supervisor.system.passed_sockets import receive
passed = receive()
names = sorted(passed.names)
public = passed.take("public-blue")
print(json.dumps({
    "names": names,
    "port": public and public.getsockname()[1],
    "blocking": public and public.getblocking(),
    "unused": sorted(passed.close()),
    "variables": [name for name in os.environ if name.startswith("LISTEN_")],
}))
"""

EXEC = """
import fcntl, os, socket, sys
from atlas_supervisor.system.passed_sockets import passing
listener = socket.create_server(("127.0.0.1", 0))
lock = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(lock, fcntl.LOCK_EX)
secret = os.open(os.devnull, os.O_RDONLY)
with passing({"public-blue": listener.fileno(), "lock": lock}) as variables:
    os.execve(sys.executable, [sys.executable, "-c", sys.argv[2]], os.environ | variables)
"""


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def inheritable(listener: socket.socket) -> int:
    """Return a copy of the socket as systemd hands it out."""
    return fcntl.fcntl(listener.fileno(), fcntl.F_DUPFD, 3)


def variables(names: str, *, pid: object = None, count: object = None) -> dict[str, str]:
    return {
        "LISTEN_PID": str(os.getpid() if pid is None else pid),
        "LISTEN_FDS": str(names.count(":") + 1 if count is None else count),
        "LISTEN_FDNAMES": names,
        "PATH": "/bin",
    }


def up_to(descriptor: int, name: str) -> str:
    """Return the names of which the last is that of the descriptor, and all others are empty."""
    return ":" * (descriptor - 3) + name


def test_sockets_and_the_lock_reach_the_next_program_by_their_names(tmp_path: Path) -> None:
    lock = tmp_path / "supervisor.lock"
    done = subprocess.run(
        [sys.executable, "-c", EXEC, str(lock), RECEIVE],
        check=True,
        capture_output=True,
        text=True,
        timeout=20,
    )
    found = json.loads(done.stdout)

    assert found["names"] == ["lock", "public-blue"]
    assert found["port"]
    assert found["blocking"] is False
    assert found["unused"] == ["lock"]
    assert found["variables"] == []


def test_a_received_socket_is_closed_on_exec_and_can_be_taken_once(listener: socket.socket) -> None:
    descriptor = inheritable(listener)
    environ = variables(up_to(descriptor, "public-blue"))

    passed = receive(environ)
    sock = passed.take("public-blue")

    assert environ == {"PATH": "/bin"}
    assert sock is not None
    with sock:
        assert sock.fileno() == descriptor
        assert sock.getsockname() == listener.getsockname()
        assert not sock.getblocking()
        assert not os.get_inheritable(descriptor)
        assert passed.take("public-blue") is None
        assert passed.take("public-green") is None
        assert passed.close() == frozenset()
        assert is_open(descriptor)


def test_a_socket_that_a_worker_has_too_stays_blocking_if_the_worker_made_it_so(
    listener: socket.socket,
) -> None:
    listener.setblocking(True)
    passed = PassedSockets()
    passed.put("public-blue", os.dup(listener.fileno()))
    sock = passed.take("public-blue", shared=True)
    assert sock is not None
    with sock:
        assert os.get_blocking(listener.fileno())


def test_the_first_of_a_name_is_taken_and_unknown_ones_are_closed(listener: socket.socket) -> None:
    passed = PassedSockets()
    first, second, unknown, plain = (inheritable(listener) for _ in range(4))
    passed.put("public-blue", first)
    passed.put("public-blue", second)
    passed.put("from-another-age", unknown)
    passed.put("lock", plain)

    assert passed.take_descriptor("public-blue") == first
    assert passed.take_descriptor("lock") == plain
    assert passed.close() == {"from-another-age"}
    assert [is_open(each) for each in (first, second, unknown, plain)] == [True, False, False, True]
    os.close(first)
    os.close(plain)


def test_a_descriptor_of_a_file_is_not_given_out_as_a_socket() -> None:
    passed = PassedSockets()
    null = os.open(os.devnull, os.O_RDONLY)
    passed.put("public-blue", null)

    assert passed.take("public-blue") is None
    assert not is_open(null)


@pytest.mark.parametrize(
    "wrong",
    [
        {"pid": 1},
        {"pid": ""},
        {"pid": "me"},
        {"count": ""},
        {"count": "three"},
        {"count": "-1"},
        {"count": "9" * 5000},
        {"count": "0"},
    ],
)
def test_variables_that_make_no_sense_or_are_for_another_process_give_nothing(
    listener: socket.socket, wrong: dict[str, object]
) -> None:
    descriptor = inheritable(listener)
    environ = variables(up_to(descriptor, "public-blue"), **wrong)

    assert receive(environ).names == frozenset()
    assert environ == {"PATH": "/bin"}
    os.close(descriptor)


def test_names_of_closed_descriptors_are_passed_over(listener: socket.socket) -> None:
    descriptor = inheritable(listener)
    os.close(descriptor)

    assert receive(variables(up_to(descriptor, "public-blue"))).names == frozenset()


def test_descriptors_without_names_are_unknown(listener: socket.socket) -> None:
    descriptor = inheritable(listener)
    environ = variables("", count=descriptor - 2)

    assert receive(environ).names == {"unknown"}  # never closed here: it has all that pytest opened
    os.close(descriptor)


def test_a_start_without_variables_has_nothing() -> None:
    assert receive({"PATH": "/bin"}).names == frozenset()


def test_an_exec_that_fails_leaves_every_descriptor_as_it_was(listener: socket.socket) -> None:
    with passing({"public-blue": listener.fileno()}) as given:
        assert os.get_inheritable(listener.fileno())
        assert given["LISTEN_FDNAMES"].endswith("public-blue")
        assert int(given["LISTEN_FDS"]) == listener.fileno() - 2
    assert not os.get_inheritable(listener.fileno())


def test_nothing_to_pass_is_said_as_well() -> None:
    with passing({}) as given:
        assert given["LISTEN_FDS"] == "0"
