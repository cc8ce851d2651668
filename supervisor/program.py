"""The daemon's program: checks the settings, then runs the daemon or says why it can't."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import anyio

from supervisor import process
from supervisor.config import Settings, describe_settings, load_settings, warnings
from supervisor.errors import SettingsError, StartRefusedError

_REFUSED, _BAD_SETTINGS = 1, 2


def main(arguments: list[str] | None = None) -> int:
    """Run the daemon; return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        settings = load_settings(options.env_file.absolute(), os.environ)
    except SettingsError as error:
        for fault in error.faults:
            print(fault, file=sys.stderr)  # noqa: T201  # before there is a log
        return _BAD_SETTINGS
    if options.check:
        _show(settings)
        return 0
    refusals: list[str] = []
    try:
        anyio.run(process.run, settings)
    except* StartRefusedError as refused:  # task groups wrap what is raised inside of them
        refusals = [str(refusal) for refusal in _leaves(refused)]
    for refusal in refusals:
        print(f"atlas-supervisor can't start: {refusal}", file=sys.stderr)  # noqa: T201  # the same
    return _REFUSED if refusals else 0


def _show(settings: Settings) -> None:
    """Print the effective settings, and what is unwise about them."""
    try:
        print(describe_settings(settings), flush=True)  # noqa: T201  # what --check is for
    except BrokenPipeError:  # whoever reads has seen enough, as `head` does; not an error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    for warning in warnings(settings):
        print(f"warning: {warning}", file=sys.stderr)  # noqa: T201  # before there is a log


def _leaves(group: BaseExceptionGroup[StartRefusedError]) -> Iterator[StartRefusedError]:
    for each in group.exceptions:
        if isinstance(each, BaseExceptionGroup):
            yield from _leaves(each)
        else:
            yield each


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m supervisor", description="The ATLAS Supervisor daemon."
    )
    parser.add_argument(
        "--env-file",
        type=Path,
        default=Path("atlas.env"),
        help="the settings (default: %(default)s)",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="check the settings, print the effective ones (secrets masked) and exit: 0, or 2",
    )
    parser.add_argument("--version", action="version", version=version("atlas-supervisor"))
    return parser
