"""Reading logs while they are rotated, truncated and flooded, without a daemon."""

from __future__ import annotations

import json
import logging
import os
import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atlas_supervisor.logs import log_reader
from atlas_supervisor.logs.lines import CHUNK_BYTES, LineSplitter, RawLine, read_backwards
from atlas_supervisor.logs.log_reader import LogReader, show_own_line, show_worker_line
from atlas_supervisor.logs.rotation import RenamedLog, TruncatedLog
from atlas_supervisor.model.log import LogLevel, WantedLines
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.telemetry import handlers
from atlas_supervisor.telemetry.handlers import LogFile
from atlas_supervisor.workers import output
from atlas_supervisor.workers.output import WorkerLog

EVERY = WantedLines()


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerLog]:
    monkeypatch.setattr(output, "LIMIT_BYTES", 1000)
    made = WorkerLog(tmp_path / "logs" / "worker-blue.log", SlotName.BLUE)
    made.path.parent.mkdir()
    yield made
    for instance in ("blue-1", "blue-2"):
        made.close(instance)


def of_worker(log: WorkerLog, wanted: WantedLines = EVERY) -> LogReader:
    return LogReader(TruncatedLog(log), show_worker_line(wanted), longest=100, gap="GAP")


def of_daemon(path: Path, wanted: WantedLines = EVERY) -> LogReader:
    return LogReader(RenamedLog(path), show_own_line(wanted), longest=10_000, gap="GAP")


def last(reader: LogReader, lines: int = 100, *, unfinished: bool = True) -> list[str]:
    return [line.text for line in reader.last(lines, unfinished=unfinished)]


def rest(reader: LogReader) -> list[str]:
    """Return all new lines."""
    found, more = [], True
    while more:
        lines, more = reader.more()
        found += [line.text for line in lines]
    return found


def say(log: WorkerLog, text: bytes) -> None:
    with log.path.open("ab", buffering=0) as stream:
        stream.write(text)


# Splitting bytes into lines.


@pytest.mark.parametrize("seed", range(20))
def test_reading_forwards_and_backwards_finds_the_same_lines(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311  # not for secrets
    size = chance.choice((0, 1, 50, CHUNK_BYTES, 3 * CHUNK_BYTES + 7))
    data = bytes(chance.choices(b"ab\n", weights=(90, 1, chance.choice((0.01, 1, 50))), k=size))
    path = tmp_path / "f"
    path.write_bytes(data)
    *ended, unfinished = data.split(b"\n")
    with path.open("rb") as file:
        found = list(read_backwards(file.fileno(), size, 10))[::-1]
    expected = [*ended, unfinished] if unfinished else ended
    assert [(line.head, line.length) for line in found] == [(e[:10], len(e)) for e in expected]
    assert [line.ended for line in found].count(False) == bool(unfinished)
    splitter, position = LineSplitter(10), 0
    forwards: list[RawLine] = []
    while position < size:
        step = chance.randint(1, CHUNK_BYTES)
        forwards += splitter.feed(data[position : position + step])
        position += step
    assert [(f.head, f.length, f.end) for f in forwards] == [
        (f.head, f.length, f.end) for f in found if f.ended
    ]


def test_a_line_of_a_hundred_megabytes_is_read_in_bounded_memory(tmp_path: Path) -> None:
    log = WorkerLog(tmp_path / "worker-blue.log", SlotName.BLUE)
    say(log, b"first\n")
    os.truncate(log.path, 100_000_000)  # NUL bytes, as a reader sees them
    say(log, b"\nlast\n")
    tracemalloc.start()
    try:
        reader = LogReader(TruncatedLog(log), show_worker_line(EVERY), longest=8192, gap="GAP")
        found = last(reader, 3)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000
    assert [found[0], found[2]] == ["first", "last"]
    assert found[1] == "\\x00" * 8192 + " …[99999994 bytes in all]"


# Filtered lines.


def test_a_workers_line_is_printable_and_bounded(log: WorkerLog) -> None:
    say(log, b"\x1b[31mred\t\x00\xff\xe2\x80\xa8end\r\n" + b"x" * 500 + b"\n\nunfinished")
    assert last(of_worker(log)) == [
        "\\x1b[31mred\t\\x00\ufffd\\u2028end",
        "x" * 100 + " …[500 bytes in all]",
        "",
        "unfinished",
    ]
    assert last(of_worker(log, WantedLines(contains="red")), 5) == [
        "\\x1b[31mred\t\\x00\ufffd\\u2028end"
    ]


def own(**fields: Any) -> str:
    return json.dumps({"ts": "t", "level": "info", "event": "e", **fields})


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (EVERY, [0, 1, 2, 3]),
        (WantedLines(level=LogLevel.WARNING), [1, 3]),
        (WantedLines(deploy_id="d1"), [0, 1]),
        (WantedLines(slot=SlotName.GREEN), [2]),
        (WantedLines(contains="pid=7"), [2]),
        (WantedLines(contains='"pid": 7'), [2]),
        (WantedLines(deploy_id="d1", level=LogLevel.ERROR), [1]),
        (WantedLines(contains="nowhere"), []),
    ],
)
def test_all_conditions_of_a_filter_must_hold(
    tmp_path: Path, wanted: WantedLines, found: list[int]
) -> None:
    lines = [
        own(deploy_id="d1"),
        own(deploy_id="d1", level="error"),
        own(slot="green", pid=7),
        own(level="critical"),
    ]
    path = tmp_path / "supervisor.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines))
    assert last(of_daemon(path, wanted)) == [lines[n] for n in found]


