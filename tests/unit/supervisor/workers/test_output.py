from __future__ import annotations

import asyncio
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog

from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.workers import output
from atlas_supervisor.workers.output import WorkerLog, keep_bounded, printable
from tests.harness import eventually
from tests.unit.supervisor.support import fill, mounted


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerLog]:
    monkeypatch.setattr(output, "LIMIT_BYTES", 1000)
    made = WorkerLog(tmp_path / "logs" / "worker-blue.log", SlotName.BLUE)
    made.path.parent.mkdir()
    yield made
    for instance in ("blue-1", "blue-2"):
        made.close(instance)


def say(log: WorkerLog, *texts: bytes) -> int:
    descriptor = log.open("blue-1")
    for text in texts:
        os.write(descriptor, text)
    return descriptor


def test_the_last_lines_are_those_of_this_instance(log: WorkerLog) -> None:
    os.close(say(log, b"old\n"))
    os.close(say(log, b"".join(b"line %d\n" % number for number in range(30))))
    assert log.last_lines(3) == ["line 27", "line 28", "line 29"]
    assert len(log.last_lines()) == 20
    os.close(say(log))
    assert log.last_lines() == []


def test_there_are_no_lines_before_the_first_launch(log: WorkerLog) -> None:
    assert log.last_lines() == []
    assert not log.rotate()


def test_a_file_below_its_limit_is_left_alone(log: WorkerLog) -> None:
    os.close(say(log, b"x" * 1000))
    assert not log.rotate()
    assert log.path.stat().st_size == 1000


def test_a_full_file_is_cut_and_its_last_part_kept(log: WorkerLog) -> None:
    descriptor = say(log, b"a" * 2500, b"b" * 699 + b"\n")
    assert log.rotate()
    assert (log.path.parent / "worker-blue.log.1").read_bytes() == b"a" * 300 + b"b" * 699 + b"\n"
    os.write(descriptor, b"after\n")  # the same descriptor writes on, from the beginning
    os.close(descriptor)
    assert log.path.read_bytes() == b"after\n"
    assert log.last_lines() == ["a" * 300 + "b" * 200 + "…", "after"]  # a moment ago it was there


