"""What holds for the whole suite."""

from __future__ import annotations

import gc
import importlib
import os
import signal
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path

import hypothesis
import pytest
from _pytest.assertion.rewrite import PYC_TAIL, get_cache_dir

from atlas_supervisor.quick_import import without_rich
from tests.fork_server import DAEMONS, WORKERS
from tests.side_by_side import pytest_addoption, pytest_runtestloop  # noqa: F401  # hooks

# The tracebacks that structlog prints unless it is configured: rich takes a second to draw one.
with without_rich():
    import structlog  # noqa: F401  # it looks for rich at its import alone

# No test talks to a host that has a public certificate, and to load the machine's is a tenth of
# the start of every process that imports aiohttp: hundreds of them in one run.
os.environ["SSL_CERT_FILE"] = os.devnull
os.environ["SSL_CERT_DIR"] = os.devnull

# How long an example takes is the machine's affair; every test has a time limit as a whole.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")

FOLDER = Path(__file__).parent
LONG = ("acceptance", "browser", "faults", "integration", "simulation", "systemd")
"""Folders with tests that take their time."""
LONGEST = (
    *("test_openapi_fuzzing", "test_haproxy", "test_zero_loss", "test_readme", "test_reload"),
    "test_guard",
)
"""Modules with those that take the most."""


def pytest_configure(config: pytest.Config) -> None:
    """Let tests start their daemons by forks; benchmarks and the demonstration do not.

    In the background a shell has its commands ignore SIGINT and SIGQUIT; what tests start, would
    too.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN:
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    from tests.harness import DaemonProcess, inherited  # it imports aiohttp, for which see above

    DaemonProcess.fork_server = DAEMONS
    if config.option.processes > 1:  # which all use them; they get ready meanwhile
        for server in (DAEMONS, WORKERS):
            server.start(inherited())


def pytest_unconfigure() -> None:
    """End the processes that daemons and workers were forked from."""
    for server in (DAEMONS, WORKERS):
        server.close()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs root where another user runs the suite."""
    if os.geteuid() != 0 and item.get_closest_marker("needs_root"):
        pytest.skip("needs root")


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Collect without the garbage collector: what is imported and collected stays."""
    config = session.config
    if config.option.processes > 1 and config.args_source is not config.ArgsSource.ARGS:
        compile_from_the_end()
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def compile_from_the_end() -> None:
    """Fork a process that compiles all tests until it meets the one that collects them.

    That is in a fresh clone. Else it meets it at once.
    """
    if os.fork():
        return
    with suppress(BaseException):  # the collection meets it, too
        for path in sorted(FOLDER.rglob("test_*.py"), reverse=True):
            if (get_cache_dir(path) / f"{path.stem}{PYC_TAIL}").exists():
                break
            importlib.import_module(".".join(path.relative_to(FOLDER.parent).with_suffix("").parts))
    os._exit(0)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with tests that take their time: what is begun last, other processes wait for."""
    if config.option.processes > 1:
        items.sort(key=shortness)


def shortness(item: pytest.Item) -> int:
    folder = item.path.relative_to(FOLDER).parts[0]
    if item.path.stem in LONGEST or folder == "browser":  # the tests of which share one Chromium
        return 0
    return 1 if folder in LONG else 2
