from __future__ import annotations

import asyncio
import os
import resource
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from yarl import URL

from atlas_supervisor.model.probe import ProbeResult
from atlas_supervisor.model.verdict import Verdict
from atlas_supervisor.probes.health_probe import (
    INCONCLUSIVE_LIMIT,
    HttpProber,
    health_gate,
)
from atlas_supervisor.probes.http_client import EXCERPT_LIMIT
from tests.unit.supervisor.probes.fakes import (
    Handler,
    answer,
    endless,
    raw,
    reset,
    serve,
    unused_port,
)

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
LONG = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n"


async def probe(
    port: int, *, timeout_seconds: float = 5, expect_instance: str | None = None
) -> ProbeResult:
    async with HttpProber() as prober:
        return await prober.probe(
            port, "/health", timeout_seconds=timeout_seconds, expect_instance=expect_instance
        )


async def test_an_answer_of_2xx_in_time_passes() -> None:
    async with serve(answer(status="204 No Content", body=b"")) as server:
        result = await probe(server.port)
    assert (result.verdict, result.status) == (Verdict.PASS, 204)
    assert result.duration_ms > 0


async def test_a_probe_has_its_header_and_keeps_no_connection() -> None:
    async with serve(answer()) as server, HttpProber() as prober:
        for _ in range(3):
            await prober.probe(server.port, "/health?a=%2F", timeout_seconds=5)
    assert server.connections == 3
    assert all(request.startswith(b"GET /health?a=%2F HTTP/1.1") for request in server.requests)
    assert all(b"\r\nX-Atlas-Probe: 1\r\n" in request for request in server.requests)


async def test_cookies_are_not_taken_along() -> None:
    async with serve(answer(headers="Set-Cookie: a=b\r\n")) as server, HttpProber() as prober:
        for _ in range(2):
            await prober.probe(server.port, "/", timeout_seconds=5)
    assert b"ookie" not in b"".join(server.requests)


async def test_a_header_may_be_as_long_as_a_security_policy() -> None:
    policy = f"Content-Security-Policy: {'https://a.example ' * 2000}\r\n"
    async with serve(answer(headers=policy)) as server:
        assert (await probe(server.port)).verdict is Verdict.PASS


async def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{unused_port()}")
    async with serve(answer()) as server:
        assert (await probe(server.port)).verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("handler", "status", "words"),
    [
        (answer(status="503 Service Unavailable"), 503, "answered 503, expected 2xx"),
        (answer(status="302 Found", headers="Location: /\r\n"), 302, "answered 302"),
        (answer(body=b"x" * 65537), 200, "more than 65536 bytes"),
        (endless(b"x" * 65536, head=LONG), 200, "more than 65536 bytes"),
        (endless(b"3e8\r\n" + b"x" * 1000 + b"\r\n", head=CHUNKED), 200, "more than 65536 bytes"),
        (raw(b""), None, "closed the connection without an answer"),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Len"), None, "closed the connection"),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort"), 200, "broke off"),
        (raw(CHUNKED + b"5\r\nshort\r\n"), 200, "broke off"),
        (raw(CHUNKED + b"zz\r\n"), None, "not HTTP"),
        (raw(b"SSH-2.0-OpenSSH_9.2\r\n"), None, "not HTTP"),
        (raw(b"\x00\x1b[2J\xff" * 5000), None, "not HTTP"),
        (raw(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n"), None, "not HTTP"),
        (endless(b"X: y\r\n", head=b"HTTP/1.1 200 OK\r\n"), None, "not HTTP"),
        (reset, None, "reset the connection"),
    ],
)
async def test_a_broken_answer_fails_in_words(
    handler: Handler, status: int | None, words: str
) -> None:
    async with serve(handler) as server:
        result = await probe(server.port)
    assert result.verdict is Verdict.FAIL
    assert result.status == status
    assert words in result.message
    assert f"port {server.port}, /health: " in result.message
    assert result.message.isprintable()
    assert len(result.message) < 400


