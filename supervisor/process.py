"""The daemon's process: one for a state folder, with a log, and ended by a signal or a failure."""

from __future__ import annotations

import logging
import os
import resource
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NoReturn

import anyio
import structlog

from supervisor.config import Settings, warnings
from supervisor.daemon import Daemon
from supervisor.errors import StartRefusedError
from supervisor.lock import only_daemon
from supervisor.telemetry.logs import OWN_LOG, configure_logs

log = structlog.get_logger(__name__)

_FOLDER_MODE = 0o750
_FAILED = 70
"""Exit status of a daemon that failed by itself (EX_SOFTWARE)."""


async def run(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT, then drain and stop everything. Raises StartRefusedError."""
    _prepare_folder(settings.state_dir)
    with only_daemon(settings.state_dir / "supervisor.lock"):
        configure_logs(settings.state_dir / "logs" / OWN_LOG, settings.log_level)
        _allow_many_files()
        for warning in warnings(settings):
            log.warning("settings_unwise", why=warning)
        # Signals first: one that comes while we start must not leave anything behind.
        async with _stop_signal() as stopping:
            try:
                await Daemon(settings).run(stopping)
            except Exception as error:
                if not _is_refusal(error):
                    _leave(error)
                raise
        log.info("stopped")


def _is_refusal(error: Exception) -> bool:
    if isinstance(error, ExceptionGroup):  # task groups wrap what is raised inside of them
        return error.split(StartRefusedError)[1] is None
    return isinstance(error, StartRefusedError)


def _leave(error: Exception) -> NoReturn:
    """End this process at once: half a daemon is worse than none.

    Workers live on and serve. They would not if Python ended in order: closing the event loop
    kills the processes that it has started.
    """
    log.critical("daemon_failed", why=repr(error), exc_info=error)
    logging.shutdown()
    os._exit(_FAILED)


def _prepare_folder(state_dir: Path) -> None:
    try:
        for folder in (state_dir, state_dir / "logs"):
            folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        state_dir.chmod(_FOLDER_MODE)
    except OSError as error:
        raise StartRefusedError(f"STATE_DIR={state_dir} can't be used: {error}") from error


def _allow_many_files() -> None:
    """Lift our own limit of open files; workers are started with the one that we found."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@asynccontextmanager
async def _stop_signal() -> AsyncIterator[anyio.Event]:
    """Yield an event that is set by the first SIGTERM or SIGINT."""
    stopping = anyio.Event()

    async def listen() -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            armed.set()
            async for number in signals:
                log.info("stopping", signal=signal.Signals(number).name)
                stopping.set()

    armed = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(listen)
        await armed.wait()
        try:
            yield stopping
        finally:
            group.cancel_scope.cancel()
