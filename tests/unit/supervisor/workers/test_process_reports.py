from __future__ import annotations

import array
import asyncio
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from atlas_supervisor.workers.process import NotifySocket
from tests.harness import eventually
from tests.unit.supervisor.traffic.support import open_files


@contextmanager
def listening(name: str) -> Iterator[tuple[NotifySocket, socket.socket]]:
    notify = NotifySocket(f"{name}-{os.getpid()}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.connect("\0" + notify.address[1:])
        try:
            yield notify, client
        finally:
            notify.close()


async def test_ready_and_kit_are_heard() -> None:
    with listening("both") as (notify, client):
        client.send(b"STATUS=booting")
        client.send(b"READY=1\nX_ATLAS_KIT=1\nSTATUS=done")
        await asyncio.wait_for(notify.ready.wait(), 5)
        assert notify.kit


async def test_ready_and_kit_are_reported_independently() -> None:
    with listening("one") as (notify, client):
        client.send(b"READY=1")
        await asyncio.wait_for(notify.ready.wait(), 5)
        assert not notify.kit
    with listening("other") as (notify, client):
        client.send(b"X_ATLAS_KIT=1")
        await eventually(lambda: notify.kit)
        assert not notify.ready.is_set()


@pytest.mark.parametrize("message", [b"", b"READY=0", b"NOT_READY=1", b"\xff\xfe\x00", b"x" * 9000])
async def test_unknown_messages_are_ignored(message: bytes) -> None:
    with listening("noise") as (notify, client):
        client.send(message)
        client.send(b"X_ATLAS_KIT=1")  # it comes after the noise
        await eventually(lambda: notify.kit)
        assert not notify.ready.is_set()


COUNTS = '{"requests":1,"websockets":%s,"event_streams":0,"idle":2}'


async def test_left_and_cut_counts_are_received() -> None:
    with listening("left") as (notify, client):
        client.send(b"X_ATLAS_ACCEPTING=0")
        client.send(b"X_ATLAS_LEFT=" + (COUNTS % 7).encode())
        client.send(
            b"X_ATLAS_LEFT=" + (COUNTS % 3).encode() + b"\nX_ATLAS_CUT=" + (COUNTS % 1).encode()
        )
        await eventually(lambda: notify.cut is not None)
        assert notify.not_accepting.is_set()
        assert (notify.left and notify.left.websockets) == 3
        assert (notify.most and notify.most.websockets) == 7
        assert (notify.cut and notify.cut.websockets) == 1


@pytest.mark.parametrize(
    "counts",
    ["", "{", "[]", "null", "[" * 3000, "{}", COUNTS % "true", COUNTS % -1, COUNTS % '"1"'],
)
async def test_malformed_counts_are_ignored(counts: str) -> None:
    with listening("counts") as (notify, client):
        client.send(f"X_ATLAS_LEFT={counts}\nX_ATLAS_CUT={counts}".encode())
        client.send(b"X_ATLAS_KIT=1")  # it comes after the noise
        await eventually(lambda: notify.kit)
        assert (notify.left, notify.most, notify.cut) == (None, None, None)


@pytest.mark.needs_root
async def test_messages_of_another_user_are_ignored() -> None:
    with listening("users") as (notify, client):
        foreign = struct.pack("=iII", os.getpid(), 65534, 65534)
        client.sendmsg([b"READY=1"], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, foreign)])
        client.send(b"X_ATLAS_KIT=1")
        await eventually(lambda: notify.kit)
        assert not notify.ready.is_set()


async def test_descriptors_that_are_sent_along_are_not_kept() -> None:
    with listening("descriptors") as (notify, client):
        before = open_files()
        numbers = array.array("i", [client.fileno()] * 10)
        client.sendmsg([b"X_ATLAS_KIT=1"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)])
        await eventually(lambda: notify.kit)
        assert open_files() == before


