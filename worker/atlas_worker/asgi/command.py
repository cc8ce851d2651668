"""The runner's command line: uvicorn's own, without the options that the drain can't keep.

Options, defaults and messages are those of the installed uvicorn, so that a command changes in its
first word only, and an option that uvicorn adds is there.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click
import uvicorn
from click.core import ParameterSource
from uvicorn.config import LOGGING_CONFIG
from uvicorn.importer import ImportFromStringError, import_from_string

from atlas_worker.asgi.protocols import Watched, WatchedH11, watched_httptools

_SEVERAL = "one process serves one slot; see docs/adapters/asgi.md for several"
_TLS = "end TLS in the proxy before the supervisor: inherited sockets are plain HTTP"
_RELOAD = "the supervisor's deploys take its place; run uvicorn itself while you develop"
_LIMIT = "the supervisor restarts instances; a worker that exits by itself is a crash to it"

# Parameters of uvicorn that the runner refuses, and what to do instead. A prefix ends in "_".
_REFUSED = {
    "workers": _SEVERAL,
    "timeout_worker_healthcheck": _SEVERAL,
    "reload": _RELOAD,
    "reload_": _RELOAD,
    "uds": "sockets are inherited, or named by --host and --port, or --fd",
    "backlog": "the supervisor's backlog is kept, which is 4096",
    "limit_max_requests": _LIMIT,
    "limit_max_requests_": _LIMIT,
    "timeout_graceful_shutdown": "the supervisor's DRAIN_TIMEOUT_SECONDS limits the drain",
    "ssl_": _TLS,
    "http2": "the drain is written for HTTP/1.1; a proxy in front may speak HTTP/2",
    "env_file": "the supervisor's WORKER_ENV_FILE takes its place",
}
# Where the runner differs: sockets are inherited unless a port is named, the HTTP protocol must be
# one that the drain can watch, and the access log is off.
_CHANGED: dict[str, dict[str, Any]] = {
    "app": {"envvar": None},
    "port": {
        "default": None,
        "show_default": False,
        "type": click.IntRange(0, 65535),
        "help": "Bind to this port, not to inherited sockets. [default: 8000 without these]",
    },
    "http": {"type": click.Choice(["auto", "h11", "httptools"]), "metavar": None},
    "log_level": {"default": "info", "help": "Log level."},
    "access_log": {"default": False},
}
# Read by the runner itself; the others are uvicorn's settings under the same names.
_OWN = ("app", "app_dir", "host", "port", "fd", "http")


class AppLoadError(ImportError):
    """The application's module fails when it is imported; its traceback has been printed."""


def parse(program: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Return the settings of a command line by their names.

    Raises `click.ClickException` for wrong usage, and `click.exceptions.Exit` after `--help`.
    """
    command = click.Command(
        program,
        params=[_adapted(parameter) for parameter in uvicorn.main.params],
        help="Serve an ASGI application with uvicorn on inherited sockets, and drain it "
        "without losing a request.",
    )
    context = command.make_context(program, list(arguments))
    for parameter in command.params:
        reason = _refusal(parameter)
        if reason is None:
            continue
        if context.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{parameter.opts[0]} is not supported: {reason}")
        context.params.pop(str(parameter.name), None)
    settings = context.params
    if settings["port"] is not None and settings["fd"] is not None:
        raise click.UsageError("--port and --fd exclude each other")
    settings["headers"] = [_header(header) for header in settings["headers"]]
    return settings


def _adapted(parameter: click.Parameter) -> click.Parameter:
    """Return the runner's version of one of uvicorn's parameters."""
    adapted = copy.copy(parameter)
    for name, value in _CHANGED.get(str(parameter.name), {}).items():
        setattr(adapted, name, value)
    if isinstance(adapted, click.Option):
        adapted.hidden = _refusal(parameter) is not None
    return adapted


def _refusal(parameter: click.Parameter) -> str | None:
    name = str(parameter.name)
    for refused, reason in _REFUSED.items():
        if name == refused or (refused.endswith("_") and name.startswith(refused)):
            return reason
    return None


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not name or not colon:
        raise click.BadParameter(f"{text!r} is not NAME:VALUE", param_hint="'--header'")
    return name, value


def load_app(name: str, directory: str) -> Any:
    """Return the application `module:attribute`; modules are searched for in `directory` first.

    Raises `click.UsageError` if there is no such application, and `AppLoadError`.
    """
    if directory not in sys.path:
        sys.path.insert(0, directory)
    try:
        app = import_from_string(name)
    except ImportFromStringError as error:
        place = directory or "the working directory"
        hint = f"Modules are searched for in {place} first (--app-dir)."
        raise click.UsageError(f"{error} {hint}") from None
    except Exception as error:
        traceback.print_exc()
        raise AppLoadError(f"importing {name} failed: {error!r}") from error
    if not callable(app):
        raise click.UsageError(f"{name} is {type(app).__name__}: an ASGI application is callable")
    return app


def make_config(app: Any, settings: dict[str, Any]) -> uvicorn.Config:
    """Return uvicorn's configuration; raises ImportError for a library that is not installed."""
    given = {name: value for name, value in settings.items() if name not in _OWN}
    given["log_config"] = given["log_config"] or _log_config(settings["log_level"])
    return uvicorn.Config(app, http=_protocol(settings["http"]), **given)


def _protocol(name: str) -> type[Watched]:
    if name == "h11" or (name == "auto" and importlib.util.find_spec("httptools") is None):
        return WatchedH11
    return watched_httptools()


def _log_config(level: str) -> dict[str, Any]:
    """Return uvicorn's logging, with the kit's own lines in it."""
    config = copy.deepcopy(LOGGING_CONFIG)
    # "trace" is uvicorn's own.
    ours = {"trace": "debug"}.get(level, level).upper()
    config["loggers"]["atlas"] = {"handlers": ["default"], "level": ours, "propagate": False}
    return config
