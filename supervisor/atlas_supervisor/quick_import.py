"""Imports of a whole program that take less time."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collector() -> Iterator[None]:
    """Import without the garbage collector, which would scan all modules again and again.

    Imported objects live as long as the process, and are excluded from later collections.
    """
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


@contextmanager
def without_certificates() -> Iterator[None]:
    """Keep aiohttp, which makes a TLS client at import, from reading the machine's certificates.

    The daemon is no TLS client, and `atlasctl` reads them for an `https://` URL alone. What is
    started gets the original environment.
    """
    before = {name: os.environ.get(name) for name in ("SSL_CERT_FILE", "SSL_CERT_DIR")}
    os.environ.update(dict.fromkeys(before, os.devnull))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def without_rich() -> Iterator[None]:
    """Keep structlog from importing rich, which takes a tenth of the start.

    It draws tracebacks on terminals with it; the daemon prints plain ones.
    """
    sys.modules["rich"] = None  # type: ignore[assignment]  # how an import is made to fail
    try:
        yield
    finally:
        del sys.modules["rich"]
