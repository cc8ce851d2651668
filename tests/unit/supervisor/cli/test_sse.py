"""Parsing of server-sent events."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_supervisor.cli.sse import EventReader, OverlongError, ServerEvent


def read(*pieces: bytes, reader: EventReader | None = None) -> list[ServerEvent]:
    reader = reader or EventReader()
    return [event for piece in pieces for event in reader.feed(piece)]


def messages(*data: str) -> list[ServerEvent]:
    return [ServerEvent("message", text) for text in data]


def test_an_event_has_kind_data_and_id() -> None:
    reader = EventReader()
    events = read(b'id: 7\nevent: transition\ndata: {"a":1}\n\n', reader=reader)
    assert events == [ServerEvent("transition", '{"a":1}')]
    assert reader.last_id == "7"


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_lines_end_in_any_of_three_ways(end: bytes) -> None:
    lines = [b"data: one", b"data: two", b"", b"data: three", b"", b""]
    assert read(end.join(lines)) == messages("one\ntwo", "three")


def test_a_split_crlf_is_one_line_end() -> None:
    assert read(b"data: a\r", b"\ndata: b\r", b"\n\r", b"\n") == messages("a\nb")


def test_an_event_is_complete_at_its_blank_line_even_with_cr() -> None:
    assert read(b"data: a\r\r") == messages("a")


def test_characters_can_be_split_and_invalid_utf_8_is_replaced() -> None:
    assert read(b"data: \xf0\x9f", b"\x98\x80\n\n") == messages("\N{GRINNING FACE}")
    assert read(b"data: \xff!\n\n") == messages("\ufffd!")


def test_a_byte_order_mark_is_removed_at_the_start_only() -> None:
    assert read(b"\xef\xbb", b"\xbfdata: a\n\n") == messages("a")


def test_one_space_after_the_colon_is_removed() -> None:
    assert read(b"data:a\n\ndata:  b\n\ndata\n\n") == messages("a", " b", "")


def test_the_kind_lasts_for_one_event_and_the_id_until_the_next_id() -> None:
    reader = EventReader("3")
    events = read(b"event: x\ndata: a\n\n", b"data: b\n\n", reader=reader)
    assert [event.kind for event in events] == ["x", "message"]
    assert reader.last_id == "3"


def test_a_block_without_data_sets_the_id_only() -> None:
    reader = EventReader()
    assert read(b"retry: 1500\nid: 41\n\n", reader=reader) == []
    assert (reader.last_id, reader.retry_seconds) == ("41", 1.5)


def test_an_id_counts_only_once_its_block_has_ended() -> None:
    reader = EventReader("1")
    assert read(b"id: 2\ndata: half", reader=reader) == []
    assert reader.last_id == "1"


def test_an_empty_id_resets_and_one_with_nul_is_ignored() -> None:
    reader = EventReader("1")
    read(b"id: 2\0\n\n", reader=reader)
    assert reader.last_id == "1"
    read(b"id\n\n", reader=reader)
    assert reader.last_id == ""


@pytest.mark.parametrize("value", [b"", b"-1", b"1.5", b"soon", b"\xb2", b"9" * 20])
def test_an_invalid_retry_time_is_ignored(value: bytes) -> None:
    reader = EventReader()
    read(b"retry: " + value + b"\n\n", reader=reader)
    assert reader.retry_seconds is None


def test_comments_and_unknown_fields_are_no_events_and_comments_are_counted() -> None:
    reader = EventReader()
    assert read(b": still here\n\nfuture: x\n:\n\n", reader=reader) == []
    assert reader.comments == 2


def test_an_endless_line_is_refused() -> None:
    reader = EventReader(max_bytes=100)
    with pytest.raises(OverlongError, match="a line of over 100 bytes"):
        read(*[b"data: 0123"] * 20, reader=reader)


def test_an_endless_event_is_refused() -> None:
    reader = EventReader(max_bytes=100)
    with pytest.raises(OverlongError, match="an event of over 100 bytes"):
        read(*[b"data: 0123\n", b"data\n"] * 20, reader=reader)


LINES = st.one_of(
    st.sampled_from([b"", b"", b":", b": x", b"id: 5", b"id", b"event: e", b"retry: 7", b"data"]),
    st.binary(max_size=6).map(b"data: ".__add__),
    st.text(max_size=4).map(lambda text: f"data:{text}".encode()),
    st.binary(max_size=8),
)
STREAMS = st.lists(
    st.tuples(LINES, st.sampled_from([b"\n", b"\r", b"\r\n"])).map(b"".join), max_size=12
).map(b"".join)


def outcome(pieces: list[bytes]) -> tuple[list[ServerEvent], bool, str, int, float | None]:
    """Return all that a reader tells of a stream, in these pieces."""
    reader = EventReader(max_bytes=24)
    events: list[ServerEvent] = []
    overlong = False
    try:
        for piece in pieces:
            for event in reader.feed(piece):  # one by one: the next line may be too long
                events.append(event)  # noqa: PERF402 - extend() would lose them then
    except OverlongError:
        overlong = True
    return events, overlong, reader.last_id, reader.comments, reader.retry_seconds


@given(stream=STREAMS, cuts=st.lists(st.integers(0, 200), max_size=12))
def test_events_do_not_depend_on_the_split_of_the_stream(stream: bytes, cuts: list[int]) -> None:
    marks = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    pieces = [stream[begin:end] for begin, end in itertools.pairwise(marks)]
    assert outcome(pieces) == outcome([stream])
    assert outcome([bytes([byte]) for byte in stream]) == outcome([stream])
