"""The canaries of this process: the policy, the ring, and the thread that refreshes both.

Nothing happens before the first use, which loads the policy in the caller's thread. From then on a
helper thread checks the state file every 50 ms, and callers never access the disk. A forked child
starts anew at its own first use.

What keeps calls from being decided or recorded is logged once, by the logger `atlas_worker.canary`.
Without a supervisor, which is a missing file or folder, nothing is.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import random
import threading
import time
from pathlib import Path

from atlas_worker.canary.policy import (
    BadPolicyError,
    NoPolicyError,
    Rule,
    Unreported,
    read_policy,
)
from atlas_worker.canary.refused import RefusedCalls
from atlas_worker.canary.ring import RingWriter, make_ring
from atlas_worker.contract import ENV_STATE_DIR, RINGS_DIRECTORY, STATE_BYTES_LIMIT, STATE_FILE
from atlas_worker.contract.ring import FIRST_LAYOUT, SLICE_SECONDS, SLICES

POLL_SECONDS = 0.05
_RING_RETRY_SECONDS = 1.0


class CanaryProcess:
    """The canaries of one process; `rules` has the listed features."""

    __slots__ = ("_folder", "_layout", "_lock", "_logged", "_problems", "_refused", "_retry",
                 "_ring", "_seen", "_slice", "_started", "_starting", "_unreported", "enabled",
                 "keyed", "main", "random", "rules")  # fmt: skip

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Set the state of a process before its first use."""
        self.enabled = False
        self.rules: dict[str, Rule] = {}
        self.random = random.Random().random  # noqa: S311 - a draw, no secret
        self._lock = threading.RLock()
        self._started = self._starting = False
        self._unreported: dict[str, tuple[Unreported, Unreported]] = {}
        self._folder = Path()
        self._seen: tuple[int, int, int] | None = None
        self._slice = -1
        self._layout = FIRST_LAYOUT
        self._retry = 0.0
        self._problems = ["", ""]  # of the policy, of the ring
        self._logged = ["", ""]
        self._refused: RefusedCalls | None = None
        self._use(RingWriter.without_file())

    def after_fork(self) -> None:
        """Drop the parent's ring, thread and open calls."""
        self._ring.close()
        self.reset()

    def rule(self, feature: object) -> Rule | None:
        """Return the rule of a feature that `rules` lacks; starts at the first use."""
        if not self._started:
            self._start()
        return self.rules.get(feature) if isinstance(feature, str) else None

    def is_enabled(self) -> bool:
        """Return whether canaries are on; starts at the first use."""
        if not self._started:
            self._start()
        return self.enabled

    def _start(self) -> None:
        with self._lock:  # other threads wait for the policy too
            if self._started or self._starting:  # called by a signal handler in between
                return
            self._starting = True
            try:
                self._folder = Path(os.environ.get(ENV_STATE_DIR) or "state").absolute()
                thread = threading.Thread(target=self._follow, name="atlas-canary", daemon=True)
                thread.start()
            except (OSError, RuntimeError):
                return  # without the thread a fallback would go unnoticed: everything stays stable
            finally:
                self._starting = False
            self._try_refresh()
            self._started = True
        self._log_problems()

    def _follow(self) -> None:
        lock = self._lock
        while True:
            time.sleep(POLL_SECONDS)
            with lock:
                if self._lock is not lock:  # reset, with another thread
                    return
                self._try_refresh()
            self._log_problems()

    def _try_refresh(self) -> None:
        # The helper thread must go on, or a fallback goes unnoticed; callers must not fail.
        with contextlib.suppress(Exception):
            self._refresh()

    def _refresh(self) -> None:
        """Update the policy and the slice; create the ring if there is none."""
        now = time.monotonic()
        rules, enabled = self.rules, self.enabled
        try:
            status = os.stat(self._folder / STATE_FILE)  # noqa: PTH116 - faster than Path.stat
            seen = (status.st_mtime_ns, status.st_ino, status.st_size)
            if seen != self._seen:
                content = _content(self._folder / STATE_FILE)
                self._seen = seen  # a bad one is not parsed again and again
                policy = read_policy(content, self._unreported)
                rules, enabled, self._layout = policy.rules, policy.enabled, policy.ring_layout
                self._problems[0] = ""
        except (FileNotFoundError, NoPolicyError):
            pass  # there is no supervisor; the last valid policy stays
        except (OSError, BadPolicyError) as error:
            self._problems[0] = f"the canary policy can't be read, so the last one stays: {error}"
        if rules and not self._ring.has_file and now >= self._retry:
            self._make_ring(now)
        self._ring.add_blocks()
        self._count_refused()
        number = int(now / SLICE_SECONDS) % SLICES
        if number != self._slice or rules is not self.rules:
            self._slice = number
            for rule in rules.values():
                rule.set_slice(number)
        self.rules, self.enabled = rules, enabled

    def _make_ring(self, now: float) -> None:
        self._retry = now + _RING_RETRY_SECONDS
        folder = self._folder / RINGS_DIRECTORY
        dropped = self.main.dropped + self.keyed.dropped
        counted = self._refused.counted if self._refused else 0
        # Without a file calls are decided, and counted as dropped.
        try:
            self._use(make_ring(folder, (dropped - counted, 0), self._layout))
            self._problems[1] = ""
        except FileNotFoundError:
            pass  # there is no supervisor
        except (OSError, ValueError) as error:
            self._problems[1] = f"canary calls of this process are not recorded: {error}"
            if self._refused is None:
                self._refused = RefusedCalls(folder)
                atexit.register(self._count_refused, last=True)

    def _count_refused(self, *, last: bool = False) -> None:
        with self._lock:
            if self._refused is not None and not self._ring.has_file:
                self._refused.count(self.main.dropped + self.keyed.dropped, last=last)

    def _log_problems(self) -> None:
        # Without the lock: a log handler may take as long as it likes, and use canaries itself.
        for number, problem in enumerate(self._problems):
            if problem != self._logged[number]:
                self._logged[number] = problem
                if problem:
                    with contextlib.suppress(Exception):
                        import logging  # noqa: PLC0415 - most processes log nothing here

                        logging.getLogger("atlas_worker.canary").warning("%s", problem)

    def _use(self, ring: RingWriter) -> None:
        self._ring = ring
        self.main, self.keyed = ring.main, ring.keyed


def _content(path: Path) -> bytes:
    """Return the file's content up to the limit and one more byte; does not block on a FIFO.

    Raises OSError.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return os.read(descriptor, STATE_BYTES_LIMIT + 1)
    finally:
        os.close(descriptor)


process = CanaryProcess()
os.register_at_fork(after_in_child=process.after_fork)
