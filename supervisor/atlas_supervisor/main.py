"""The program around the daemon: settings, one process per state folder, log and signals.

`main` checks the settings and runs the daemon, or prints why it can't start. The process ends by
SIGTERM or SIGINT, in order, or by a failure, at once; SIGHUP reloads it (`reload`), and other
signals are ignored (`signals`).
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NoReturn

import anyio
import structlog

from atlas_supervisor.config import Settings, describe_settings, load_settings, warnings
from atlas_supervisor.daemon import Daemon
from atlas_supervisor.errors import SettingsError, StartRefusedError
from atlas_supervisor.reload import CHECK_OPTION, LOCK, SIGNALS, Requests
from atlas_supervisor.start_check import CheckReport, refused, report
from atlas_supervisor.store import state_folder
from atlas_supervisor.system import descriptors, failpoints, signals
from atlas_supervisor.system.lock import LOCK_FILE, only_daemon
from atlas_supervisor.system.passed_sockets import PassedSockets, receive
from atlas_supervisor.system.program import Program, own_version
from atlas_supervisor.system.service_manager import ServiceManager
from atlas_supervisor.system.threads import refuse_without_room
from atlas_supervisor.telemetry.logging_setup import OWN_LOG, configure_logs
from atlas_supervisor.workers.standalone import nothing_recorded

log = structlog.get_logger(__name__)

_REFUSED, _BAD_SETTINGS = 1, 2
_NO_ENV_FILE = (
    "{path}: there is no such env file; name one with --env-file FILE, or run atlas-supervisor in "
    "the folder of an atlas.env"
)
_FAILED = 70
"""Exit status of a daemon that failed by itself (EX_SOFTWARE)."""


def main(arguments: list[str] | None = None) -> int:
    """Run the daemon; return the exit status."""
    options = _parser().parse_args(arguments)
    if unusable := _unusable(options.env_file):
        print(unusable, file=sys.stderr)  # noqa: T201  # before there is a log
        return _BAD_SETTINGS
    try:
        settings = load_settings(options.env_file.absolute(), os.environ, nothing_recorded)
    except SettingsError as error:
        if options.check_start:
            return _print_report(refused(error.faults))
        if not options.check:
            ServiceManager().refused(f"can't start: {'; '.join(error.faults)}")
        print("\n".join(error.faults), file=sys.stderr)  # noqa: T201  # as above
        return _BAD_SETTINGS
    if options.check:
        return _print_settings(settings)
    return _print_report(report(settings)) if options.check_start else _run(settings)


def _unusable(env_file: Path) -> str:
    """Return why nothing can be started or checked; empty if it can."""
    if not env_file.exists():
        return _NO_ENV_FILE.format(path=env_file.absolute())
    return "\n".join(failpoints.names_if_unknown())


def _run(settings: Settings) -> int:
    refusals: list[str] = []
    watch_children_without_threads()
    try:
        anyio.run(run, settings, receive(), Program())
    except* StartRefusedError as group:  # task groups wrap what is raised inside of them
        refusals = [str(refusal) for refusal in _leaves(group)]
        ServiceManager().refused(f"can't start: {'; '.join(refusals)}")
    for refusal in refusals:
        print(f"atlas-supervisor can't start: {refusal}", file=sys.stderr)  # noqa: T201  # as above
    return _REFUSED if refusals else 0


def watch_children_without_threads() -> None:
    """Wait for child processes by descriptors of them, as Python does by itself from 3.12 on.

    Before that each has a thread; where there is no room for one, its process would be lost.
    """
    if sys.version_info < (3, 12):
        asyncio.set_child_watcher(asyncio.PidfdChildWatcher())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="atlas-supervisor", description="The ATLAS Supervisor daemon."
    )
    parser.add_argument(
        "--env-file",
        type=Path,
        default=Path("atlas.env"),
        help="the settings (default: %(default)s in the current folder)",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="check the settings, print them (secrets masked) and OK, and exit: 0, or 2",
    )
    parser.add_argument(
        CHECK_OPTION,
        action="store_true",
        help="check what else a start would refuse, and print it as JSON: for a reload",
    )
    parser.add_argument("--version", action="version", version=own_version())
    return parser


def _print_settings(settings: Settings) -> int:
    """Print the effective settings, and warnings about them; return the exit status."""
    print(f"{describe_settings(settings)}\nOK", flush=True)  # noqa: T201  # the purpose of --check
    for warning in warnings(settings):
        print(f"warning: {warning}", file=sys.stderr)  # noqa: T201  # before there is a log
    return 0


def _print_report(found: CheckReport) -> int:
    """Print the report of a check for the daemon that reloads; return the exit status."""
    print(found.model_dump_json(), flush=True)  # noqa: T201  # its reader is a program
    return _BAD_SETTINGS if found.faults else 0


def _leaves(group: BaseExceptionGroup[StartRefusedError]) -> Iterator[StartRefusedError]:
    for each in group.exceptions:
        if isinstance(each, BaseExceptionGroup):
            yield from _leaves(each)
        else:
            yield each


async def run(settings: Settings, passed: PassedSockets, program: Program) -> None:
    """Run until SIGTERM or SIGINT, then drain and stop everything. Raises StartRefusedError.

    `passed` is what the daemon before a reload, or the service manager, had open.
    """
    _raise_file_limit()
    refuse_without_room()
    state_folder.prepare(settings.state_dir, settings.control_token_file, settings.worker_account)
    lock_file = settings.state_dir / LOCK_FILE
    with only_daemon(lock_file, passed.take_descriptor(LOCK)) as lock:
        _configure_logs(settings)
        for warning in (*warnings(settings), *state_folder.insecure_parents(settings.state_dir)):
            log.warning("config_warning", why=warning)
        # Signals first: one that arrives during the start must not leave anything behind.
        async with _requests(passed) as requests:
            try:
                await Daemon(settings, passed, program, lock).run(requests)
            except Exception as error:
                if not _is_refusal(error):
                    _exit_at_once(error)
                raise
        log.info("stopped")


def _configure_logs(settings: Settings) -> None:
    path = settings.state_dir / state_folder.LOGS_DIRECTORY / OWN_LOG
    try:
        configure_logs(path, settings.log_level)
    except OSError as error:
        raise StartRefusedError(f"the log {path} can't be written: {error.strerror}") from error


def _raise_file_limit() -> None:
    """Raise our own limit of open files; workers are started with the original one.

    Raises StartRefusedError if it is too low.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < descriptors.FEWEST:
        raise StartRefusedError(
            f"the limit of open files is {hard} (ulimit -n), and the daemon needs "
            f"{descriptors.FEWEST} at least; 1024 or more leave room for clients"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    descriptors.SPARES.hold()


@asynccontextmanager
async def _requests(passed: PassedSockets) -> AsyncIterator[Requests]:
    """Yield what is asked of the daemon by signals; log those that are ignored.

    SIGHUP is ignored until here, and not after: before the daemon serves, the reload waits.
    """
    requests = Requests()
    loop = asyncio.get_running_loop()

    def noted(number: int) -> None:
        if number == signal.SIGHUP:
            requests.reload.set()
        else:
            _log_ignored(number)

    signals.report(_log_ignored)
    signals.report(lambda number: loop.call_soon_threadsafe(noted, number))

    async def listen() -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
            armed.set()
            async for number in received:
                log.info("stopping", signal=signal.Signals(number).name)
                requests.stop.set()

    armed = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(listen)
        await armed.wait()
        if (waiting := passed.take_descriptor(SIGNALS)) is not None:
            signals.repeat(waiting)
        signals.handled()
        try:
            yield requests
        finally:
            group.cancel_scope.cancel()
            signals.report(lambda _number: None)  # the loop is about to end


def _log_ignored(number: int) -> None:
    log.info("signal_ignored", signal=signals.name_of(number))


def _is_refusal(error: Exception) -> bool:
    if isinstance(error, ExceptionGroup):  # task groups wrap what is raised inside of them
        return error.split(StartRefusedError)[1] is None
    return isinstance(error, StartRefusedError)


def _exit_at_once(error: Exception) -> NoReturn:
    """End this process without any cleanup: half a daemon is worse than none.

    Workers live on and serve. In an orderly exit of Python they would not: closing the event loop
    kills the processes that it has started.
    """
    log.critical("daemon_failed", why=repr(error), exc_info=error)
    logging.shutdown()
    os._exit(_FAILED)
