"""What is kept for the next daemon; the keeper is the real process."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from atlas_supervisor.system import procfs, socket_store
from atlas_supervisor.system.files import short_name
from atlas_supervisor.system.passed_sockets import PassedSockets
from atlas_supervisor.system.procfs import inode_of
from atlas_supervisor.system.service_manager import ServiceManager
from atlas_supervisor.system.socket_store import KEEPER_SOCKET, Keeper, SocketStore
from tests.harness import eventually

Sockets = dict[str, socket.socket]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Longer than the kernel allows for a socket's name."""
    folder = tmp_path / ("state of a daemon in a folder with a long name" * 3)
    folder.mkdir()
    return folder / KEEPER_SOCKET


TAG = procfs.tag_for("/a/state/folder", "")


@pytest.fixture
def worker() -> Iterator[subprocess.Popen[bytes]]:
    """A process with the tag of an instance of the same daemon."""
    tag = procfs.tag_for("/a/state/folder", "blue-1")
    with subprocess.Popen(("prlimit", f"--locks={tag}", "sleep", "60")) as process:
        yield process
        process.kill()


@asynccontextmanager
async def keeping(
    path: Path, *names: str, alone_seconds: float = 60.0
) -> AsyncIterator[tuple[Keeper, Sockets]]:
    """A keeper that keeps a listener for each name."""
    keeper = Keeper(path, alone_seconds=alone_seconds)
    with ExitStack() as stack:
        sockets = {
            name: stack.enter_context(socket.create_server(("127.0.0.1", 0))) for name in names
        }
        keeper.keep(sockets, TAG)
        try:
            yield keeper, sockets
        finally:
            await keeper.end()
            other, passed = fetched(path)  # if the test has disconnected it
            passed.close()
            await other.end()
            if keeper._process is not None:
                await asyncio.to_thread(keeper._process.wait, 5)


def fetched(path: Path) -> tuple[Keeper, PassedSockets]:
    """Return the next daemon's side, and its sockets."""
    passed = PassedSockets()
    keeper = Keeper(path)
    keeper.fetch(passed)
    return keeper, passed


def identities(sockets: Sockets) -> set[tuple[str, int]]:
    return {(name, inode_of(sock)) for name, sock in sockets.items()}


def is_running(pid: int) -> bool:
    return procfs.zombie(pid) is None and procfs.start_ticks(pid) is not None


def mode_of(path: Path) -> int | None:
    return path.stat().st_mode & 0o777 if path.exists() else None


def output_of(code: str, path: Path) -> bytes:
    """Run it beside a socket to which every user may connect."""
    path.chmod(0o666)
    command = (sys.executable, "-c", code)
    return subprocess.run(command, cwd=path.parent, check=True, stdout=subprocess.PIPE).stdout


async def test_the_next_daemon_gets_the_very_sockets_and_the_one_after_what_that_kept(
    path: Path,
) -> None:
    async with keeping(path, "public-blue", "own-blue") as (first, sockets):
        pid = first.pid
        first.disconnect()
        second, passed = fetched(path)
        assert passed.identities == identities(sockets)
        assert second.pid == pid
        second.keep({"own-blue": sockets["own-blue"]}, 0)
        second.disconnect()
        passed.close()
        third, passed = fetched(path)
        assert passed.names == {"own-blue"}
        passed.close()
        await third.end()
        assert mode_of(path) is None


async def test_connections_wait_while_there_is_no_daemon(path: Path) -> None:
    async with keeping(path, "public") as (keeper, sockets):
        address = sockets["public"].getsockname()
        keeper.disconnect()
        await eventually(lambda: fetched_names(path) == {"public"})
        sockets["public"].close()
        with socket.create_connection(address, 5):
            second, passed = fetched(path)
            listener = passed.take("public")
            assert listener is not None
            with listener:
                listener.accept()[0].close()
            await second.end()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, 5)


def fetched_names(path: Path) -> frozenset[str]:
    """Return the names of what a keeper has, without staying connected."""
    keeper, passed = fetched(path)
    names = passed.names
    passed.close()
    keeper.disconnect()
    return names


async def test_it_is_in_a_session_of_its_own_and_only_its_user_may_connect(path: Path) -> None:
    async with keeping(path, "public") as (keeper, _):
        assert keeper.pid is not None
        assert mode_of(path) == 0o600
        await eventually(lambda: procfs.session(keeper.pid or 0) == keeper.pid)
        assert {keeper.pid} == procfs.KEEPERS
    assert not procfs.KEEPERS


@pytest.mark.needs_root
async def test_another_user_gets_nothing(path: Path) -> None:
    async with keeping(path, "public") as (keeper, _):
        code = (
            "import os, socket; os.setgroups([]); os.setresuid(65534, 65534, 65534)\n"
            "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect('keeper.sock')\n"
            "print(s.recv(4096))"
        )
        assert await asyncio.to_thread(output_of, code, path) == b"b''\n"
        assert keeper.pid is not None  # it has lost neither its daemon nor its life


async def test_it_ends_when_no_daemon_comes_for_long_enough(path: Path) -> None:
    async with keeping(path, "public", alone_seconds=0.1) as (keeper, _):
        pid = keeper.pid or 0
        keeper.disconnect()
        await eventually(lambda: not is_running(pid))


