"""Counts the requests of this process, without a lock or a system call on the request's path.

The layout and its protocol are in `atlas_worker.contract.request_file`. A cell is changed by
`cells[place] += 1` with a place that is known before: the interpreter switches threads and runs
signal handlers only at calls and at backward jumps, and there is none between reading and writing.
That needs the global interpreter lock; without it nothing is counted.

What counts: a request of a user, from its head until the response has ended (a stream to its last
byte). Not the supervisor's probes and smoke tests, which carry a header. A WebSocket is a
connection: its handshake is the request, and ended when it is answered. A response that the
application did not finish counts as 500, also if its first line had another status; a client that
left before its end is no failure.

A forked child counts in a file of its own, from its first request on.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic

from atlas_worker.contract import (
    ENV_INSTANCE,
    ENV_STATE_DIR,
    RINGS_DIRECTORY,
    latency_bucket,
)
from atlas_worker.contract import request_file as layout
from atlas_worker.contract.request_file import (
    CLASSES,
    LATENCIES,
    LEFT,
    RECORD_CELLS,
    SECONDS,
    SLOW_RECORD,
    SLOW_SECONDS,
)
from atlas_worker.contract.ring import Owner
from atlas_worker.process_file import create

CLIENT_LEFT = 0
"""In place of a status: the client left before the response had ended."""
UNFINISHED = 500
"""The status of a response that the application did not finish."""
NOT_COUNTED = 0.0
"""In place of a beginning."""

_OUTCOMES = bytes(min(max(status // 100, 1), CLASSES) if status else LEFT for status in range(1000))


class RequestCounter:
    """The counts of one process. `begin` and `end` never raise.

    begin() -> float: counts a request that begins, and returns what its end is to be called with.
    end(began, status): counts its end. One that was not counted at its beginning is not counted.
    """

    begin: Callable[[], float]
    end: Callable[[float, int], None]

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Set the state of a process before its first request; a fork has its parent's."""
        self._lock = threading.Lock()
        self._opened = False
        self.begin, self.end = self._open_and_begin, _ignore

    def open(self) -> None:
        """Create the file, unless there is one. Without a supervisor nothing is counted."""
        with self._lock:
            if self._opened:
                return
            self._opened = True
            self.begin, self.end = _uncounted, _ignore
            if not os.environ.get(ENV_INSTANCE):
                return
            folder = Path(os.environ.get(ENV_STATE_DIR) or "state").absolute() / RINGS_DIRECTORY
            try:
                file, _path = create(folder, layout.SUFFIX, layout.FILE_BYTES, _fill)
            except FileNotFoundError:
                return  # there is no supervisor
            except (OSError, ValueError) as error:
                problem = str(error)
            else:
                self.begin, self.end = counting(memoryview(file)[layout.HEADER_BYTES :].cast("Q"))
                return
        import logging  # noqa: PLC0415 - most processes log nothing here

        logging.getLogger("atlas.worker").warning(
            "requests of this process are not counted: %s", problem
        )

    def _open_and_begin(self) -> float:
        self.open()
        return self.begin()


def counting(
    cells: memoryview[int],
) -> tuple[Callable[[], float], Callable[[float, int], None]]:
    """Return `begin` and `end` that count in these cells."""
    opened = monotonic()

    def begin() -> float:
        began = monotonic()
        place = int(began) % SECONDS * RECORD_CELLS
        cells[place] += 1
        return began

    def end(began: float, status: int) -> None:
        if began < opened:  # not counted, or by the process before a fork
            return
        took = monotonic() - began
        bucket = LATENCIES + latency_bucket(took * 1000)
        place = SLOW_RECORD if took >= SLOW_SECONDS else int(began) % SECONDS * RECORD_CELLS
        outcome = _OUTCOMES[status] if 0 <= status < 1000 else CLASSES
        place += outcome
        cells[place] += 1
        if outcome != LEFT:
            cells[bucket] += 1

    return begin, end


def _uncounted() -> float:
    return NOT_COUNTED


def _ignore(_began: float, _status: int) -> None:
    pass


def _fill(descriptor: int, owner: Owner) -> None:
    os.posix_fallocate(descriptor, 0, layout.FILE_BYTES)
    os.pwrite(descriptor, layout.pack_header(owner), 0)


counter = RequestCounter()
os.register_at_fork(after_in_child=counter.reset)