async def test_a_flood_of_messages_does_not_delay_the_loop() -> None:
    with listening("flood") as (notify, client):
        stop = asyncio.Event()

        def flood() -> None:
            while not stop.is_set():
                client.send(b"STATUS=talking")

        talking = asyncio.create_task(asyncio.to_thread(flood))
        for _ in range(100):
            await asyncio.sleep(0)
        # In a thread: the queue may be full, and it is this loop that empties it.
        await asyncio.to_thread(client.send, b"READY=1")
        await asyncio.wait_for(notify.ready.wait(), 5)
        stop.set()
        await talking


async def test_it_can_be_closed_twice_and_its_name_is_free_again() -> None:
    notify = NotifySocket(f"again-{os.getpid()}")
    notify.close()
    notify.close()
    NotifySocket(f"again-{os.getpid()}").close()


async def test_a_name_that_is_taken_leaves_no_descriptor() -> None:
    with listening("taken") as (notify, _):
        before = open_files()
        with pytest.raises(OSError, match="in use"):
            NotifySocket(notify.address.removeprefix("@atlas-notify-"))
        assert open_files() == before


SENDER = """
import socket, sys
sys.stdin.readline()
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
    sock.connect(chr(0) + sys.argv[1])
    sock.send(sys.argv[2].encode())
sys.stdin.readline()
"""


@contextmanager
def sender(notify: NotifySocket, text: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own, as a worker is; it sends once it gets a line."""
    command = (sys.executable, "-S", "-c", SENDER, notify.address[1:], text)
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as process:
        yield process


def proceed(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.write(b"go\n")
    process.stdin.flush()


async def test_a_report_of_another_process_of_our_user_does_not_count(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with (
        listening("forged") as (notify, client),
        sender(notify, "X_ATLAS_KIT=1") as worker,
        sender(notify, "READY=1\nX_ATLAS_ACCEPTING=0") as forger,
    ):
        notify.read_from(worker.pid)
        proceed(forger)
        client.send(b"READY=1")  # from the test itself
        proceed(worker)
        await eventually(lambda: notify.kit)
        proceed(forger)
        proceed(worker)
        assert not notify.ready.is_set()
        assert not notify.not_accepting.is_set()
        assert capfd.readouterr().out.count("worker_report_refused") == 1


async def test_a_report_by_a_child_of_the_worker_in_another_session_counts() -> None:
    with listening("child") as (notify, _), sender(notify, "READY=1") as child:
        notify.read_from(os.getpid())
        proceed(child)
        await asyncio.wait_for(notify.ready.wait(), 5)
        proceed(child)


async def test_nothing_is_read_before_it_is_known_who_may_report() -> None:
    notify = NotifySocket(f"held-{os.getpid()}", held=True)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.connect("\0" + notify.address[1:])
            client.send(b"READY=1")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not notify.ready.is_set()
        notify.read_from(os.getpid())
        await asyncio.wait_for(notify.ready.wait(), 5)
    finally:
        notify.close()


async def test_a_flood_of_reports_is_read_at_a_bounded_rate_and_loses_none() -> None:
    notify = NotifySocket(f"flood-{os.getpid()}", held=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.connect("\0" + notify.address[1:])
        client.setblocking(False)

        def fill() -> int:
            for sent in range(100_000):
                try:
                    client.send(b"STATUS=noise")
                except BlockingIOError:
                    return sent
            raise AssertionError("the kernel's queue has no end")

        try:
            fill()  # the rest is what was read
            loop = asyncio.get_running_loop()
            began, read = loop.time(), 0
            notify.read_from(os.getpid())
            while loop.time() < began + 0.8:
                await asyncio.sleep(0)
                read += fill()
            assert 64 <= read <= 64 * ((loop.time() - began) / 0.5 + 2)
            client.setblocking(True)
            await asyncio.to_thread(client.send, b"READY=1")
            await asyncio.wait_for(notify.ready.wait(), 10)
        finally:
            notify.close()
