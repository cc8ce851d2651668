from __future__ import annotations

import asyncio
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from atlas_worker.instance import BadEnvironmentError
from atlas_worker.sockets import adopt, find_listeners, open_listener, take_inherited
from tests.unit.worker.support import launch, listening_socket, port_of, until

TAKE = """
import json, os
from atlas_worker.instance import BadEnvironmentError
from atlas_worker.sockets import take_inherited
try:
    taken = [
        [x.name, s.fileno(), s.get_inheritable(), x.inherited, s.getsockname()[1]]
        for x in take_inherited()
        for s in [x.socket]
    ]
except BadEnvironmentError as error:
    taken = str(error)
left = [name for name in os.environ if name.startswith("LISTEN_")]
fifth = os.get_inheritable(5) if os.path.exists("/proc/self/fd/5") else None
print(json.dumps({"taken": taken, "left": left, "fifth": fifth}))
"""


async def take(tmp_path: Path, sockets: list[socket.socket], **environ: str) -> Any:
    process = await launch(["-c", TAKE], sockets, cwd=tmp_path, environ=environ)
    output, _ = await asyncio.wait_for(process.communicate(), 30)
    return json.loads(output)


async def test_inherited_sockets_are_in_order_and_hidden_from_children(tmp_path: Path) -> None:
    with listening_socket() as public, listening_socket() as private:
        got = await take(
            tmp_path, [public, private], LISTEN_FDS="2", LISTEN_FDNAMES="public:private"
        )
        assert got["taken"] == [
            ["public", 3, False, True, port_of(public)],
            ["private", 4, False, True, port_of(private)],
        ]
        assert got["left"] == []


async def test_without_a_public_port_only_the_private_socket_is_inherited(tmp_path: Path) -> None:
    with listening_socket() as private:
        got = await take(tmp_path, [private], LISTEN_FDS="1", LISTEN_FDNAMES="private")
        assert got["taken"] == [["private", 3, False, True, port_of(private)]]


async def test_the_other_slots_socket_is_kept_open_and_not_used(tmp_path: Path) -> None:
    with listening_socket() as public, listening_socket() as private, listening_socket() as other:
        got = await take(
            tmp_path, [public, private, other], LISTEN_FDS="2", LISTEN_FDNAMES="public:private"
        )
        assert len(got["taken"]) == 2
        assert got["fifth"] is True


async def test_sockets_of_another_process_are_not_inherited(tmp_path: Path) -> None:
    with listening_socket() as public:
        got = await take(tmp_path, [public], LISTEN_FDS="1", LISTEN_PID="1")
        assert got == {"taken": [], "left": [], "fifth": None}


async def test_sockets_without_names_are_served(tmp_path: Path) -> None:
    with listening_socket() as public:
        got = await take(tmp_path, [public], LISTEN_FDS="1")
        assert got["taken"] == [["unknown", 3, False, True, port_of(public)]]


@pytest.mark.parametrize("fds", ["two", "-1", "65", "1.0"])
async def test_a_bad_count_is_refused_and_named(tmp_path: Path, fds: str) -> None:
    got = await take(tmp_path, [], LISTEN_FDS=fds)
    assert f"LISTEN_FDS='{fds}'" in got["taken"]


async def test_names_that_do_not_match_the_sockets_are_refused(tmp_path: Path) -> None:
    with listening_socket() as public:
        got = await take(tmp_path, [public], LISTEN_FDS="1", LISTEN_FDNAMES="public:private")
        assert "LISTEN_FDNAMES='public:private'" in got["taken"]


async def test_a_descriptor_that_is_missing_is_named(tmp_path: Path) -> None:
    with listening_socket() as public:
        got = await take(tmp_path, [public], LISTEN_FDS="2", LISTEN_FDNAMES="public:private")
        assert "descriptor 4 (private) is not a socket" in got["taken"]


def test_without_the_variables_nothing_is_inherited() -> None:
    assert take_inherited({}) == []


def test_a_socket_that_does_not_listen_is_refused_and_left_open() -> None:
    with socket.socket() as sock:
        with pytest.raises(BadEnvironmentError, match="not a listening socket"):
            adopt(sock.fileno())
        sock.bind(("127.0.0.1", 0))


def test_a_file_is_refused(tmp_path: Path) -> None:
    with (
        (tmp_path / "file").open("w") as file,
        pytest.raises(BadEnvironmentError, match="is not a socket"),
    ):
        adopt(file.fileno())


def test_without_supervisor_the_given_port_is_opened() -> None:
    with listening_socket() as probe:
        port = port_of(probe)
    (listener,) = find_listeners({}, host="127.0.0.1", port=port, fd=None, own_port=None)
    with listener.socket as sock:
        assert port_of(sock) == port
        assert not listener.inherited


def test_a_port_can_be_opened_beside_the_supervisors_reservation() -> None:
    with socket.socket() as reservation:
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reservation.bind(("127.0.0.1", 0))
        port = port_of(reservation)
        (listener,) = find_listeners({}, host="127.0.0.1", port=None, fd=None, own_port=port)
        with listener.socket as sock:
            assert port_of(sock) == port


def test_ipv6_addresses_are_opened() -> None:
    with open_listener("::1", 0).socket as sock:
        assert sock.family is socket.AF_INET6


def test_neither_socket_nor_port_is_refused() -> None:
    with pytest.raises(BadEnvironmentError, match="ATLAS_PORT"):
        find_listeners({}, host="127.0.0.1", port=None, fd=None, own_port=None)


def test_an_inherited_descriptor_can_be_named() -> None:
    with listening_socket() as sock:
        inherited = os.dup(sock.fileno())
        (listener,) = find_listeners({}, host="127.0.0.1", port=None, fd=inherited, own_port=None)
        with listener.socket:
            assert listener.inherited
            assert listener.socket.fileno() == inherited


async def test_the_queue_is_as_long_as_there_are_connections_to_accept() -> None:
    listener = open_listener("127.0.0.1", 0)
    with listener.socket as sock:
        assert listener.queue_length() == 0
        clients = [socket.create_connection(sock.getsockname()) for _ in range(7)]
        await until(lambda: listener.queue_length() == 7)
        accepted, _ = sock.accept()
        assert listener.queue_length() == 6
        for client in (*clients, accepted):
            client.close()


def test_the_queue_of_a_unix_socket_counts_as_empty(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "socket"))
        sock.listen()
        inherited = os.dup(sock.fileno())
        listener = adopt(inherited)
        assert listener.queue_length() == 0
        listener.socket.close()
