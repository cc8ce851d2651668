"""What holds for the whole suite."""

from __future__ import annotations

import os

import hypothesis
import pytest

# No test talks to a host that has a public certificate, and to load the machine's is a tenth of
# the start of every process that imports aiohttp: hundreds of them in one run.
os.environ["SSL_CERT_FILE"] = os.devnull
os.environ["SSL_CERT_DIR"] = os.devnull

# How long an example takes is the machine's affair; every test has a time limit as a whole.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")


def pytest_configure() -> None:
    """Let tests start their daemons by forks; benchmarks and the demonstration do not."""
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Spread the long tests over the list.

    Each of the processes that run side by side begins with a stretch of it, and all that stand
    together would fall to one of them.
    """
    long = [item for item in items if "zero_loss" in item.nodeid]
    rest = [item for item in items if item not in long]
    for number, item in enumerate(long):
        rest.insert(number * len(items) // max(len(long), 5), item)
    items[:] = rest
