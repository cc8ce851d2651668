"""The command line of the runner: uvicorn's options, except those that the drain can't keep.

They have uvicorn's names and meanings, so that a command changes in its first word only.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

PROGRAM = "python -m atlas_worker.asgi"

_SEVERAL = "one process serves one slot; see docs/adapters/asgi.md for several"
_TLS = "end TLS in the proxy before the supervisor: sockets handed over speak plain HTTP"
_RELOAD = "the supervisor's deploys take its place; run uvicorn itself while you develop"
_SOCKETS = "sockets are handed over, or named by --host and --port, or --fd"
_DRAIN = "the drain has its own limit, DRAIN_TIMEOUT_SECONDS of the supervisor"
_LIMIT = "the supervisor restarts instances; a worker that leaves by itself is a crash to it"

# What uvicorn takes and this runner does not, and what to do instead. A prefix ends in "-".
_REFUSED = {
    "--workers": _SEVERAL,
    "--reload": _RELOAD,
    "--reload-": _RELOAD,
    "--uds": _SOCKETS,
    "--backlog": "the supervisor's backlog is kept, which is 4096",
    "--limit-max-requests": _LIMIT,
    "--limit-max-requests-": _LIMIT,
    "--timeout-graceful-shutdown": _DRAIN,
    "--timeout-worker-healthcheck": _SEVERAL,
    "--ssl-": _TLS,
    "--http2": "HTTP/1.1 is what the drain knows; a proxy in front may speak HTTP/2",
    "--env-file": "the supervisor's WORKER_ENV_FILE takes its place",
}


class _Parser(argparse.ArgumentParser):
    """Names the option of uvicorn's that can't be taken, and the reason."""

    def error(self, message: str) -> NoReturn:
        """Complain in one line; exit 2."""
        self.exit(2, f"{self.prog}: {message}\n")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; exits with 2 and one line that says what to do, where it can't."""
    parser = _parser()
    for argument in arguments:
        if reason := _refusal(argument.partition("=")[0]):
            parser.error(f"{argument.partition('=')[0]} is not taken: {reason}")
    return parser.parse_args(arguments)


def _refusal(option: str) -> str | None:
    for name, reason in _REFUSED.items():
        if option == name or (name.endswith("-") and option.startswith(name)):
            return reason
    return None


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROGRAM,
        description="Serve an ASGI application with uvicorn on the handed sockets, and drain it "
        "without losing a request.",
        allow_abbrev=False,
    )
    parser.add_argument("app", metavar="module:app", help="the application, as for uvicorn")
    parser.add_argument("--factory", action="store_true", help="the name is a function's")
    parser.add_argument(
        "--app-dir",
        metavar="FOLDER",
        default="",
        help="where modules are looked for first; the working directory",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--port", type=_port, help="listen here, not on what is handed over; 8000 if nothing is"
    )
    where.add_argument("--fd", type=int, help="an inherited listening socket to serve")
    parser.add_argument(
        "--host", default="127.0.0.1", help="the address that --port is opened on (%(default)s)"
    )
    _add_protocols(parser)
    _add_websockets(parser)
    _add_application(parser)
    _add_answers(parser)
    parser.add_argument(
        "--log-level",
        choices=("critical", "error", "warning", "info", "debug", "trace"),
        default="info",
        help="what is logged at least (%(default)s)",
    )
    parser.add_argument(
        "--access-log",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="a line per request; off unless asked for: the supervisor's metrics tell more",
    )
    parser.add_argument(
        "--use-colors", action=argparse.BooleanOptionalAction, help="in the log; on a terminal"
    )
    return parser


def _add_protocols(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--loop",
        choices=("auto", "asyncio", "uvloop", "none"),
        default="auto",
        help="the event loop; auto takes uvloop if it is installed",
    )
    parser.add_argument(
        "--http",
        choices=("auto", "h11", "httptools"),
        default="auto",
        help="who reads HTTP; auto takes httptools if it is installed",
    )
    parser.add_argument(
        "--timeout-keep-alive",
        metavar="SECONDS",
        type=int,
        default=5,
        help="of an idle connection (%(default)s)",
    )
    parser.add_argument(
        "--limit-concurrency", metavar="COUNT", type=int, help="answer 503 above it"
    )
    parser.add_argument(
        "--h11-max-incomplete-event-size", metavar="BYTES", type=int, help="of a head, under h11"
    )


def _add_websockets(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ws",
        choices=("auto", "none", "websockets", "websockets-sansio", "wsproto"),
        default="auto",
        help="who reads WebSockets",
    )
    parser.add_argument(
        "--ws-max-size",
        metavar="BYTES",
        type=int,
        default=16777216,
        help="of a message (%(default)s)",
    )
    parser.add_argument(
        "--ws-max-queue", metavar="MESSAGES", type=int, default=32, help="%(default)s"
    )
    parser.add_argument(
        "--ws-ping-interval", metavar="SECONDS", type=float, default=20.0, help="%(default)s"
    )
    parser.add_argument(
        "--ws-ping-timeout", metavar="SECONDS", type=float, default=20.0, help="%(default)s"
    )
    parser.add_argument(
        "--ws-per-message-deflate",
        metavar="BOOL",
        type=_truth,
        default=True,
        help="compress messages (true)",
    )


def _add_application(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--lifespan",
        choices=("auto", "on", "off"),
        default="auto",
        help="whether start-up and shutdown are the application's to hear; auto asks it",
    )
    parser.add_argument(
        "--interface",
        choices=("auto", "asgi3", "asgi2", "wsgi"),
        default="auto",
        help="how the application is called",
    )


def _add_answers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--root-path", metavar="PATH", default="", help="the path that a proxy takes away"
    )
    parser.add_argument(
        "--proxy-headers",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="believe a proxy about scheme and client (on)",
    )
    parser.add_argument(
        "--forwarded-allow-ips",
        metavar="ADDRESSES",
        help="whose forwarded headers are believed (127.0.0.1)",
    )
    parser.add_argument(
        "--server-header", action=argparse.BooleanOptionalAction, default=True, help="(on)"
    )
    parser.add_argument(
        "--date-header", action=argparse.BooleanOptionalAction, default=True, help="(on)"
    )
    parser.add_argument(
        "--header",
        dest="headers",
        metavar="NAME:VALUE",
        type=_header,
        action="append",
        default=[],
        help="goes into every answer",
    )


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError("a port from 0 to 65535 is taken")
    return int(text)


def _truth(text: str) -> bool:
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in known:
        raise argparse.ArgumentTypeError("true or false is taken")
    return known[text.lower()]


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not name or not colon:
        raise argparse.ArgumentTypeError("NAME:VALUE is taken")
    return name, value