@pytest.mark.parametrize(
    ("handler", "words"),
    [
        (raw(b"", hold=True), "no answer within 0.2 s"),
        (raw(b"HTTP/1.1 200 OK\r\n", hold=True), "no answer within 0.2 s"),
        (raw(b"HTTP/1.1 100 Continue\r\n\r\n", hold=True), "no answer within 0.2 s"),
        (raw(LONG, hold=True), "answered 200, but the body did not end within 0.2 s"),
        (endless(b"x", pause_seconds=0.01, head=LONG), "the body did not end within 0.2 s"),
    ],
)
async def test_the_time_covers_the_whole_answer(handler: Handler, words: str) -> None:
    async with serve(handler) as server:
        started = time.monotonic()
        result = await probe(server.port, timeout_seconds=0.2)
        assert time.monotonic() - started < 2
    assert result.verdict is Verdict.FAIL
    assert words in result.message


async def test_a_port_without_a_listener_fails() -> None:
    result = await probe(unused_port())
    assert result.verdict is Verdict.FAIL
    assert "connection refused" in result.message


@pytest.mark.fault(
    "Workers", "a probe answered by the wrong instance", "the probe fails and names it"
)
async def test_an_answer_of_the_wrong_instance_fails_and_names_it() -> None:
    async with serve(answer(headers="X-Atlas-Instance: old\r\n")) as server:
        wrong = await probe(server.port, expect_instance="new")
        right = await probe(server.port, expect_instance="old")
        any_one = await probe(server.port)
    assert wrong.verdict is Verdict.FAIL
    assert "the wrong instance answered: ⟦'old'⟧, expected 'new'" in wrong.message
    assert right.verdict is any_one.verdict is Verdict.PASS


async def test_an_answer_without_a_name_is_taken_from_a_worker_without_the_kit() -> None:
    async with serve(answer()) as server:
        assert (await probe(server.port, expect_instance="new")).verdict is Verdict.PASS


@contextmanager
def no_descriptors_left() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(name) for name in os.listdir("/proc/self/fd"))  # noqa: PTH208 - names are meant
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1, hard))
    blocked = []
    try:
        while True:
            try:
                blocked.append(os.dup(0))
            except OSError:
                break
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in blocked:
            os.close(descriptor)


@pytest.mark.fault(
    "Workers", "the daemon's own failure to probe", "it does not count against the worker"
)
async def test_our_own_lack_of_descriptors_is_not_the_workers_fault() -> None:
    async with serve(answer()) as server, HttpProber() as prober:
        with no_descriptors_left():
            result = await prober.probe(server.port, "/", timeout_seconds=5)
        assert result.verdict is Verdict.INCONCLUSIVE
        assert "the supervisor itself could not connect" in result.message
        assert (await prober.probe(server.port, "/", timeout_seconds=5)).verdict is Verdict.PASS


async def test_our_own_standstill_is_not_the_workers_fault() -> None:
    async with serve(raw(b"", hold=True)) as server:
        asyncio.get_running_loop().call_later(0.05, time.sleep, 1.3)
        result = await probe(server.port, timeout_seconds=0.1)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "stood still" in result.message


async def test_a_cancelled_probe_leaves_no_connection() -> None:
    asked = asyncio.Event()
    gone = asyncio.Event()

    async def go_on_until_hung_up(_request: bytes, writer: asyncio.StreamWriter) -> None:
        asked.set()
        try:
            await endless(b"HTTP/1.1 100 Continue\r\n\r\n", pause_seconds=0.01)(b"", writer)
        finally:
            gone.set()

    async with serve(go_on_until_hung_up) as server, HttpProber() as prober:
        task = asyncio.create_task(prober.probe(server.port, "/", timeout_seconds=30))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(gone.wait(), 5)


async def test_a_prober_is_used_in_its_context_only() -> None:
    with pytest.raises(RuntimeError, match="outside"):
        await HttpProber().probe(1, "/", timeout_seconds=1)


# The gate


def in_turn(*handlers: Handler) -> Handler:
    """Return a handler that answers like each of them once, and like the last from then on."""
    left = list(handlers)

    async def handler(request: bytes, writer: asyncio.StreamWriter) -> None:
        await (left.pop(0) if len(left) > 1 else left[0])(request, writer)

    return handler


