"""Requests that the relay counts, by the framing of HTTP/1."""

from __future__ import annotations

import time

import pytest

from atlas_supervisor.model.requests import RequestCounts
from atlas_supervisor.traffic.http_framing import Exchanges
from atlas_supervisor.traffic.request_tally import RequestTally
from atlas_worker.contract.addresses import address_key
from atlas_worker.contract.request_file import ADDRESS_FAILED

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
PROBE = b"GET / HTTP/1.1\r\nHost: x\r\nx-atlas-probe: 1\r\n\r\n"
HEAD = b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
UNTIL_CLOSE = b"HTTP/1.1 404 None\r\n\r\nnot here"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"
LENGTH_ALONE = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"
UPGRADED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n\x81\x02hi"


def counts(*classes: int, **more: int) -> RequestCounts:
    return RequestCounts(classes=classes, **more)


@pytest.mark.parametrize("step", [1, 7, 10_000])
@pytest.mark.parametrize(
    ("asked", "answered", "expected"),
    [
        (GET, OK, counts(0, 1, 0, 0, 0, begun=1)),
        (GET + GET, OK + CHUNKED, counts(0, 1, 0, 0, 1, begun=2)),
        (GET + GET, OK, counts(0, 1, 0, 0, 0, begun=2, cut=1)),
        (GET, UNTIL_CLOSE, counts(0, 0, 0, 1, 0, begun=1)),
        (GET, CONTINUE + OK, counts(0, 1, 0, 0, 0, begun=1)),
        (HEAD + GET, LENGTH_ALONE + NO_CONTENT, counts(0, 2, 0, 0, 0, begun=2)),
        (GET, LENGTH_ALONE + b"half", counts(0, 0, 0, 0, 0, begun=1, cut=1)),
        (GET + PROBE + GET, OK + CHUNKED + OK, counts(0, 2, 0, 0, 0, begun=2)),
        (PROBE, OK[:-1], counts(0, 0, 0, 0, 0)),
        (GET, UPGRADED, counts(1, 0, 0, 0, 0, begun=1)),
        (b"\x16\x03\x01\x02", b"\x16\x03\x03", counts(0, 0, 0, 0, 0)),
    ],
)
def test_requests_are_counted_by_their_answers(
    asked: bytes, answered: bytes, expected: RequestCounts, step: int
) -> None:
    tally = RequestTally()
    exchanges = Exchanges(tally)
    for follow, data in ((exchanges.client_sent, asked), (exchanges.server_sent, answered)):
        for start in range(0, len(data), step):
            follow(memoryview(data[start : start + step]))
    exchanges.closed(by_client=False)

    totals, seconds, _, _ = tally.take()
    assert totals.counts == expected
    assert RequestCounts.sum(seconds.values()) == expected
    assert totals.latency.count == sum(expected.classes)
    assert tally.take().totals.counts == RequestCounts()


def test_a_client_that_closes_first_has_left() -> None:
    tally = RequestTally()
    exchanges = Exchanges(tally)
    exchanges.client_sent(memoryview(GET))
    exchanges.closed(by_client=True)

    assert tally.take().totals.counts == RequestCounts(begun=1, left=1)


def test_the_first_request_of_a_drawn_connection_counts_once_more() -> None:
    tally = RequestTally()
    for connected, drawn in ((0.0, True), (time.monotonic(), True), (time.monotonic(), False)):
        tally.drawn = drawn
        exchanges = Exchanges(tally, connected)
        exchanges.client_sent(memoryview(GET + GET + GET))
        exchanges.server_sent(memoryview(CHUNKED + OK))
        exchanges.closed(by_client=False)

    totals, _, firsts, _ = tally.take()
    assert totals.counts == counts(0, 3, 0, 0, 3, begun=9, cut=3)
    ((second, first),) = firsts.items()
    assert second == pytest.approx(time.monotonic(), abs=5)
    assert (first.begun, first.failed, first.ended, first.open) == (1, 1, 1, 0)


def test_a_first_request_that_loses_its_connection_has_failed_unless_the_client_left() -> None:
    tally = RequestTally()
    for by_client in (True, False):
        tally.lose(tally.begin(1000.5, 1000.1), 1001.5, by_client=by_client)
    tally.end(tally.begin(1000.9, 1000.1), 1061.5, 500)

    (first,) = tally.take().firsts.values()
    assert (first.begun, first.failed, first.ended) == (3, 1, 2)


def test_a_slow_request_is_in_no_second() -> None:
    tally = RequestTally()
    tally.begin(1000.5)
    tally.take()
    tally.end(1000.5, 1061.0, 200)

    totals, seconds, _, _ = tally.take()
    assert totals.counts.classes == (0, 1, 0, 0, 0)
    assert seconds == {}


def test_addresses_are_listed_where_they_are_drawn() -> None:
    tally = RequestTally()
    tally.secret = b"secret"
    one, same, other = (tally.connected(1000.1, f"192.0.{net}.7") for net in (2, 2, 3))
    began = tally.begin(1000.5, one)
    tally.end(tally.begin(1000.6, same), 1000.7, 500)
    tally.end(tally.begin(1000.6, other), 1000.7, 500)
    tally.end(tally.begin(1000.6, tally.connected(1000.1, "")), 1000.7, 200)
    first = tally.take()
    tally.end(began, 1001.0, 200)

    assert first.firsts == {}
    keys = address_key("192.0.2.1", b"secret"), address_key("192.0.3.1", b"secret")
    listed = first.addresses[1000]
    assert (set(listed), listed[keys[0]]) == (set(keys), 0)
    assert listed[keys[1]] & ADDRESS_FAILED
    assert list(tally.take().addresses[1000]) == [keys[0]]
