"""`python -m atlas_worker`: reads the command line and the environment, then serves."""

from __future__ import annotations

import argparse
import logging
import os
import sqlite3
import sys
from collections.abc import Sequence

from atlas_worker.aiohttp import DEFAULT_PORT, run_app
from atlas_worker.app.application import make_app
from atlas_worker.app.settings import AppSettings
from atlas_worker.instance import BadEnvironmentError, Instance
from atlas_worker.sockets import find_listeners


def main(argv: Sequence[str] | None = None) -> int:
    """Run the bundled worker; return the exit code: 0, 1 (can't start), 2 (wrong usage)."""
    options = _parser().parse_args(argv)
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s"
    )
    try:
        instance = Instance.from_environment(os.environ)
        settings = AppSettings.from_environment(os.environ, instance.state_dir)
        listeners = find_listeners(
            os.environ,
            host=options.host,
            port=options.port,
            fd=options.fd,
            own_port=instance.port or DEFAULT_PORT,
        )
        app = make_app(instance, settings)
        run_app(app, instance=instance, listeners=listeners, print=None)
    except BadEnvironmentError as error:
        return _complain(str(error), 2)
    except (OSError, sqlite3.Error) as error:
        return _complain(f"can't start: {error}", 1)
    return 0


def _complain(message: str, code: int) -> int:
    sys.stderr.write(f"worker: {message}\n")
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m atlas_worker", description=__doc__)
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--port", type=_port, help="listen here (0 is any free port), not on inherited sockets"
    )
    where.add_argument("--fd", type=int, help="an inherited listening socket to serve")
    parser.add_argument("--host", default="127.0.0.1", help="the address that --port is opened on")
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError("expected a port from 0 to 65535")
    return int(text)
