from __future__ import annotations

import logging
import os
from datetime import datetime
from pathlib import Path

import pytest
import structlog

from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.telemetry import handlers
from atlas_supervisor.telemetry.logging_setup import configure_logs
from tests.unit.supervisor.support import fill, mounted
from tests.unit.supervisor.telemetry.support import lines


def on_console(capfd: pytest.CaptureFixture[str]) -> str:
    """Return all output on standard error."""
    for handler in logging.getLogger().handlers:
        handler.flush()
    return capfd.readouterr().err


def test_a_line_has_the_fields_of_the_contract(path: Path) -> None:
    structlog.get_logger("t").info("worker_ready", slot=SlotName.BLUE, pid=12, deploy_id="d1")
    (line,) = lines(path)
    moment = datetime.fromisoformat(line.pop("ts"))
    assert moment.utcoffset() is not None
    expected = {"level": "info", "event": "worker_ready", "slot": "blue", "pid": 12}
    assert line == {**expected, "deploy_id": "d1"}


def test_libraries_log_to_the_same_file(path: Path) -> None:
    logging.getLogger("some.library").warning("it is %s", "late")
    logging.getLogger("asyncio").info("chatter")
    (line,) = lines(path)
    assert (line["event"], line["level"]) == ("it is late", "warning")


def test_lines_below_the_level_are_left_out(path: Path) -> None:
    log = structlog.get_logger("t")
    log.debug("small")
    log.error("large")
    assert [line["event"] for line in lines(path)] == ["large"]


def test_control_characters_are_escaped_in_file_and_console(
    path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    evil = "\x1b[31mred\x07\r\nforged line\x00\x9b"
    log = structlog.get_logger("t")
    log.error("said", text=evil, many=[evil])
    logging.getLogger("library").error(evil)
    try:
        raise ValueError(evil)
    except ValueError:
        log.exception("failed")
    shown = on_console(capfd)
    for text in (path.read_text(), shown):
        assert not any(character in text for character in "\x1b\x07\r\x00\x9b")
    assert "\nforged line" not in path.read_text()
    assert lines(path)[0]["text"] == "\\x1b[31mred\\x07\\r\\nforged line\\x00\\x9b"
    traceback = lines(path)[2]["exception"]
    assert traceback.startswith("Traceback (most recent call last):\n")
    assert "Traceback (most recent call last):\n" in shown


def test_values_unknown_to_JSON_are_logged_as_text(path: Path) -> None:
    structlog.get_logger("t").info("odd", where=Path("/x"), what={1, 2}, text="\udcff")
    (line,) = lines(path)
    assert "/x" in line["where"]


def test_the_files_are_bounded_and_readable_by_the_group_at_most(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers, "FILE_BYTES", 5000)
    monkeypatch.setattr(handlers, "FILES_KEPT", 2)
    before = os.umask(0)
    try:
        configure_logs(path, "info")
        for number in range(500):
            structlog.get_logger("t").info("flood", number=number)
    finally:
        os.umask(before)
    found = {each.name: each.stat() for each in path.parent.iterdir()}
    assert set(found) == {f"supervisor.jsonl{suffix}" for suffix in ("", ".1", ".2")}
    assert all(each.st_size <= 5000 for each in found.values())
    assert all(each.st_mode & 0o777 == 0o640 for each in found.values())
    assert lines(path)[-1]["number"] == 499


def test_configuring_twice_does_not_duplicate_lines(path: Path) -> None:
    configure_logs(path, "info")
    configure_logs(path, "info")
    structlog.get_logger("t").info("once")
    assert len(lines(path)) == 1


@pytest.mark.needs_root
def test_a_full_disk_loses_whole_lines_and_the_loss_is_logged(
    path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with mounted(tmp_path / "disk", "size=32k") as disk:
        configure_logs(disk / "supervisor.jsonl", "info")
        filler = fill(disk)
        for _ in range(3):
            structlog.get_logger("t").info("while it is full", text="x" * 10_000)
        (report,) = [line for line in on_console(capfd).splitlines() if "No space" in line]
        assert "[error    ] log_line_not_written file=supervisor.jsonl error=" in report
        filler.unlink()
        structlog.get_logger("t").info("written")
        written, lost = lines(disk / "supervisor.jsonl")
        assert written["event"] == "written"
        assert (lost["event"], lost["lines"]) == ("log_lines_lost", 3)
        configure_logs(path, "info")  # nothing is open on that disk any more


def test_a_missing_folder_raises_and_leaves_the_log_as_it_was(tmp_path: Path, path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        configure_logs(tmp_path / "gone" / "supervisor.jsonl", "info")
    structlog.get_logger("t").info("still here")
    assert len(lines(path)) == 1


@pytest.mark.parametrize("way", ["rm", "mv", "replace", "logrotate", "folder"])
def test_a_file_that_lost_its_name_is_replaced_and_that_is_logged_once(
    path: Path, way: str
) -> None:
    log = structlog.get_logger("t")
    log.info("before")
    moved = path.with_name("moved")
    if way == "rm":
        path.unlink()
    elif way == "replace":
        other = path.with_name("other")
        other.touch()
        other.replace(path)
    elif way == "folder":
        path.parent.rename(path.parent.with_name("moved"))
    else:
        path.rename(moved)
        if way == "logrotate":
            path.touch()
    for number in range(3):
        log.info(f"after {number}")
    events = [line["event"] for line in lines(path)]
    assert events == ["after 0", "log_file_replaced", "after 1", "after 2"]
    if moved.exists():
        assert [line["event"] for line in lines(moved)] == ["before"]


def test_lines_are_kept_while_a_file_of_the_name_can_t_be_opened(path: Path) -> None:
    log = structlog.get_logger("t")
    moved = path.with_name("moved")
    path.rename(moved)
    path.mkdir()
    log.info("one")
    log.info("two")
    path.rmdir()
    log.info("three")
    kept = [line["event"] for line in lines(moved)]
    assert kept == ["one", "log_file_displaced", "two"]  # it is logged once
    assert [line["event"] for line in lines(path)] == ["three", "log_file_replaced"]


@pytest.mark.parametrize("number", [1, 2, handlers.FILES_KEPT])
def test_a_folder_with_the_name_of_an_older_file_stops_no_line(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(handlers, "FILE_BYTES", 1000)
    (handlers.older(path, number) / "full").mkdir(parents=True)
    for count in range(200):
        structlog.get_logger("t").info(f"line {count}")
        assert lines(path)[-1]["event"] == f"line {count}"
        assert path.stat().st_size <= 1000
