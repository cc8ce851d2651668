from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from atlas_supervisor.system import procfs, sockdiag
from atlas_supervisor.traffic.listeners import listen
from tests.harness import free_ports


@contextmanager
def process(code: str, **more: object) -> Iterator[subprocess.Popen[str]]:
    """Run Python code that prints a line when it is so far, and wait for the line."""
    with subprocess.Popen(
        [sys.executable, "-c", f"{code}\nprint('so far', flush=True)\nimport time; time.sleep(60)"],
        stdout=subprocess.PIPE,
        text=True,
        **more,  # type: ignore[call-overload]  # what Popen takes
    ) as started:
        try:
            assert started.stdout.readline() == "so far\n"
            yield started
        finally:
            started.kill()


LISTENING = "import socket; s = socket.create_server(('127.0.0.1', {port}))"


def test_a_listener_and_who_holds_it_are_found() -> None:
    (port,) = free_ports(1)
    with process(LISTENING.format(port=port)) as other:
        (found,) = sockdiag.listeners(port)
        assert (found.address, found.port) == ("127.0.0.1", port)
        assert procfs.holders(found.inode) == [other.pid]
        text = procfs.describe_listeners([found])
        assert f"pid {other.pid} (" in text
        assert text.endswith(f" listens on 127.0.0.1:{port}")


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_a_listeners_address_is_read_right(host: str) -> None:
    (port,) = free_ports(1)
    with listen(host, port) as sock:
        assert sockdiag.listeners(port) == [sockdiag.TcpSocket(host, port, procfs.inode_of(sock))]


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("::", "127.0.0.1"), ("::", "::1")],
)
def test_the_servers_end_of_a_connection_is_found_once_it_is_accepted(
    host: str, address: str
) -> None:
    (port,) = free_ports(1)
    with listen(host, port) as sock, socket.create_connection((address, port), 2) as client:
        assert sockdiag.accepted_inode(client) == 0
        with sock.accept()[0] as accepted:
            assert sockdiag.accepted_inode(client) == procfs.inode_of(accepted)


def test_connections_are_counted_while_anything_may_still_come() -> None:
    (port,) = free_ports(1)
    mine = [os.getpid()]
    with listen("127.0.0.1", port) as sock, socket.create_connection(("127.0.0.1", port)) as client:
        assert procfs.connections_of(mine, {port}) == []  # it waits in the queue
        with sock.accept()[0]:
            assert len(procfs.connections_of(mine, {port})) == 1
            assert procfs.connections_of([], {port}) == []
            assert procfs.connections_of(mine, {port + 1}) == []
            client.shutdown(socket.SHUT_WR)  # its answer is still to come
            assert len(procfs.connections_of(mine, {port})) == 1
        assert procfs.connections_of(mine, {port}) == []


def test_connections_are_looked_for_only_if_there_is_a_socket_that_may_be_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (port,) = free_ports(1)
    asked: list[set[int]] = []

    def connections(ports: set[int]) -> list[sockdiag.TcpConnection]:
        asked.append(ports)
        return []

    monkeypatch.setattr(sockdiag, "connections", connections)
    code = f"{LISTENING.format(port=port)}\npair = socket.socketpair()\n"
    with process(code) as idle, process(f"{code.replace('server', 'connection')}") as client:
        assert procfs.connections_of([idle.pid], {port}) == []
        assert asked == []
        assert procfs.connections_of([idle.pid, client.pid], {port}) == []
        assert asked == [{port}]


def test_a_family_is_found_by_its_environment_even_in_another_session() -> None:
    mark = {"FAMILY_MARK": f"family-{os.getpid()}"}
    wanted = f"FAMILY_MARK=family-{os.getpid()}".encode()
    with process("", env={**os.environ, **mark}, start_new_session=True) as member, process(""):
        assert procfs.family_of(environment=wanted) == [member.pid]
        assert procfs.family_of(environment=wanted + b"1") == []
        assert procfs.family_of(environment=wanted[:-1]) == []


def test_a_family_is_found_by_its_session_though_its_environment_is_gone() -> None:
    code = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], env={})\n"
    )
    with process(code, start_new_session=True) as leader:
        found = procfs.family_of(environment=b"NOBODY=has-this", sessions={leader.pid})
        assert leader.pid in found
        assert len(found) == 2
        procfs.send_signal(found, signal.SIGKILL)


def test_a_zombie_belongs_to_no_family() -> None:
    mark = f"zombie-{os.getpid()}"
    with process("", env={"ZOMBIE_MARK": mark}, start_new_session=True) as child:
        wanted = f"ZOMBIE_MARK={mark}".encode()
        assert procfs.family_of(environment=wanted, sessions={child.pid}) == [child.pid]
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and not reaped
        assert procfs.start_ticks(child.pid) is not None
        assert procfs.family_of(environment=wanted, sessions={child.pid}) == []


def test_start_ticks_distinguish_a_process_from_a_later_one() -> None:
    ticks = procfs.start_ticks(os.getpid())
    assert ticks is not None
    assert ticks == procfs.start_ticks(os.getpid())
    with process("") as later:
        started = procfs.start_ticks(later.pid)
        assert started is not None
        assert started > ticks
        assert procfs.parent(later.pid) == os.getpid()
    assert procfs.start_ticks(later.pid) is None
    assert procfs.parent(later.pid) == 0


def test_a_commands_name_may_hold_parentheses_and_spaces() -> None:
    name = "import ctypes; ctypes.CDLL(None).prctl(15, b') S 1 (x', 0, 0, 0)"
    with process(name) as odd:
        assert procfs.parent(odd.pid) == os.getpid()


def test_a_process_is_described_without_control_characters() -> None:
    with process("'\x1b[31m\x07'") as odd:
        text = procfs.describe(odd.pid)
    assert text.startswith(f"pid {odd.pid} (")
    assert text.isprintable()
    assert r"\x1b[31m\x07" in text


def test_a_process_that_is_gone_is_described_by_its_pid_alone() -> None:
    with process("") as gone:
        pass
    assert procfs.describe(gone.pid) == f"pid {gone.pid}"
    assert procfs.sockets_of(gone.pid) == set()


def test_signalling_a_process_that_is_gone_does_nothing() -> None:
    with process("") as gone:
        pass
    procfs.send_signal([gone.pid], signal.SIGKILL)


def test_a_boot_has_a_name() -> None:
    assert procfs.boot_id() == procfs.boot_id() != ""