async def test_it_stays_while_a_worker_lives(path: Path, worker: subprocess.Popen[bytes]) -> None:
    async with keeping(path, "public", alone_seconds=0.1) as (keeper, _):
        pid = keeper.pid or 0
        await eventually(lambda: procfs.tag_of(worker.pid))
        keeper.disconnect()
        await asyncio.sleep(0.5)  # what is tested is this very time
        assert is_running(pid)
        worker.kill()
        await eventually(lambda: not is_running(pid))


async def test_starts_that_are_refused_do_not_make_it_stay_for_longer(path: Path) -> None:
    async with keeping(path, "public", alone_seconds=1.0) as (keeper, _):
        pid = keeper.pid or 0
        keeper.disconnect()
        loop = asyncio.get_running_loop()
        began = loop.time()
        while is_running(pid):
            assert loop.time() - began < 5
            fetched_names(path)
            await asyncio.sleep(0.05)


async def test_one_that_dies_is_started_again_with_the_same_sockets(path: Path) -> None:
    with capture_logs() as logs:
        async with keeping(path, "public") as (keeper, sockets):
            first = keeper.pid
            os.kill(first or 0, signal.SIGKILL)
            await eventually(lambda: keeper.pid not in {None, first})
            keeper.disconnect()
            _, passed = fetched(path)
            assert passed.identities == identities(sockets)
            passed.close()
    assert [each["event"] for each in logs] == ["socket_keeper_ended"]


async def test_one_that_died_is_not_started_twice_where_other_sockets_are_to_be_kept(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_store, "_RESTART_SECONDS", 0.1)
    async with keeping(path, "public") as (keeper, sockets):
        os.kill(keeper.pid or 0, signal.SIGKILL)
        await eventually(lambda: keeper.pid is None)
        keeper.keep(sockets, 0)
        second = keeper.pid

        over = asyncio.Event()
        asyncio.get_running_loop().call_later(0.15, over.set)
        await over.wait()

        assert second is not None
        assert keeper.pid == second


@pytest.mark.parametrize("greeting", [b"2 4711 public", b"garbage", b"1 4711 public"])
async def test_one_of_another_version_is_ended_and_a_stale_socket_replaced(
    path: Path, greeting: bytes
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
        with short_name(path) as name:
            other.bind(name)
        other.listen()
        other.settimeout(5)

        def serve() -> bytes:
            connection, _ = other.accept()
            with connection:
                connection.send(greeting)
                return connection.recv(4096)

        ended = asyncio.create_task(asyncio.to_thread(serve))
        await asyncio.sleep(0)
        keeper, passed = await asyncio.to_thread(fetched, path)
        assert await ended == b"end"
        assert (keeper.pid, passed.names) == (None, frozenset())
    async with keeping(path, "public"):
        assert fetched_names(path) == {"public"}


async def test_a_place_that_can_t_be_had_is_logged_and_nothing_is_kept(tmp_path: Path) -> None:
    path = tmp_path  # a folder
    with capture_logs() as logs:
        async with keeping(path, "public") as (keeper, _):
            assert keeper.pid is None
    assert [each["event"] for each in logs] == ["socket_keeper_unavailable"]


async def test_sockets_on_another_address_are_dropped_before_anything_is_opened(
    path: Path,
) -> None:
    async with keeping(path, "public", "own-blue", "control-tcp") as (keeper, sockets):
        pid = keeper.pid or 0
        keeper.disconnect()
        passed = PassedSockets()
        store = SocketStore(path.parent, ServiceManager({}), passed)
        own = sockets["own-blue"].getsockname()
        await store.drop_misplaced(passed, {"public": ("127.0.0.1", 1), "own-blue": own})
        assert passed.names == {"own-blue", "control-tcp"}
        await eventually(lambda: not is_running(pid))
        await store.keep({"own-blue": sockets["own-blue"]}, TAG)
        assert fetched_names(path) == {"own-blue"}
        passed.close()
        await store.empty()


@pytest.mark.parametrize(
    ("reloaded", "removed"),
    [(False, ["control-tcp", "public-blue", "unknown"]), (True, ["public-blue"])],
)
async def test_systemd_is_asked_to_remove_what_is_of_no_use_and_only_once_stored(
    tmp_path: Path, reloaded: bool, removed: list[str]
) -> None:
    """A reload passes more than listeners, which systemd does not have."""
    address = str(tmp_path / "notify")
    with ExitStack() as stack:
        systemd = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        systemd.bind(address)
        systemd.settimeout(5)
        kept, *others = (
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(4)
        )
        passed = PassedSockets()
        passed.put("own-blue", os.dup(kept.fileno()))
        for name, sock in zip(("unknown", "public-blue", "control-tcp"), others, strict=True):
            passed.put(name, os.dup(sock.fileno()))
        store = SocketStore(
            tmp_path, ServiceManager({"NOTIFY_SOCKET": address}), passed, reloaded=reloaded
        )
        passed.close()
        await store.keep({"own-blue": kept}, TAG)
        for name in removed:
            assert systemd.recv(4096).splitlines() == [
                b"FDSTOREREMOVE=1",
                f"FDNAME={name}".encode(),
            ]
        assert systemd.recv(4096).splitlines()[:2] == [b"FDSTORE=1", b"FDNAME=own-blue"]
        await store.empty()
        assert systemd.recv(4096).splitlines() == [b"FDSTOREREMOVE=1", b"FDNAME=own-blue"]
