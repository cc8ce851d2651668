from __future__ import annotations

import struct

import pytest

from atlas_supervisor.system.tcp_info import awaits_answer


def info(*, segments: tuple[int, int], sent_ms: int, received_ms: int) -> bytes:
    """Return a `struct tcp_info` with these segments (received, sent) and times."""
    data = bytearray(160)
    struct.pack_into("=I", data, 44, sent_ms)
    struct.pack_into("=I", data, 52, received_ms)
    struct.pack_into("=II", data, 152, *segments)
    return bytes(data)


@pytest.mark.parametrize(
    ("segments", "sent_ms", "received_ms", "pending"),
    [
        pytest.param((0, 0), 100, 100, True, id="a client that has just connected"),
        pytest.param((0, 0), 2000, 2000, False, id="a client that never sent a request"),
        pytest.param((1, 0), 2000, 2000, True, id="a request without any answer"),
        pytest.param((3, 3), 5000, 2000, True, id="a request after the last answer"),
        pytest.param((3, 3), 100, 2000, True, id="an answer that may go on"),
        pytest.param((3, 3), 2000, 2500, False, id="an answer that was given"),
    ],
)
def test_a_pending_answer_is_seen_from_segments_and_times(
    segments: tuple[int, int], sent_ms: int, received_ms: int, pending: bool
) -> None:
    found = info(segments=segments, sent_ms=sent_ms, received_ms=received_ms)
    assert awaits_answer(found, quiet_seconds=1) is pending


@pytest.mark.parametrize("missing", [None, bytes(100)])
def test_without_the_information_an_answer_counts_as_pending(missing: bytes | None) -> None:
    assert awaits_answer(missing, quiet_seconds=1)
