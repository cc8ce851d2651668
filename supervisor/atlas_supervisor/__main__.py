"""`python -m atlas_supervisor`: imports the program quickly, and runs it.

Users wait for a start: after a crash of the daemon there are no deploys and no restarts until it
is back.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from atlas_supervisor.output import unfailing_output
from atlas_supervisor.system.program import is_reloaded
from atlas_supervisor.system.signals import ignore_signals


@contextmanager
def _without_collector() -> Iterator[None]:
    """Import without the garbage collector, which would scan all modules again and again.

    Imported objects live as long as the process, and are excluded from later collections.
    """
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


@contextmanager
def _without_certificates() -> Iterator[None]:
    """Keep aiohttp, which makes a TLS client at import, from reading the machine's certificates.

    The daemon is no TLS client. Workers get the original environment.
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
def _without_rich() -> Iterator[None]:
    """Keep structlog from importing rich, which takes a tenth of the start.

    It draws tracebacks on terminals with it; the daemon prints plain ones.
    """
    sys.modules["rich"] = None  # type: ignore[assignment]  # how an import is made to fail
    try:
        yield
    finally:
        del sys.modules["rich"]


def main() -> int:
    """Run the daemon; return the exit status."""
    ignore_signals(reloaded=is_reloaded())
    with unfailing_output("atlas-supervisor"):
        with _without_collector(), _without_certificates(), _without_rich():
            from atlas_supervisor import main as program  # noqa: PLC0415 - within these alone
        return program.main()


if __name__ == "__main__":
    sys.exit(main())
