from __future__ import annotations

import errno
import re
import socket
from contextlib import ExitStack

import pytest

from atlas_supervisor.errors import StartRefusedError
from atlas_supervisor.system.procfs import inode_of
from atlas_supervisor.system.tcp_info import queue_length
from atlas_supervisor.traffic import listeners
from atlas_supervisor.traffic.steering import SteeringPolicy
from tests.harness import free_ports
from tests.unit.supervisor.traffic.support import BLUE, GREEN, foreign_listener, open_files


def test_the_queue_length_counts_connections_that_are_not_accepted() -> None:
    (port,) = free_ports(1)
    with listeners.listen("127.0.0.1", port) as sock, ExitStack() as stack:
        assert queue_length(sock) == 0
        for count in range(1, 4):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), 2))
            assert queue_length(sock) == count
        sock.accept()[0].close()
        assert queue_length(sock) == 2


def test_accepted_connections_send_without_delay() -> None:
    (port,) = free_ports(1)
    with (
        listeners.listen("127.0.0.1", port) as sock,
        socket.create_connection(("127.0.0.1", port), 2),
        sock.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_queue_that_a_worker_shrank_is_restored() -> None:
    (port,) = free_ports(1)
    with listeners.listen("127.0.0.1", port) as sock, ExitStack() as stack:
        sock.listen(1)
        listeners.restore_backlog(sock)
        for _ in range(100):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), 2))
        assert queue_length(sock) == 100


def test_a_bound_port_refuses_clients_and_lets_a_worker_bind_beside_it() -> None:
    (port,) = free_ports(1)
    with listeners.bind("127.0.0.1", port):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), 2)
        with (
            socket.create_server(("127.0.0.1", port)) as worker,
            socket.create_connection(("127.0.0.1", port), 2),
        ):
            worker.accept()[0].close()


@pytest.mark.parametrize(
    ("host", "other"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "0.0.0.0"),
        ("127.0.0.1", "::"),
        ("0.0.0.0", "127.0.0.1"),
        ("0.0.0.0", "::"),
        ("::", "127.0.0.1"),
        ("::", "::1"),
        ("::1", "::"),
    ],
)
def test_a_listener_in_the_way_is_refused_and_named(host: str, other: str) -> None:
    (port,) = free_ports(1)
    with foreign_listener(port, other) as process:
        with pytest.raises(StartRefusedError) as refused:
            listeners.refuse_foreign_listeners("PUBLIC_PORT", host, port)
        text = str(refused.value)
        assert f"PUBLIC_PORT={port}" in text
        assert re.search(rf"\bpid {process.pid}\b", text)


@pytest.mark.parametrize(
    ("host", "other"),
    [
        ("127.0.0.1", "127.0.0.2"),
        ("127.0.0.1", "::1"),
        ("0.0.0.0", "::1"),
        ("::1", "0.0.0.0"),
        ("::1", "127.0.0.1"),
    ],
)
def test_a_listener_on_another_address_does_not_conflict(host: str, other: str) -> None:
    (port,) = free_ports(1)
    with foreign_listener(port, other):
        assert listeners.foreign_listeners(host, port) == []
        listeners.listen(host, port).close()  # and the kernel is of the same opinion


def test_our_own_listeners_are_not_foreign() -> None:
    (port,) = free_ports(1)
    with listeners.listen("127.0.0.1", port) as sock:
        assert listeners.foreign_listeners("127.0.0.1", port, {inode_of(sock)}) == []
        assert [found.port for found in listeners.foreign_listeners("127.0.0.1", port)] == [port]


def test_a_failure_half_way_through_the_group_leaves_nothing_open() -> None:
    (port,) = free_ports(1)
    before = open_files()
    with socket.create_server(("127.0.0.1", port)), pytest.raises(OSError, match="in use"):
        listeners.open_group("127.0.0.1", port, SteeringPolicy(BLUE))
    assert open_files() == before


def test_a_slot_port_that_is_taken_closes_the_other_one_and_names_the_key() -> None:
    blue, green = free_ports(2)
    before = open_files()
    with (
        socket.create_server(("127.0.0.1", green)),
        pytest.raises(StartRefusedError, match=f"STAGING_PORT={green} is taken: pid"),
    ):
        listeners.open_slot_ports({BLUE: blue, GREEN: green}, listeners.listen)
    assert open_files() == before


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EADDRINUSE, "bound but does not listen"),
        (errno.EACCES, "privileges"),
        (errno.EADDRNOTAVAIL, "no address 10.9.8.7"),
        (errno.ENOBUFS, "can't be opened"),
    ],
)
def test_a_bind_error_is_explained_with_the_key(number: int, words: str) -> None:
    error = listeners.explain_bind_error("PUBLIC_PORT", "10.9.8.7", 80, OSError(number, "what"))
    assert "PUBLIC_PORT" in str(error)
    assert words in str(error)


def test_a_port_that_is_bound_without_listening_is_explained() -> None:
    blue, green = free_ports(2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", blue))
        with pytest.raises(StartRefusedError, match="bound but does not listen"):
            listeners.open_slot_ports({BLUE: blue, GREEN: green}, listeners.listen)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("0.0.0.0", "127.0.0.1"), ("::", "127.0.0.1"), ("::1", "::1"), ("127.0.0.5", "127.0.0.5")],
)
def test_a_listener_is_reached_on_loopback(host: str, loopback: str) -> None:
    assert listeners.loopback_of(host) == loopback
