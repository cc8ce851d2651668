"""The application under load: releases of the bundled worker, and clients that miss nothing."""

from __future__ import annotations

from tests.harness import DaemonProcess, Setting, write_release
from tests.loadclient import Kind, Traffic, bundled_worker_home, echo

IDLE_GRACE_SECONDS = 0.8
RELEASES = "releases"
SETTINGS: dict[str, Setting] = {
    "WORKER_COMMAND": "sh run.sh",
    "DRAIN_TIMEOUT_SECONDS": 4,
    "RELEASES_DIR": RELEASES,
}
GOOD = f"exec env ATLAS_IDLE_GRACE_SECONDS={IDLE_GRACE_SECONDS} python -m atlas_worker\n"
BAD = "echo no database; exit 3\n"
FILES = {"run.sh": GOOD}

_BUSY = (0.0, 0.08)
# No connection may be idle for longer than a draining worker's idle grace.
_SELDOM = (0.35 * IDLE_GRACE_SECONDS, 0.7 * IDLE_GRACE_SECONDS)
MIX: tuple[Kind, ...] = (
    Traffic("keep-alive GET", 2, bundled_worker_home, think=_BUSY),
    Traffic("keep-alive GET, mostly idle", 4, bundled_worker_home, think=_SELDOM),
    echo("one connection per request", 2, body_size=64, keep_alive=False, think=_BUSY),
    echo("slow upload", 1, body_size=16 * 1024, drip=(0.5, 2.0)),
)
"""Some 80 requests per second."""
CLIENTS = sum(kind.loops for kind in MIX)


def put_release(daemon: DaemonProcess, version: str, good: bool) -> None:
    """Make a release of this name."""
    folder = daemon.folder / RELEASES / version
    write_release(folder, version, {"run.sh": GOOD if good else BAD})
