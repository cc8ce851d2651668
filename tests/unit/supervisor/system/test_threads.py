"""Blocking work where the machine has no room for another thread."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator

import anyio
import pytest
from structlog.testing import capture_logs

from atlas_supervisor.errors import StartRefusedError
from atlas_supervisor.main import watch_children_without_threads
from atlas_supervisor.system import threads
from atlas_supervisor.system.threads import in_thread, refuse_without_room


@pytest.fixture
def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no thread be started, as at TasksMax."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    monkeypatch.setattr(threads, "_SHORTAGE", threads._Shortage())


async def test_work_has_a_thread_of_its_own() -> None:
    assert await in_thread(threading.get_ident) != threading.get_ident()


@pytest.mark.usefixtures("no_room")
async def test_where_no_thread_can_be_started_work_is_done_all_the_same_and_logged_once() -> None:
    with capture_logs() as logged:
        found = [await in_thread(threading.get_ident) for _ in range(3)]

    assert found == [threading.get_ident()] * 3
    assert [(each["event"], each["log_level"]) for each in logged] == [
        ("threads_exhausted", "error")
    ]


@pytest.mark.usefixtures("no_room")
def test_a_start_that_can_have_no_thread_is_refused_and_names_the_limits() -> None:
    with pytest.raises(StartRefusedError, match=r"no room for another .*TasksMax"):
        refuse_without_room()


async def test_another_error_of_the_work_is_raised_and_not_tried_again() -> None:
    calls: list[int] = []

    def fail() -> None:
        calls.append(1)
        raise RuntimeError("its own")

    with pytest.raises(RuntimeError, match="its own"):
        await in_thread(fail)

    assert calls == [1]


@pytest.fixture
def watched_without_threads() -> Iterator[None]:
    watch_children_without_threads()
    yield
    if sys.version_info < (3, 12):
        asyncio.set_child_watcher(asyncio.ThreadedChildWatcher())  # its default


@pytest.mark.usefixtures("no_room", "watched_without_threads")
def test_a_child_process_is_waited_for_without_a_thread() -> None:
    async def status_of_a_child() -> int:
        with anyio.fail_after(10):
            process = await anyio.open_process(["false"], stdin=None, stdout=None, stderr=None)
            return await process.wait()

    assert anyio.run(status_of_a_child) == 1
