"""The collector with request files of real processes, and with forged ones."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from unittest.mock import patch

import anyio
import pytest

from atlas_supervisor.model.requests import SEALED_AFTER_SECONDS, RequestCounts, RequestTotals
from atlas_supervisor.requests import collector as module
from atlas_supervisor.requests.collector import InstanceName, RequestCollector
from atlas_supervisor.store.database import open_database
from atlas_supervisor.store.statements import StoreError
from atlas_supervisor.system import procfs
from atlas_supervisor.system.clock import steady_time
from atlas_worker.contract import RINGS_DIRECTORY
from atlas_worker.contract import request_file as layout
from atlas_worker.contract.ring import Owner

PROGRAM = """
import sys
from atlas_worker.request_counter import counter
counter.open()
began = []
for line in sys.stdin:
    word, _, count = line.partition(" ")
    for _ in range(int(count)):
        if word in ("begin", "first"):
            since = counter.connected(None) if word == "first" else 0.0
            began.append(counter.begin(since))
        else:
            counter.end(began.pop(0), int(word))
    print("done", flush=True)
"""
PRESENT = InstanceName("blue-1", "blue", "v1")


class Process:
    """A worker's process that counts what it is asked to."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid

    def count(self, line: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"

    def serve(self, *statuses: int) -> None:
        self.count(f"begin {len(statuses)}")
        for status in statuses:
            self.count(f"{status} 1")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def counting(folder: Path, instance: str = "blue-1") -> Iterator[Process]:
    environ = {"ATLAS_INSTANCE": instance, "ATLAS_STATE_DIR": str(folder), "ATLAS_VERSION": "v0"}
    with subprocess.Popen(
        (sys.executable, "-c", PROGRAM),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | environ,
    ) as process:
        try:
            yield Process(process)
        finally:
            process.kill()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / RINGS_DIRECTORY).mkdir()
    return tmp_path


@asynccontextmanager
async def collecting(folder: Path) -> AsyncIterator[RequestCollector]:
    """A daemon's collector, which polls and writes when it is asked to."""
    async with open_database(folder / "atlas.db") as (database, _):
        collector = RequestCollector(folder, database.requests)
        collector.present = lambda: [PRESENT]
        await collector.restore()
        yield collector
        for tracked in collector._files.values():
            tracked.file.close()


def totals(collector: RequestCollector, instance: str = "blue-1") -> RequestTotals:
    found = collector.totals(instance)
    assert found is not None
    return found


async def test_counts_of_all_processes_of_an_instance_add_up(folder: Path) -> None:
    async with collecting(folder) as collector:
        assert collector.totals("blue-1") is None
        assert collector.figures("blue-1") is None
        await collector.poll()
        with counting(folder) as one, counting(folder) as other:
            one.serve(200, 200, 404)
            other.serve(500, 0)
            other.count("begin 2")
            await collector.poll()

            counts = totals(collector).counts
            assert counts == RequestCounts(7, (0, 2, 0, 1, 1), left=1)
            assert counts.open == 2
            assert totals(collector).latency.count == 4
            (found,) = {each.sealed for each in collector.seconds("blue-1", 0)}
            assert not found
            assert RequestCounts.sum(e.counts for e in collector.seconds("blue-1", 0)) == counts
            figures = collector.figures("blue-1")
            assert figures is not None
            assert figures.error_share == 0.25
            assert collector.exposed()["blue", "v1"].counts == counts


async def test_requests_open_when_their_process_was_killed_are_cut(folder: Path) -> None:
    async with collecting(folder) as collector:
        await collector.poll()
        with counting(folder) as process:
            process.serve(200)
            process.count("begin 3")
            await collector.poll()
            process.kill()
            await collector.poll()
            await collector.poll()

        counts = totals(collector).counts
        assert counts == RequestCounts(4, (0, 1, 0, 0, 0), cut=3)
        assert RequestCounts.sum(e.counts for e in collector.seconds("blue-1", 0)) == counts
        (path,) = (folder / RINGS_DIRECTORY).iterdir()
        await collector.write()
        assert not path.exists()


