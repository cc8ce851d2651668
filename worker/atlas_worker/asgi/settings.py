"""uvicorn's configuration, from the runner's command line."""

from __future__ import annotations

import argparse
import copy
import importlib.util
from typing import Any

import uvicorn
from uvicorn.config import LOGGING_CONFIG

from atlas_worker.asgi.protocols import Watched, WatchedH11, watched_httptools

# Options that only the runner reads; all others have the names of uvicorn's own settings.
_OURS = ("app", "app_dir", "host", "port", "fd", "http")


def make_config(app: Any, options: argparse.Namespace) -> uvicorn.Config:
    """Return what uvicorn is to do; raises ImportError for a library that is not installed."""
    settings = {name: value for name, value in vars(options).items() if name not in _OURS}
    return uvicorn.Config(
        app,
        http=_protocol(options.http),
        log_config=_log_config(options.log_level),
        **settings,
    )


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
