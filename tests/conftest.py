"""What holds for the whole suite."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Generator
from pathlib import Path

import hypothesis
import pytest

from atlas_supervisor.__main__ import _without_rich

# The tracebacks that structlog prints unless it is configured: rich takes a second to draw one.
with _without_rich():
    import structlog  # noqa: F401  # it looks for rich at its import alone

# No test talks to a host that has a public certificate, and to load the machine's is a tenth of
# the start of every process that imports aiohttp: hundreds of them in one run.
os.environ["SSL_CERT_FILE"] = os.devnull
os.environ["SSL_CERT_DIR"] = os.devnull

# How long an example takes is the machine's affair; every test has a time limit as a whole.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")

FOLDER = Path(__file__).parent
PARTED = (FOLDER, FOLDER / "unit", FOLDER / "unit/supervisor")
"""Folders whose parts are collected one by one."""
LONG = ("acceptance", "browser", "faults", "integration", "simulation", "systemd")
LONGEST = (
    *("test_openapi_fuzzing", "test_haproxy", "test_zero_loss", "test_readme", "test_reload"),
    "test_guard",
)
"""Folders with tests that take their time, and modules with those that take the most."""


def pytest_configure() -> None:
    """Let tests start their daemons by forks; benchmarks and the demonstration do not.

    In the background a shell has its commands ignore SIGINT and SIGQUIT; what tests start, would
    too.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN:
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    from tests.fork_server import ForkServer
    from tests.harness import DaemonProcess

    DaemonProcess.fork_server = ForkServer()


def pytest_unconfigure() -> None:
    """End the process that daemons were forked from."""
    from tests.harness import DaemonProcess

    if DaemonProcess.fork_server is not None:
        DaemonProcess.fork_server.close()
        DaemonProcess.fork_server = None


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs root where another user runs the suite."""
    if os.geteuid() != 0 and item.get_closest_marker("needs_root"):
        pytest.skip("needs root")


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Collect without the garbage collector: what is imported and collected stays.

    All processes that run side by side collect all tests. Each begins with other files, so that
    in a fresh clone none writes the byte code that another one has written.
    """
    number, count = place(session.config)
    if count > 1 and [Path(each).resolve() for each in session.config.args] == [FOLDER]:
        pieces = sorted(str(each) for folder in PARTED for each in folder.glob("[!_]*"))
        pieces = [each for each in pieces if Path(each) not in PARTED]
        first = number * len(pieces) // count
        session.config.args = [*pieces[first:], *pieces[:first]]
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def place(config: pytest.Config) -> tuple[int, int]:
    """Return which of how many processes this is that run side by side."""
    given = getattr(config, "workerinput", {"workerid": "gw0", "workercount": 1})
    count = given["workercount"]
    return int(given["workerid"].removeprefix("gw")) % count, count


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let each process begin with tests that take their time, and end with short ones.

    Each begins with a stretch of the list, and when it is through takes from the end of another's:
    one process would be left with what is long and stands there.
    """
    _, count = place(config)
    if count == 1:
        return
    items.sort(key=lambda item: item.path)
    longest: list[pytest.Item] = []
    long: list[pytest.Item] = []
    short: list[pytest.Item] = []
    for item in items:
        folder = item.path.relative_to(FOLDER).parts[0]
        kind = longest if item.path.stem in LONGEST else long if folder in LONG else short
        kind.append(item)
    first = len(items)
    items.clear()
    for left in range(count, 0, -1):
        stretch = [*longest[::left], *taken(long, len(long) // left)]
        del longest[::left]
        items += [*stretch, *taken(short, (first - len(items)) // left - len(stretch))]


def taken(items: list[pytest.Item], number: int) -> list[pytest.Item]:
    """Take so many from the front."""
    front = items[: max(0, number)]
    del items[: len(front)]
    return front