async def test_seconds_are_sealed_after_a_minute(folder: Path) -> None:
    async with collecting(folder) as collector:
        await collector.poll()
        with counting(folder) as process:
            process.serve(200)
            process.count("begin 1")
            await collector.poll()
            later = time.monotonic() + SEALED_AFTER_SECONDS
            with patch("atlas_supervisor.requests.collector.time.monotonic", lambda: later):
                await collector.poll()
                seconds = collector.seconds("blue-1", 0)
                assert all(each.sealed for each in seconds)
                assert sum(each.counts.open for each in seconds) == 1
                assert collector.seconds("blue-1", int(later)) == []
                figures = collector.figures("blue-1")
                assert figures is not None
                assert (figures.per_second, figures.p50_ms) == (0.0, None)


async def test_the_next_daemon_goes_on_with_the_totals_of_living_and_dead_processes(
    folder: Path,
) -> None:
    with counting(folder) as living, counting(folder) as dead:
        async with collecting(folder) as collector:
            living.serve(200)
            dead.serve(500)
            await collector.poll()
            await collector.write()
            living.serve(200)
            await collector.poll()
            before = totals(collector).counts
            assert before == RequestCounts(3, (0, 2, 0, 0, 1))
        # That daemon was killed. Its unwritten counts are read again, and no others.
        living.serve(404)
        dead.serve(500)
        dead.count("begin 1")
        dead.kill()
        async with collecting(folder) as collector:
            await collector.poll()
            after = totals(collector).counts
            assert after == RequestCounts(6, (0, 2, 0, 1, 2), cut=1)
            assert (after - before).begun == 3
            assert collector.seconds("blue-1", 0) == []  # of before its start
            living.serve(200)
            await collector.poll()
            await collector.write()
            now = steady_time()
            recorded = await collector.record("v1", now - 3600, now + 60)
            assert recorded.counts == totals(collector).counts
            assert recorded.latency == totals(collector).latency
            assert (await collector.record("v2", now - 3600, now + 60)).counts == RequestCounts()