def test_a_line_that_is_not_json_is_wrapped_in_json(tmp_path: Path) -> None:
    path = tmp_path / "supervisor.jsonl"
    path.write_bytes(
        b'{"half": "a line of which the end is missing\n[1]\n\xff\x00\n' + b"[" * 5000 + b"\n"
    )
    found = [json.loads(line) for line in last(of_daemon(path))]
    assert [each["event"] for each in found] == ["log_line_unreadable"] * 4
    assert found[0]["text"] == '{"half": "a line of which the end is missing'
    assert found[2]["text"] == "\ufffd\\x00"


def test_returned_and_searched_text_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_reader, "MAX_HISTORY", 1000)
    monkeypatch.setattr(log_reader, "MAX_SEARCHED_BYTES", 5000)
    log = WorkerLog(tmp_path / "worker-blue.log", SlotName.BLUE)
    say(log, b"only here\n" + b"x" * 99 + b"\n" * 1 + (b"y" * 99 + b"\n") * 100)
    assert (
        10
        <= len(last(LogReader(TruncatedLog(log), show_worker_line(EVERY), longest=100, gap="")))
        < 15
    )
    assert last(of_worker(log, WantedLines(contains="only here"))) == []


# Following.


def test_a_missing_log_is_followed_from_its_start(log: WorkerLog) -> None:
    reader = of_worker(log)
    assert last(reader) == []
    assert rest(reader) == []
    say(log, b"one\ntwo\n")
    assert rest(reader) == ["one", "two"]


def test_a_reader_does_not_wait_for_a_fifo_in_place_of_a_log(log: WorkerLog) -> None:
    os.mkfifo(log.path)
    for reader in (of_worker(log), of_daemon(log.path)):
        with pytest.raises(OSError, match="not a regular file"):
            last(reader)


def test_a_line_is_returned_once_it_is_complete(log: WorkerLog) -> None:
    say(log, b"one\nhal")
    reader = of_worker(log)
    assert last(reader, unfinished=False) == ["one"]
    assert rest(reader) == []
    say(log, b"f\n")
    assert rest(reader) == ["half"]


def test_no_line_is_lost_or_repeated_while_the_file_is_truncated(log: WorkerLog) -> None:
    reader, written, seen = of_worker(log), [], []
    descriptor = log.open("blue-1")
    for number in range(400):
        line = f"line {number} {'x' * (number % 90)}"
        written.append(line)
        half = len(line) // 2
        os.write(descriptor, line[:half].encode())  # a truncation may come between
        if number % 3 == 0:
            log.rotate()
        os.write(descriptor, line[half:].encode() + b"\n")
        if number % 7 == 0:
            seen += rest(reader)
    os.close(descriptor)
    assert seen + rest(reader) == written


def test_lines_truncated_twice_before_they_were_read_are_a_gap(log: WorkerLog) -> None:
    say(log, b"one\n")
    reader = of_worker(log)
    assert last(reader) == ["one"]
    for text in (b"lost", b"kept", b"new"):
        say(log, text + b"\n" + b"x" * 50 + b"\n" * 960 if text != b"new" else b"new\n")
        log.rotate()
    found = rest(reader)
    assert found[0] == "GAP"
    assert found[-1] == "new"
    assert "lost" not in found


def test_a_file_emptied_by_another_program_is_read_from_its_start(log: WorkerLog) -> None:
    say(log, b"one\ntwo\n")
    reader = of_worker(log)
    last(reader)
    log.path.write_bytes(b"new\n")
    assert rest(reader) == ["GAP", "new"]


def handler(path: Path, monkeypatch: pytest.MonkeyPatch) -> LogFile:
    monkeypatch.setattr(handlers, "FILE_BYTES", 300)
    made = LogFile(path, on_failure=lambda error: pytest.fail(str(error)))
    made.setFormatter(logging.Formatter("%(message)s"))
    return made


def write(file: LogFile, number: int) -> str:
    text = own(ts=f"2026-01-05T09:30:00.{number:06}Z", number=number)
    file.handle(logging.LogRecord("t", logging.INFO, "f", 1, text, (), None))
    return text


