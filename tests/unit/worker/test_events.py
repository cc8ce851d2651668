from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_worker.events import EventBoundary, is_event_stream


@pytest.mark.parametrize(
    ("method", "content_type", "stream"),
    [
        ("GET", "text/event-stream", True),
        ("GET", "Text/Event-Stream; charset=utf-8", True),
        ("POST", "text/event-stream", False),
        ("HEAD", "text/event-stream", False),
        ("GET", "text/plain", False),
    ],
)
def test_an_event_stream_is_recognized_by_method_and_type(
    method: str, content_type: str, stream: bool
) -> None:
    assert is_event_stream(method, content_type) is stream


@given(lines=st.lists(st.sampled_from(["data: x", ""])), end=st.sampled_from(["\n", "\r\n", "\r"]))
def test_a_boundary_is_a_blank_line_however_the_bytes_are_cut(lines: list[str], end: str) -> None:
    whole, single = EventBoundary(), EventBoundary()
    data = "".join(line + end for line in lines).encode()
    whole.feed(data)
    for byte in data:
        single.feed(bytes([byte]))
    assert whole.reached is single.reached is (not lines or lines[-1] == "")


def test_a_partial_line_is_not_a_boundary() -> None:
    boundary = EventBoundary()
    boundary.feed(b"data: x\n\ndata")
    assert not boundary.reached