async def test_counts_that_could_not_be_written_are_written_later(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with collecting(folder) as collector:
        with counting(folder) as process:
            process.serve(200)
            await collector.poll()

            async def fail(_commit: object) -> None:
                raise StoreError("disk full")

            with monkeypatch.context() as broken:
                broken.setattr(collector.store, "commit", fail)
                with pytest.raises(StoreError):
                    await collector.write()
            process.serve(200)
            process.kill()
            await collector.poll()
            await collector.write()
        now = steady_time()
        assert (await collector.record("v1", now - 3600, now + 60)).counts.begun == 2
        assert list((folder / RINGS_DIRECTORY).iterdir()) == []


def forge(folder: Path, owner: Owner, *, size: int = layout.FILE_BYTES[2], kit: int = 2) -> Path:
    path = folder / RINGS_DIRECTORY / f"{owner.pid}-{owner.start_ticks}-0badc0de{layout.SUFFIX}"
    content = layout.pack_header(owner, kit).ljust(layout.HEADER_BYTES, b"\0")
    path.write_bytes((content + struct.pack("<Q", 7)).ljust(size, b"\0")[:size])
    return path


def own(instance: str = "blue-1") -> Owner:
    return Owner(os.getpid(), procfs.start_ticks(os.getpid()) or 0, procfs.boot_id(), instance, "")


async def test_a_stop_that_meets_a_write_reads_and_writes_everything_once(folder: Path) -> None:
    async with collecting(folder) as collector:
        await collector.poll()
        with counting(folder) as process:
            process.serve(200, 500)
            await collector.poll()
            process.kill()
            await collector.poll()

            async with anyio.create_task_group() as tasks:  # as `run` and the daemon's stop do
                tasks.start_soon(collector.write)
                tasks.start_soon(collector.finish)
                tasks.start_soon(collector.finish)

        recorded = await collector.record("v1", 0, steady_time() + 60)
        assert recorded.counts == RequestCounts(begun=2, classes=(0, 1, 0, 0, 1))
        assert not list((folder / RINGS_DIRECTORY).iterdir())


async def test_a_file_that_its_process_does_not_write_is_refused_and_removed(folder: Path) -> None:
    async with collecting(folder) as collector:
        for path in (
            forge(folder, own()),
            forge(folder, own(), size=100),
            forge(folder, own()._replace(pid=2**22 + 5)),
            forge(folder, own()._replace(pid=2**31 - 1), size=layout.HEADER_BYTES),
        ):
            await collector.poll()
            assert not path.exists()
        assert collector.totals("blue-1") in (None, RequestTotals())


async def test_a_file_of_another_instance_than_its_process_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with collecting(folder) as collector:
        with counting(folder) as process:
            process.serve(500)
            other = procfs.tag_for(str(folder), "green-1")
            monkeypatch.setattr(procfs, "tag_of", lambda _pid: other)
            await collector.poll()
            assert collector.totals("blue-1") is None
            monkeypatch.undo()


async def test_cells_that_shrink_or_are_no_counts_end_the_reading(folder: Path) -> None:
    for value in (2**60, 0):
        async with collecting(folder) as collector:
            with counting(folder) as process:
                process.serve(200)
                await collector.poll()
                (path,) = (folder / RINGS_DIRECTORY).iterdir()
                begun = layout.HEADER_BYTES
                with path.open("r+b") as file:
                    for place in range(0, layout.SLOW_RECORD, layout.RECORD_CELLS):
                        file.seek(begun + place * layout.WORD_BYTES)
                        file.write(struct.pack("<Q", value))
                await collector.poll()
                assert totals(collector).counts.begun == 1
                assert not path.exists()


async def test_a_link_or_a_fifo_in_place_of_a_file_does_not_block(folder: Path) -> None:
    rings = folder / RINGS_DIRECTORY
    os.mkfifo(rings / f"1-1-aa{layout.SUFFIX}")
    (rings / f"1-1-bb{layout.SUFFIX}").symlink_to("/dev/zero")
    async with collecting(folder) as collector:
        await collector.poll()
        assert list(rings.iterdir()) == []


async def test_processes_of_an_instance_are_bounded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_PER_INSTANCE", 1)
    async with collecting(folder) as collector:
        with counting(folder) as one, counting(folder) as other:
            one.serve(200)
            other.serve(200)
            await collector.poll()
            assert totals(collector).counts.begun == 1


async def test_a_file_of_an_unknown_instance_waits_and_is_removed_with_its_process(
    folder: Path,
) -> None:
    async with collecting(folder) as collector:
        with counting(folder, "green-7") as process:
            process.serve(200)
            await collector.poll()
            (path,) = (folder / RINGS_DIRECTORY).iterdir()
            collector.present = lambda: [PRESENT._replace(name="green-7", slot="green")]
            await collector.poll()
            assert totals(collector, "green-7").counts.begun == 1
            os.kill(process.pid, signal.SIGKILL)
        async with collecting(folder) as later:
            await later.poll()
            assert not path.exists()


async def test_first_requests_of_compared_instances_are_read_by_second(folder: Path) -> None:
    async with collecting(folder) as collector:
        with counting(folder) as process, counting(folder) as other:
            process.serve(200)
            await collector.poll()
            collector.firsts.compare("green-2", "blue-1")
            await collector.poll()  # where it begins
            began = int(time.monotonic()) + 1
            await anyio.sleep(began - time.monotonic())
            process.count("first 3")
            process.count("503 1")
            other.serve(200)
            other.count("first 1")
            await collector.poll()

            seconds = [collector.firsts.of("blue-1", began + each) for each in range(9)]
            assert sum(each.begun for each in seconds) == 4
            assert sum(each.failed for each in seconds) == 1
            assert collector.firsts.counting == {"blue-1"}
            process.kill()
            await collector.poll()
            assert sum(collector.firsts.of("blue-1", began + at).failed for at in range(9)) == 3


async def test_a_file_of_an_earlier_kit_counts_without_first_requests(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forge(folder, own(), size=layout.FILE_BYTES[1], kit=1)
    monkeypatch.setattr(procfs, "has_mapped", lambda *_: True)
    async with collecting(folder) as collector:
        collector.firsts.compare("green-2", "blue-1")
        await collector.poll()

        assert totals(collector).counts.begun == 7
        assert all(collector.firsts.of("blue-1", s).begun == 0 for s in range(10))