async def test_the_gate_passes_after_so_many_probes_in_a_row() -> None:
    async with serve(answer()) as server, HttpProber() as prober:
        started = time.monotonic()
        result = await health_gate(
            prober, server.port, "/", probes=3, interval_seconds=0.05, timeout_seconds=5
        )
        assert time.monotonic() - started >= 0.1
    assert result.verdict is Verdict.PASS
    assert result.message == "3 of 3 probes passed"
    assert len(server.requests) == len(result.probes) == 3


async def test_the_first_failure_ends_the_gate() -> None:
    handler = in_turn(answer(), answer(status="500 No"), answer())
    async with serve(handler) as server, HttpProber() as prober:
        result = await health_gate(
            prober, server.port, "/", probes=3, interval_seconds=0, timeout_seconds=5
        )
    assert result.verdict is Verdict.FAIL
    assert result.message.startswith("probe 2 of 3 failed: ")
    assert len(server.requests) == 2


async def test_the_gate_sees_another_instance() -> None:
    handler = in_turn(
        answer(headers="X-Atlas-Instance: a\r\n"), answer(headers="X-Atlas-Instance: b\r\n")
    )
    async with serve(handler) as server, HttpProber() as prober:
        result = await health_gate(
            prober,
            server.port,
            "/",
            probes=3,
            interval_seconds=0,
            timeout_seconds=5,
            expect_instance="a",
        )
    assert result.verdict is Verdict.FAIL
    assert "'b'" in result.message


async def test_an_inconclusive_probe_is_repeated() -> None:
    shortage = ExitStack()

    class EndsTheShortage(HttpProber):
        async def probe(self, port: int, path: str, **more: Any) -> ProbeResult:
            result = await super().probe(port, path, **more)
            shortage.close()
            return result

    async with serve(answer()) as server, EndsTheShortage() as prober:
        with shortage:
            shortage.enter_context(no_descriptors_left())
            result = await health_gate(
                prober, server.port, "/", probes=2, interval_seconds=0, timeout_seconds=5
            )
    verdicts = [probe.verdict for probe in result.probes]
    assert verdicts == [Verdict.INCONCLUSIVE, Verdict.PASS, Verdict.PASS]
    assert result.verdict is Verdict.PASS


async def test_the_gate_gives_up_when_too_much_came_to_nothing() -> None:
    async with serve(answer()) as server, HttpProber() as prober:
        with no_descriptors_left():
            result = await health_gate(
                prober, server.port, "/", probes=2, interval_seconds=0, timeout_seconds=5
            )
    assert result.verdict is Verdict.INCONCLUSIVE
    assert len(result.probes) == INCONCLUSIVE_LIMIT + 1
    assert "the supervisor itself" in result.message


async def test_a_failing_answer_is_kept_with_the_beginning_of_its_body() -> None:
    body = b'{"status": "fail",\r\n "why": "\x1b[2Jdisk full"}'
    async with serve(answer(body, status="503 Service Unavailable")) as server:
        failed = await probe(server.port)
    async with serve(answer(body)) as server:
        passed = await probe(server.port)
    assert failed.excerpt == '{"status": "fail",\n "why": "\\x1b[2Jdisk full"}'
    assert passed.excerpt is None


@pytest.mark.parametrize("body", [b"x" * 50_000, "\N{GRINNING FACE}".encode() * 700, b"\x00" * 700])
async def test_of_a_long_or_binary_body_little_is_kept(body: bytes) -> None:
    async with serve(answer(body, status="500 Oops")) as server:
        result = await probe(server.port)
    assert result.excerpt is not None
    assert 300 <= len(result.excerpt) <= EXCERPT_LIMIT + 1
    assert result.excerpt.isprintable()
    assert result.excerpt.endswith("…")


async def test_an_answer_without_a_body_has_nothing_to_keep() -> None:
    async with serve(answer(b" \r\n", status="500 Oops")) as server:
        assert (await probe(server.port)).excerpt is None


BROKEN = b'{"checks": {"memory": {"status": "fail", "message": "it is full"}}}'


