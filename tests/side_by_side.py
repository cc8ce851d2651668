"""Runs tests in several processes: collected once, in the process that the others are forked from.

To collect is to import all tests and all of the daemon: 6 s of a core, which processes with a
collection of their own would each take. Which process runs a test is decided when one is free:
the parent hands out portions, in the order of its items, and shows the reports that come back.
A process that ends within a test fails that test, and another one goes on.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from itertools import chain, pairwise
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

import pytest
from _pytest.config import create_terminal_writer

PORTION = 4
"""So many tests of a module go to a process at once."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that has tests run side by side."""
    parser.addoption("--processes", type=int, default=1, help="run tests in so many processes")


def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """Run the tests, if more than one process is asked for."""
    option = session.config.option
    if option.processes == 1 or option.collectonly or session.testsfailed:
        return None
    SideBySide(session).run(option.processes)
    return True


class Process:
    """A forked process, as its parent knows it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.given: deque[int] = deque()
        """The tests that it has to run. It is at the first of them."""
        self.error = ""


class SideBySide:
    """Hands out tests to processes and receives their reports."""

    def __init__(self, session: pytest.Session) -> None:
        self._session = session
        self._config = session.config
        self._portions = portions(session.items)
        self._processes: dict[Connection, Process] = {}

    def run(self, count: int) -> None:
        """Run all tests of the session in so many processes."""
        try:
            for _ in range(min(count, len(self._portions))):
                self._fork()
            while self._processes:
                for connection in wait(list(self._processes)):
                    assert isinstance(connection, Connection)
                    self._receive(connection)
        finally:
            for connection, process in self._processes.items():
                connection.close()
                os.waitpid(process.pid, 0)  # it ends after the test that it is at

    def _fork(self) -> None:
        folder = self._config._tmp_path_factory.mktemp("process")  # type: ignore[attr-defined]
        ours, theirs = Pipe()
        pid = os.fork()
        if not pid:
            for other in (ours, *self._processes):
                other.close()
            self._config._tmp_path_factory._basetemp = folder  # type: ignore[attr-defined]
            os._exit(run_given(self._session, theirs))
        theirs.close()
        self._processes[ours] = Process(pid)

    def _receive(self, connection: Connection) -> None:
        process = self._processes[connection]
        try:
            kind, value = connection.recv()
        except (EOFError, ConnectionError):
            self._end(connection)
            return
        hook = self._config.hook
        if kind == "take":
            portion = self._portions.popleft() if self._portions else []
            process.given.extend(portion)
            connection.send(portion)
        elif kind == "done":
            item = self._session.items[process.given.popleft()]
            hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        elif kind == "error":
            process.error = value
        elif kind == "warning":
            hook.pytest_warning_recorded.call_historic(kwargs=value)
        else:
            self._show(hook.pytest_report_from_serializable(config=self._config, data=value))

    def _end(self, connection: Connection) -> None:
        """Reap a process. Another one does what it has left undone, but for the test it was at."""
        process = self._processes.pop(connection)
        connection.close()
        status = os.waitstatus_to_exitcode(os.waitpid(process.pid, 0)[1])
        if not process.given and not status:
            return
        name = "the end of a process"
        location: tuple[str, int | None, str] = ("tests", None, name)
        if process.given:
            item = self._session.items[process.given.popleft()]
            name, location = item.nodeid, item.location
        what = f"its process ended with {status}\n{process.error}".strip()
        self._show(pytest.TestReport(name, location, {}, "failed", what, "call"))
        if process.given:
            self._portions.appendleft(list(process.given))
        if self._portions:
            self._fork()

    def _show(self, report: pytest.TestReport) -> None:
        self._config.hook.pytest_runtest_logreport(report=report)
        if self._session.shouldfail:
            raise self._session.Failed(self._session.shouldfail)
        if self._session.shouldstop:
            raise self._session.Interrupted(self._session.shouldstop)


class Reporter:
    """The plugin of a forked process that sends what it has to report."""

    def __init__(self, config: pytest.Config, connection: Connection) -> None:
        self._config = config
        self._connection = connection
        self._tw = create_terminal_writer(config, sys.stdout)  # pytest-timeout asks for it

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Send a report in the form in which pytest itself reads it."""
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._connection.send(("report", data))

    def pytest_warning_recorded(
        self, warning_message: Any, when: str, nodeid: str, location: tuple[str, int, str] | None
    ) -> None:
        """Send a warning. Its source may be anything, and stays."""
        warning_message.source = None
        what = {"warning_message": warning_message, "when": when}
        self._connection.send(("warning", {**what, "nodeid": nodeid, "location": location}))


def portions(items: list[pytest.Item]) -> deque[list[int]]:
    """Return the tests as they are handed out: those that share a fixture go together."""
    found: dict[str, list[int]] = defaultdict(list)
    seen: Counter[str] = Counter()
    for index, item in enumerate(items):
        place = shared_place(item)
        if place is None:
            module = str(item.path)
            place = f"{module} {seen[module] // PORTION}"
            seen[module] += 1
        found[place].append(index)
    return deque(found.values())


def shared_place(item: pytest.Item) -> str | None:
    """Return the module or folder of which a test shares a fixture with others."""
    fixtures = item._fixtureinfo.name2fixturedefs.values()  # type: ignore[attr-defined]
    each = (definition for definitions in fixtures for definition in definitions)
    shared = [str(found.baseid) for found in each if found.scope != "function" and found.baseid]
    return min(shared, key=len, default=None)


def run_given(session: pytest.Session, connection: Connection) -> int:
    """Run what the parent gives, in a fork of it; return the exit status."""
    plugins = session.config.pluginmanager
    capture = plugins.getplugin("capturemanager")
    if capture is not None:  # what it writes goes to a file of its own
        capture.stop_global_capturing()
        capture.start_global_capturing()
    plugins.unregister(name="terminalreporter")
    plugins.register(Reporter(session.config, connection), "terminalreporter")
    try:
        for index, following in pairwise(chain(given(connection), [None])):
            assert index is not None
            session.config.hook.pytest_runtest_protocol(
                item=session.items[index],
                nextitem=None if following is None else session.items[following],
            )
            connection.send(("done", index))
        session.config._ensure_unconfigure()
    except (KeyboardInterrupt, EOFError, ConnectionError):  # the parent knows
        return 1
    except BaseException:  # noqa: BLE001  # nothing is above it
        connection.send(("error", traceback.format_exc()))
        return 1
    return 0


def given(connection: Connection) -> Iterator[int]:
    """Yield the tests to be run, until there are no more."""
    while True:
        connection.send(("take", None))
        portion = connection.recv()
        if not portion:
            return
        yield from portion
