from __future__ import annotations

import pytest

from atlas_supervisor.traffic.http_framing import Exchanges

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
COMPLETE = [
    pytest.param(GET, OK + b"Content-Length: 5\r\n\r\nhello", id="length"),
    pytest.param(GET, OK + b"content-length:0\r\n\r\n", id="empty"),
    pytest.param(GET, CHUNKED + b"5\r\nhello\r\n0\r\n\r\n", id="chunks"),
    pytest.param(GET, CHUNKED + b"5;a=b\r\n0\r\n\r\n\r\n0\r\n\r\n", id="a chunk like the last one"),
    pytest.param(GET, CHUNKED + b"0\r\nA: b\r\nC: d\r\n\r\n", id="trailers"),
    pytest.param(
        GET,
        OK + b"Content-Length: 9\r\nTransfer-Encoding: gzip, Chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
        id="chunks and a length",
    ),
    pytest.param(b"HEAD" + GET[3:], OK + b"Content-Length: 5\r\n\r\n", id="HEAD"),
    pytest.param(GET, b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", id="304"),
    pytest.param(GET, b"HTTP/1.1 204 No Content\r\n\r\n", id="204"),
    pytest.param(
        GET,
        b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n" + OK + b"Content-Length: 1\r\n\r\n!",
        id="an interim answer",
    ),
    pytest.param(
        b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\n\r\n\r\n",
        OK + b"Content-Length: 1\r\n\r\n!",
        id="a request with a body",
    ),
    pytest.param(
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
        OK + b"Content-Length: 1\r\n\r\n!",
        id="a request in chunks",
    ),
    pytest.param(GET + GET, 2 * (OK + b"Content-Length: 1\r\n\r\n!"), id="two at once"),
    pytest.param(
        b"HEAD" + GET[3:] + GET, 2 * (OK + b"Content-Length: 0\r\n\r\n"), id="HEAD and GET at once"
    ),
    pytest.param(b"\r\n" + GET, OK + b"Content-Length: 0\n\n", id="bare line ends"),
    pytest.param(GET, b"HTTP/1.0 200\r\nContent-Length: 1\r\n\r\n!", id="no reason"),
]


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(("request_", "answer"), COMPLETE)
def test_an_answer_is_pending_until_its_last_byte(
    request_: bytes, answer: bytes, size: int
) -> None:
    exchanges = Exchanges()
    for _ in range(3):  # on one connection, one after the other
        assert exchanges.pending is False
        for start in range(0, len(request_), size):
            exchanges.client_sent(memoryview(request_[start : start + size]))
        for start in range(0, len(answer), size):
            assert exchanges.pending is True
            exchanges.server_sent(memoryview(answer[start : start + size]))
        assert exchanges.pending is False


def test_a_request_is_pending_from_its_first_byte() -> None:
    exchanges = Exchanges()
    exchanges.client_sent(memoryview(b"G"))
    assert exchanges.pending is True


@pytest.mark.parametrize(
    "head", [b"HTTP/1.0 200 OK\r\n\r\n", OK + b"Transfer-Encoding: gzip\r\n\r\n"]
)
def test_an_answer_without_a_length_is_pending_until_the_connection_ends(head: bytes) -> None:
    exchanges = Exchanges()
    exchanges.client_sent(memoryview(GET))
    exchanges.server_sent(memoryview(head + b"0\r\n\r\n"))
    exchanges.server_sent(memoryview(b"HTTP/1.1 200 OK\r\n\r\n"))
    assert exchanges.pending is True


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        pytest.param(b"\x16\x03\x01", b"\x16", id="TLS"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"", id="HTTP/2"),
        pytest.param(b"PING\r\n", b"+PONG\r\n", id="a protocol of lines"),
        pytest.param(b"", b"220 ready\r\n", id="a server that speaks first"),
        pytest.param(GET, b"HTTP/1.1 101 Switching Protocols\r\n\r\n", id="an upgrade"),
        pytest.param(b"CONNECT a:1 HTTP/1.1\r\n\r\n", OK + b"\r\n", id="a tunnel"),
        pytest.param(GET, CHUNKED + b"x\r\n", id="a chunk without a size"),
        pytest.param(b"GET " + b"x" * 70_000, b"", id="a head without an end"),
        pytest.param(GET * 1001, b"", id="endless requests"),
    ],
)
def test_other_bytes_have_no_framing_and_fill_no_memory(request_: bytes, answer: bytes) -> None:
    exchanges = Exchanges()
    exchanges.client_sent(memoryview(request_))
    exchanges.server_sent(memoryview(answer))
    assert exchanges.pending is None
    exchanges.client_sent(memoryview(GET))
    exchanges.server_sent(memoryview(b"x" * 100_000))
    assert exchanges.pending is None
    assert exchanges._requests.partial == exchanges._responses.partial == b""
    assert not exchanges._methods


def test_an_answer_that_was_not_asked_for_leaves_nothing_pending() -> None:
    exchanges = Exchanges()
    exchanges.server_sent(memoryview(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"))
    assert exchanges.pending is False


def test_a_request_in_part_awaits_its_client_and_an_answer_in_part_does_not() -> None:
    exchanges = Exchanges()
    seen = [exchanges.awaits_client]
    for data in (b"POST / HTTP/1.1\r\n", b"Content-Length: 2\r\n\r\n", b"a", b"b"):
        exchanges.client_sent(memoryview(data))
        seen.append(exchanges.awaits_client)
    assert seen == [False, True, True, True, False]
    exchanges.server_sent(memoryview(OK + b"Content-Length: 1\r\n\r\n"))
    exchanges.client_sent(memoryview(GET[:9]))
    assert not exchanges.awaits_client
    exchanges.server_sent(memoryview(b"!"))
    assert exchanges.awaits_client