async def test_a_response_that_reports_a_failure_fails_with_its_text() -> None:
    async with serve(answer(BROKEN)) as server, HttpProber() as prober:
        result = await prober.probe(server.port, "/", timeout_seconds=5, gate=True)
    assert (result.verdict, result.status) == (Verdict.FAIL, 200)
    assert result.message.endswith("/: answered 200, and reports: memory failed: ⟦it is full⟧")
    assert result.excerpt == BROKEN.decode()


async def test_a_response_with_another_status_fails_with_its_reported_failure() -> None:
    broken = answer(BROKEN, status="503 Service Unavailable")
    async with serve(broken) as server, HttpProber() as prober:
        result = await prober.probe(server.port, "/", timeout_seconds=5, gate=True)
    assert result.message.endswith("answered 503, expected 2xx: memory failed: ⟦it is full⟧")


async def test_the_gate_fails_at_the_first_probe_that_complains() -> None:
    async with serve(answer(BROKEN)) as server, HttpProber() as prober:
        gate = await health_gate(
            prober,
            server.port,
            "/",
            probes=3,
            interval_seconds=0,
            timeout_seconds=5,
        )
    assert gate.verdict is Verdict.FAIL
    assert len(gate.probes) == 1
    assert "reports: memory failed" in gate.message


async def test_a_response_of_another_instance_is_not_returned() -> None:
    handler = answer(b"fine", headers="X-Atlas-Instance: a\r\n")
    async with serve(handler) as server, HttpProber() as prober:
        right = await prober.probe_response(
            server.port, "/", timeout_seconds=5, expect_instance="a"
        )
        wrong = await prober.probe_response(
            server.port, "/", timeout_seconds=5, expect_instance="b"
        )
    assert right.response is not None
    assert right.response.body == b"fine"
    assert (wrong.response, wrong.result.verdict) == (None, Verdict.FAIL)


async def test_a_probe_via_another_address_sends_the_same_request() -> None:
    async with serve(answer()) as own, serve(answer()) as other, HttpProber() as prober:
        await prober.probe_response(own.port, "/health", timeout_seconds=5)
        look = await prober.probe_response(
            own.port, "/health", timeout_seconds=5, via=URL(other.url)
        )
    assert other.requests == own.requests
    assert f"port {other.port}, /health" in look.result.message


async def test_a_worker_that_is_still_starting_is_probed_again_until_it_answers() -> None:
    seen: list[bytes] = []

    async def handler(request: bytes, writer: asyncio.StreamWriter) -> None:
        seen.append(request)
        if len(seen) == 1:
            return  # closed without an answer
        await (asyncio.Event().wait() if len(seen) == 2 else answer()(request, writer))

    async with serve(handler) as server, HttpProber() as prober:
        result = await health_gate(
            prober,
            server.port,
            "/",
            probes=2,
            interval_seconds=0,
            timeout_seconds=0.2,
            still_starting=lambda: True,
        )
    assert result.verdict is Verdict.PASS
    assert len(result.probes) == 2


@pytest.mark.parametrize("status", ["500 No", "404 No"])
async def test_a_worker_that_is_still_starting_fails_by_an_answer(status: str) -> None:
    async with serve(answer(status=status)) as server, HttpProber() as prober:
        result = await health_gate(
            prober,
            server.port,
            "/",
            probes=1,
            interval_seconds=0,
            timeout_seconds=5,
            still_starting=lambda: True,
        )
    assert result.verdict is Verdict.FAIL
    assert len(server.requests) == 1


async def test_a_worker_that_has_passed_once_is_no_longer_starting() -> None:
    count = 0

    async def handler(request: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        count += 1
        if count == 1:
            await answer()(request, writer)

    async with serve(handler) as server, HttpProber() as prober:
        result = await health_gate(
            prober,
            server.port,
            "/",
            probes=2,
            interval_seconds=0,
            timeout_seconds=5,
            still_starting=lambda: True,
        )
    assert result.verdict is Verdict.FAIL
    assert [each.verdict for each in result.probes] == [Verdict.PASS, Verdict.FAIL]