def test_a_following_reader_sees_lines_after_the_cut(log: WorkerLog) -> None:
    descriptor = say(log, b"x" * 1500 + b"\n")
    command = ["tail", "-n", "1", "-f", str(log.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as tail:
        assert tail.stdout is not None
        assert tail.stderr is not None
        try:
            assert tail.stdout.readline() == b"x" * 1500 + b"\n"
            os.write(descriptor, b"before the cut\n")
            assert tail.stdout.readline() == b"before the cut\n"
            assert log.rotate()
            assert b"truncated" in tail.stderr.readline()
            os.write(descriptor, b"after the cut\n")
            assert tail.stdout.readline() == b"after the cut\n"
        finally:
            tail.kill()
    os.close(descriptor)


def test_both_files_are_for_the_group_at_most(log: WorkerLog) -> None:
    before = os.umask(0)
    try:
        os.close(say(log, b"x" * 2000))
        log.rotate()
    finally:
        os.umask(before)
    for path in (log.path, log.path.with_name("worker-blue.log.1")):
        assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.needs_root
def test_a_part_that_cannot_be_kept_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "LIMIT_BYTES", 1000)
    with mounted(tmp_path / "disk", "size=32k") as disk:
        log = WorkerLog(disk / "worker-blue.log", SlotName.BLUE)
        os.close(say(log, b"x" * 2000))
        filler = fill(disk)
        assert log.rotate() == 2000
        assert (log.size(), log.aside.exists()) == (0, False)
        filler.unlink()
        log.close("blue-1")


def test_a_flood_is_cut_to_its_end_and_logged_once(
    log: WorkerLog, capsys: pytest.CaptureFixture[str]
) -> None:
    descriptor = log.open("blue-1")
    for number in range(5):
        os.write(descriptor, b"\0" * 50_000 + b"%d" % number)
        assert log.rotate() == 50_001
        assert log.aside.stat().st_size == 1000
    os.close(descriptor)
    assert capsys.readouterr().out.count("worker_log_cut") == 1


def test_a_writer_that_keeps_its_offset_is_not_cut_again_and_again(
    log: WorkerLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "LIMIT_BYTES", 20_000)  # some pages: a hole has no parts of them
    log.path.touch()
    with log.path.open("wb", buffering=0) as stream:  # as `open("/dev/stdout", "w")` does
        stream.write(b"x" * 100_000)
        assert log.rotate()
        stream.write(b"after\n")
        assert log.path.stat().st_size > 100_000
        assert not log.rotate()  # there is nothing in it but a hole


async def test_a_log_that_grew_without_a_daemon_is_cut_at_once(log: WorkerLog) -> None:
    log.path.write_bytes(b"x" * 5000)
    looking = asyncio.create_task(keep_bounded([log]))
    await eventually(lambda: log.size() == 0)
    looking.cancel()
    assert log.aside.stat().st_size == 1000


def test_a_file_that_cannot_be_cut_is_no_reason_to_fail(log: WorkerLog, tmp_path: Path) -> None:
    log.path = tmp_path / "a-folder"
    log.path.mkdir()
    for number in range(60):  # a folder's own size grows
        (log.path / f"{'x' * 50}{number}").touch()
    assert not log.rotate()
    assert log.last_lines() == []


def test_last_lines_are_escaped_and_shortened(log: WorkerLog) -> None:
    os.close(say(log, b"\x1b[31mred\x07\x00\ttab \xff\n", b"x" * 3000))
    lines = log.last_lines()
    assert lines[0] == "\\x1b[31mred\\x07\\x00\ttab �"
    assert lines[1] == "x" * 500 + "…"


def test_a_line_of_a_hundred_megabytes_is_not_read_whole(log: WorkerLog) -> None:
    descriptor = say(log)
    os.truncate(log.path, 100_000_000)
    os.write(descriptor, b"end\nlast\n")
    os.close(descriptor)
    assert log.last_lines(1) == ["last"]
    assert len(log.last_lines()[0]) <= 501 * len("\\x00")


def test_printable_keeps_what_is() -> None:
    assert printable("grüße\t1") == "grüße\t1"


def lose_by_rm(path: Path) -> None:
    path.unlink()


def lose_by_mv(path: Path) -> None:
    path.rename(path.with_name("moved"))


def lose_by_replacement(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"theirs\n")
    other.replace(path)


def lose_by_logrotate(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.touch()


WAYS = [lose_by_rm, lose_by_mv, lose_by_replacement, lose_by_logrotate]


@pytest.mark.parametrize("lose", WAYS)
def test_output_to_a_file_that_lost_its_name_goes_on_under_that_name(
    log: WorkerLog, lose: Callable[[Path], None]
) -> None:
    descriptor = say(log, b"before\n")
    assert not log.has_strayed()
    lose(log.path)
    assert not log.has_strayed()  # nothing was written since
    with structlog.testing.capture_logs() as logged:
        for text in (b"one\n", b"two\n"):
            os.write(descriptor, text)
            assert log.has_strayed()
            log.collect()
            assert not log.has_strayed()
    assert [each["event"] for each in logged] == ["worker_log_replaced"]  # once
    theirs = b"theirs\n" if lose is lose_by_replacement else b""
    assert log.path.read_bytes() == theirs + b"one\ntwo\n"
    assert log.last_lines() == ["one", "two"]
    moved = log.path.with_name("moved")
    if moved.exists():
        assert moved.read_bytes() == b"before\n"  # as it was when it was moved
    os.close(descriptor)


@pytest.mark.parametrize("lose", WAYS)
def test_a_flood_into_a_file_that_lost_its_name_is_bounded(
    log: WorkerLog, lose: Callable[[Path], None]
) -> None:
    descriptor = say(log, b"before\n")
    assert not log.has_strayed()
    lose(log.path)
    for number in range(50):
        os.write(descriptor, b"%d" % (number % 10) * 500 + b"\n")
        if log.has_strayed():
            log.collect()
        log.rotate()
        assert os.fstat(descriptor).st_blocks * 512 <= 4096
        assert log.size() <= 1000
    os.write(descriptor, b"x" * 5000 + b"the end\n")
    log.collect()
    assert log.size() <= 2000
    assert log.path.read_bytes().endswith(b"the end\n")
    os.close(descriptor)


def test_output_of_two_instances_in_different_files_is_collected_once(log: WorkerLog) -> None:
    old = say(log, b"old\n")
    assert not log.has_strayed()
    lose_by_rm(log.path)
    new = log.open("blue-2")
    os.write(old, b"from the old one\n")
    os.write(new, b"from the new one\n")
    log.collect()
    log.collect()
    assert sorted(log.path.read_text().splitlines()) == ["from the new one", "from the old one"]
    os.close(old)
    os.close(new)


def test_the_last_output_of_an_instance_is_collected_and_its_file_closed(log: WorkerLog) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    descriptor = say(log, b"before\n")
    assert not log.has_strayed()
    lose_by_rm(log.path)
    os.write(descriptor, b"its last words\n")
    os.close(descriptor)
    log.close("blue-1")
    log.close("blue-1")
    assert log.path.read_text() == "its last words\n"
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_output_is_bounded_where_the_folder_is_gone_and_kept_once_it_is_back(
    log: WorkerLog,
) -> None:
    descriptor = say(log, b"before\n")
    assert not log.has_strayed()
    folder = log.path.parent
    away = folder.with_name("away")
    folder.rename(away)
    folder.write_text("in the way")
    with structlog.testing.capture_logs() as logged:
        for _ in range(5):
            os.write(descriptor, b"x" * 900)
            log.collect()
            assert os.fstat(descriptor).st_size < 1000
    assert [each["event"] for each in logged] == ["worker_log_not_kept"]  # once
    folder.unlink()
    os.write(descriptor, b"after\n")
    log.collect()
    assert log.path.read_text() == "after\n"
    os.close(descriptor)
    away.rename(folder.with_name("tidy"))


def become_fifo(path: Path) -> None:
    os.mkfifo(path)


def become_folder(path: Path) -> None:
    path.mkdir()


def become_device(path: Path) -> None:
    path.symlink_to("/dev/full")


def become_socket(path: Path) -> None:
    os.mknod(path, 0o640 | stat.S_IFSOCK)


def become_loop(path: Path) -> None:
    path.symlink_to(path.name)


NO_FILES = [become_fifo, become_folder, become_device, become_socket, become_loop]


@pytest.mark.parametrize("become", NO_FILES)
def test_a_worker_starts_without_its_output_where_the_name_is_no_file(
    log: WorkerLog, become: Callable[[Path], None]
) -> None:
    become(log.path)
    with structlog.testing.capture_logs() as logged:
        descriptor = say(log, b"dropped\n")
        assert not log.has_strayed()
        assert log.rotate() == 0
        assert log.last_lines() == []
    assert [each["event"] for each in logged] == ["worker_output_dropped"]
    os.close(descriptor)


@pytest.mark.parametrize("become", NO_FILES)
def test_output_is_bounded_where_the_name_is_no_file_any_more(
    log: WorkerLog, become: Callable[[Path], None]
) -> None:
    descriptor = say(log, b"before\n")
    assert not log.has_strayed()
    lose_by_rm(log.path)
    become(log.path)
    with structlog.testing.capture_logs() as logged:
        for _ in range(5):
            os.write(descriptor, b"x" * 900)
            assert log.has_strayed()
            log.collect()
            assert os.fstat(descriptor).st_size < 1000
            assert log.last_lines() == []
    assert [each["event"] for each in logged] == ["worker_log_not_kept"]  # once
    log.path.rmdir() if become is become_folder else log.path.unlink()
    os.write(descriptor, b"after\n")
    log.collect()
    assert log.path.read_text() == "after\n"
    os.close(descriptor)


def test_a_full_file_is_cut_although_a_folder_has_the_name_of_the_older_part(
    log: WorkerLog,
) -> None:
    log.aside.mkdir()
    descriptor = say(log, b"x" * 1500)
    with structlog.testing.capture_logs() as logged:
        assert log.rotate() == 1500
    assert log.size() == 0
    assert "worker_log_not_kept" in [each["event"] for each in logged]
    os.close(descriptor)


def test_a_copy_and_truncation_by_another_program_changes_nothing(log: WorkerLog) -> None:
    descriptor = say(log, b"before\n")
    os.truncate(log.path, 0)  # as logrotate's copytruncate does
    os.write(descriptor, b"after\n")
    assert not log.has_strayed()
    assert log.path.read_bytes() == b"after\n"
    os.close(descriptor)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_log_that_is_no_file_stops_no_worker(
    log: WorkerLog, make: Callable[[Path], None]
) -> None:
    make(log.path)
    descriptor = say(log, b"dropped\n")
    os.close(descriptor)
    assert not log.rotate()
    log.collect()
    assert log.last_lines() == []