@pytest.mark.fault("Logs", "rotation while a reader follows", "the reader misses no line")
def test_the_daemons_log_is_followed_across_rotation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = handler(tmp_path / "supervisor.jsonl", monkeypatch)
    reader, written, seen = of_daemon(tmp_path / "supervisor.jsonl"), [], []
    for number in range(300):
        written.append(write(file, number))
        if number % 9 == 0:
            seen += rest(reader)
    file.close()
    assert seen + rest(reader) == written
    assert (tmp_path / "supervisor.jsonl.4").exists()
    assert last(of_daemon(tmp_path / "supervisor.jsonl"), 12) == written[-12:]  # over several files


def test_lines_rotated_out_before_they_were_read_are_a_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = handler(tmp_path / "supervisor.jsonl", monkeypatch)
    first = write(file, 0)
    reader = of_daemon(tmp_path / "supervisor.jsonl")
    assert last(reader) == [first]
    written = [write(file, number) for number in range(1, 200)]
    file.close()
    gap, *found = rest(reader)
    assert gap == "GAP"
    assert found == written[-len(found) :]
    assert len(found) > 10


# Resuming.


def test_a_cursor_resumes_at_the_next_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = handler(tmp_path / "supervisor.jsonl", monkeypatch)
    written = [write(file, number) for number in range(13)]
    for line in of_daemon(tmp_path / "supervisor.jsonl").last(100, unfinished=True):
        again = of_daemon(tmp_path / "supervisor.jsonl")
        assert again.resume(line.cursor) == []
        assert rest(again) == written[written.index(line.text) + 1 :]
    file.close()


def test_a_cursor_is_valid_for_the_next_daemon(log: WorkerLog) -> None:
    say(log, b"one\ntwo\nthree\n")
    cursors = [line.cursor for line in of_worker(log).last(9, unfinished=True)]
    after_restart = WorkerLog(log.path, SlotName.BLUE)
    assert after_restart.generation != log.generation
    reader = of_worker(after_restart)
    assert reader.resume(cursors[0]) == []
    assert rest(reader) == ["two", "three"]


def test_a_cursor_whose_lines_are_lost_gives_a_gap(log: WorkerLog) -> None:
    say(log, b"one\n")
    (line,) = of_worker(log).last(9, unfinished=True)
    log.path.write_bytes(b"other\nlines\n")
    reader = of_worker(log)
    (note,) = reader.resume(line.cursor)
    assert note.gap
    assert rest(reader) == ["other", "lines"]


@pytest.mark.parametrize(
    "cursor", ["0-0-0", "1-99999999999999999999-3", "18446744073709551615-4-0"]
)
def test_an_unknown_cursor_gives_a_gap(log: WorkerLog, cursor: str) -> None:
    say(log, b"one\n")
    reader = of_worker(log)
    assert [line.gap for line in reader.resume(cursor)] == [True]
    assert rest(reader) == ["one"]


# Files that another program removes, renames or replaces.


@pytest.mark.parametrize("way", ["rm", "mv"])
def test_a_reader_of_a_worker_s_log_goes_on_without_a_gap(log: WorkerLog, way: str) -> None:
    descriptor = log.open("blue-1")
    os.write(descriptor, b"x" * 1100 + b"\nread before\n")
    assert log.rotate()  # there is an older part, which must not be read again
    os.write(descriptor, b"seen\n")
    reader = of_worker(log)
    assert last(reader)[-1] == "seen"
    assert rest(reader) == []
    assert not log.has_strayed()
    log.path.unlink() if way == "rm" else log.path.rename(log.path.with_name("moved"))
    assert rest(reader) == []
    for text in (b"one\n", b"two\n"):
        os.write(descriptor, text)
        log.collect()
    assert rest(reader) == ["one", "two"]
    os.write(descriptor, b"three\n")
    log.collect()
    assert rest(reader) == ["three"]
    os.close(descriptor)


@pytest.mark.parametrize("way", ["rm", "mv"])
def test_a_reader_of_the_daemon_s_log_goes_on_and_reads_no_older_file_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(handlers, "FILE_BYTES", 300)
    path = tmp_path / "supervisor.jsonl"
    file = LogFile(path, on_failure=lambda _: None)

    def write(name: str) -> None:
        text = json.dumps({"ts": "2026-11-26T23:46:49.893775Z", "event": name, "text": "x" * 60})
        file.emit(logging.LogRecord("t", logging.INFO, "f", 1, text, None, None))

    for number in range(9):
        write(f"{number}")
    assert (tmp_path / "supervisor.jsonl.2").exists()
    reader = of_daemon(path)
    last(reader)
    assert rest(reader) == []
    path.unlink() if way == "rm" else path.rename(tmp_path / "moved")
    assert rest(reader) == []
    write("after")
    found = [line for line in rest(reader) if line != "GAP"]
    assert [json.loads(line)["event"] for line in found][:1] == ["after"]
    file.close()
