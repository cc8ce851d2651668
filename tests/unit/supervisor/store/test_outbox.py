"""What has happened is written in order, on disks that fail for a while or for good."""

from __future__ import annotations

from functools import partial

import anyio
import anyio.lowlevel
import pytest

from atlas_supervisor.store import outbox as module
from atlas_supervisor.store.outbox import Outbox, PendingWrite
from atlas_supervisor.store.statements import StoreError, UnstorableError


class Disk:
    """A disk that fails as `failures` say, attempt by attempt, and an outbox before it."""

    def __init__(self) -> None:
        self.outbox = Outbox()
        self.written: list[str] = []
        self.delayed: list[str] = []
        self.failures: list[Exception] = []
        self.attempts = 0

    def put(self, *names: str) -> list[PendingWrite]:
        return [
            self.outbox.put(partial(self._write, name), partial(self.delayed.append, name))
            for name in names
        ]

    async def _write(self, name: str) -> None:
        self.attempts += 1
        await anyio.lowlevel.checkpoint()
        if self.failures:
            raise self.failures.pop(0)
        self.written.append(name)


async def test_entries_are_written_in_the_order_in_which_they_were_put_in() -> None:
    disk = Disk()
    *_, last = disk.put("a", "b", "c")
    async with anyio.create_task_group() as group:
        group.start_soon(disk.outbox.flush)
        group.start_soon(disk.outbox.attempt)
    assert disk.written == ["a", "b", "c"]
    assert (last.written, disk.delayed) == (True, [])


async def test_a_flush_up_to_an_entry_leaves_the_later_ones() -> None:
    disk = Disk()
    first, *_ = disk.put("a", "b")
    await disk.outbox.flush(first)
    assert disk.written == ["a"]
    await disk.outbox.flush(first)
    assert disk.written == ["a"]
    await disk.outbox.flush()
    assert disk.written == ["a", "b"]
    await disk.outbox.flush()


@pytest.mark.parametrize("failure", [StoreError("database is locked"), OSError(28, "no space")])
async def test_a_failure_stops_the_flush_delays_all_entries_once_and_loses_none(
    failure: Exception,
) -> None:
    disk = Disk()
    disk.failures = [failure, failure]
    disk.put("a", "b")
    for _ in range(2):
        with pytest.raises(StoreError, match=r"locked|no space"):
            await disk.outbox.flush()
        assert disk.delayed == ["a", "b"]
    disk.put("c")
    assert await disk.outbox.attempt()
    assert (disk.written, disk.delayed) == (["a", "b", "c"], ["a", "b"])


async def test_an_entry_that_fails_is_tried_again_until_it_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_RETRY_SECONDS", 0.001)
    disk = Disk()
    disk.failures = [OSError(5, "input/output error")] * 3
    async with anyio.create_task_group() as group:
        group.start_soon(disk.outbox.run)
        await anyio.wait_all_tasks_blocked()  # it waits for an entry
        *_, last = disk.put("a", "b")
        with anyio.fail_after(5):
            await last.wait()
            (later,) = disk.put("c")
            await later.wait()
        group.cancel_scope.cancel()
    assert disk.written == ["a", "b", "c"]


@pytest.mark.parametrize("failure", [UnstorableError("no such deploy"), ZeroDivisionError("bug")])
async def test_an_entry_that_can_never_be_written_is_dropped_and_blocks_no_other(
    failure: Exception,
) -> None:
    disk = Disk()
    disk.failures = [failure]
    dropped, _ = disk.put("a", "b")
    await disk.outbox.flush()
    assert (disk.written, disk.delayed) == (["b"], ["a"])
    await dropped.wait()  # no caller waits for it forever


async def test_callers_that_wait_together_share_one_attempt_on_a_failing_disk() -> None:
    disk = Disk()
    disk.failures = [StoreError("database is locked")] * 9
    disk.put("a")
    outcomes: list[bool] = []

    async def attempt() -> None:
        outcomes.append(await disk.outbox.attempt())

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(attempt)
    assert (outcomes, disk.attempts) == ([False] * 5, 1)


async def test_a_caller_that_is_cancelled_writes_no_entry_twice_and_loses_none() -> None:
    disk = Disk()
    disk.put("a", "b")
    with anyio.CancelScope() as scope:
        scope.cancel()
        await disk.outbox.flush()
    assert await disk.outbox.attempt()
    assert disk.written == ["a", "b"]


async def test_an_entry_that_is_being_written_waits_no_more() -> None:
    disk = Disk()
    disk.put("a", "b")
    assert len(disk.outbox.waiting) == 2
    async with anyio.create_task_group() as group:
        group.start_soon(disk.outbox.flush)
        while not disk.attempts:
            await anyio.lowlevel.checkpoint()
        assert len(disk.outbox.waiting) == 1
    assert disk.outbox.waiting == []
