"""The strict client itself: it sees every loss, and no loss where there is none."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter

import pytest

from tests.acceptance.fakes import FAULTS, FaultyServer
from tests.acceptance.support import serving, until
from tests.loadclient import Load, Reason, Report, Traffic, Wire, echoes_body, echoes_token

EXPECTED = {
    "no_answer": Reason.CLOSED,
    "reset": Reason.RESET,
    "cut_in_the_head": Reason.TRUNCATED,
    "cut_in_the_body": Reason.TRUNCATED,
    "wrong_body": Reason.WRONG_BODY,
    "wrong_status": Reason.WRONG_STATUS,
    "more_than_asked_for": Reason.SURPLUS,
    "yesterdays_answer": Reason.WRONG_BODY,
    "silence": Reason.TIMEOUT,
    "no_http": Reason.MALFORMED,
    "two_framings": Reason.MALFORMED,
    "swapped": Reason.WRONG_BODY,
}

MIX = (
    Traffic("get", 3, echoes_token, think=(0.0, 0.004), timeout=1.5),
    Traffic("post", 3, echoes_body, method="POST", body_size=16384, timeout=1.5),
    Traffic("one shot", 3, echoes_token, keep_alive=False, timeout=1.5),
    Traffic("upload", 6, echoes_body, method="POST", body_size=999, drip=(0.02, 0.1), timeout=1.5),
)


async def asked_token(reader: asyncio.StreamReader) -> str:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    return head.partition("X-Request-Id: ")[2].partition("\r\n")[0]


def right_answer(token: str, *, header: str = "") -> bytes:
    body = f"{token} server"
    return f"HTTP/1.1 200 OK\r\n{header}Content-Length: {len(body)}\r\n\r\n{body}".encode()


async def requests(port: int, traffic: Traffic, count: int) -> Report:
    """Run one kind of traffic until at least so many requests were sent."""
    async with Load("127.0.0.1", port, [traffic]) as load:
        await until(lambda: load.report.sent >= count)
        return await load.stop()


def get(loops: int = 1, *, think: float = 0.0, timeout: float = 5.0) -> Traffic:
    return Traffic("get", loops, echoes_token, think=(think, think), timeout=timeout)


async def test_one_spoilt_answer_in_ten_is_seen_every_single_time() -> None:
    async with FaultyServer().running() as server, Load("127.0.0.1", server.port, MIX) as load:
        kinds = load.report.kinds
        await until(lambda: len(server.faults) >= 8 * len(FAULTS))
        await until(lambda: all(each.losses and each.answered for each in kinds.values()))
        report = await load.stop()
    lost = {loss.token: loss.reason for loss in report.losses}
    assert lost == {token: EXPECTED[fault] for token, fault in server.faults.items()}
    assert len(lost) == len(report.losses)
    assert set(server.faults.values()) == set(EXPECTED)
    total = report.total()
    assert total.answered == len(total.latencies) == total.answered_by.total()
    assert total.sent == total.answered + len(total.losses)
    assert all(tally.losses and tally.answered for tally in report.kinds.values())


async def test_a_sound_server_loses_nothing() -> None:
    async def sound(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while token := await asked_token(reader):
                writer.write(right_answer(token))
        writer.close()

    async with serving(sound) as port:
        report = await requests(port, get(4), 1000)
    tally = report.kinds["get"]
    assert not tally.losses
    assert tally.connections == 4
    assert tally.answered_by == Counter(server=tally.sent)
    assert 0 < tally.latency_ms(0.5) <= tally.latency_ms(0.99) <= tally.latency_ms(1.0)


async def test_an_idle_connection_that_the_server_closes_is_no_loss() -> None:
    async def closes_when_idle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(right_answer(await asked_token(reader)))
        await writer.drain()
        writer.close()  # without a word

    async with serving(closes_when_idle) as port:
        report = await requests(port, get(think=0.05), 20)
    tally = report.kinds["get"]
    assert not tally.losses
    assert tally.connections == tally.sent
    assert tally.sent - 1 <= tally.idle_closes <= tally.sent


async def test_a_close_that_came_while_the_client_was_busy_counts_as_seen() -> None:
    closed = asyncio.Event()

    async def closes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(right_answer(await asked_token(reader)))
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        closed.set()

    async with serving(closes) as port:
        wire = Wire()
        await wire.connect("127.0.0.1", port)
        await wire.exchange(b"GET / HTTP/1.1\r\nX-Request-Id: t1\r\n\r\n", (), 0.0)
        await closed.wait()
        assert not await wire.reusable()
        wire.close()


async def test_a_close_that_meets_a_request_on_its_way_is_a_loss() -> None:
    async def closes_on_second(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(right_answer(await asked_token(reader)))
        await reader.read(1)  # the next request is on its way, or the client is done
        writer.close()

    async with serving(closes_on_second) as port:
        report = await requests(port, get(), 10)
    tally = report.kinds["get"]
    assert len(tally.losses) == tally.sent // 2
    assert {loss.nth for loss in tally.losses} == {2}
    assert {loss.reason for loss in tally.losses} <= {Reason.CLOSED, Reason.RESET}


async def test_an_announced_close_is_obeyed() -> None:
    reused = 0

    async def announces(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal reused
        writer.write(right_answer(await asked_token(reader), header="Connection: close\r\n"))
        reused += len(await reader.read())  # stays open until the client closes
        writer.close()

    async with serving(announces) as port:
        report = await requests(port, get(2), 100)
    tally = report.kinds["get"]
    assert not tally.losses
    assert not reused
    assert tally.announced_closes == tally.connections == tally.sent


async def test_bytes_on_an_idle_connection_spoil_the_next_request() -> None:
    async def chatters(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            writer.write(right_answer(await asked_token(reader)))
            await asyncio.sleep(0.02)
            writer.write(right_answer("t99999"))
            await reader.read()
        writer.close()

    async with serving(chatters) as port:
        report = await requests(port, get(think=0.1), 6)
    tally = report.kinds["get"]
    assert len(tally.losses) == tally.sent // 2
    assert {loss.reason for loss in tally.losses} == {Reason.WRONG_BODY}


async def test_another_process_answering_on_a_connection_is_a_loss() -> None:
    async def many_faced(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            for face in ("blue", "blue", "green"):
                body = f"{await asked_token(reader)} {face}"
                length = f"Content-Length: {len(body)}\r\n\r\n"
                writer.write(f"HTTP/1.1 200 OK\r\n{length}{body}".encode())
            await reader.read()
        writer.close()

    async with serving(many_faced) as port:
        report = await requests(port, get(), 9)
    tally = report.kinds["get"]
    assert len(tally.losses) == tally.sent // 3
    assert {loss.nth for loss in tally.losses} == {3}


async def test_a_port_without_a_listener_is_refused() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        report = await requests(bound.getsockname()[1], get(), 5)
    tally = report.kinds["get"]
    assert [loss.reason for loss in tally.losses] == [Reason.REFUSED] * tally.sent


async def test_an_early_answer_ends_a_slow_upload() -> None:
    async def impatient(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked_token(reader)
        await reader.read(1)
        writer.write(b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        await reader.read()
        writer.close()

    upload = Traffic("upload", 1, echoes_body, method="POST", body_size=800, drip=(8.0, 8.0))
    async with serving(impatient) as port:
        report = await requests(port, upload, 1)
    assert [loss.reason for loss in report.losses] == [Reason.WRONG_STATUS]
    assert report.losses[0].at < 4


async def test_a_fault_of_the_client_itself_is_no_finding() -> None:
    def broken(*_: object) -> str:
        raise ZeroDivisionError

    async with FaultyServer().running() as server:
        with pytest.raises(ZeroDivisionError):
            await requests(server.port, Traffic("get", 1, broken), 1)
