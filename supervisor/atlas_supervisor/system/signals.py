"""The daemon's signals: SIGTERM and SIGINT end it, in order, and no other does.

Most have an action by default that would end the process. Each of them is decided here, before
anything else of the daemon is imported: a stray SIGHUP in the first second must not end it either.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable
from types import FrameType

_FAULTS = frozenset(
    {
        signal.SIGSEGV,
        signal.SIGBUS,
        signal.SIGFPE,
        signal.SIGILL,
        signal.SIGTRAP,
        signal.SIGSYS,
    }
)
"""Ignored if some process sends them. A fault of our own ends us: the kernel ignores no fault."""
_FAILED_WRITES = frozenset({signal.SIGPIPE, signal.SIGXFSZ})
"""Ignored without a word, as Python does: the write itself reports the error."""
_HARMLESS = frozenset(
    {
        *(signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD),
        *(signal.SIGCONT, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU),
        *(signal.SIGURG, signal.SIGWINCH),
    }
)
"""Those that end us in order, can't be caught, or end no process."""
LOGGED = frozenset(signal.valid_signals()) - _FAULTS - _FAILED_WRITES - _HARMLESS

_pending: deque[int] = deque(maxlen=64)
_report: Callable[[int], object] = _pending.append


def ignore_signals() -> None:
    """Let no signal end this process but SIGTERM and SIGINT."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # a parent may have blocked even these
    for number in _FAULTS | _FAILED_WRITES:
        signal.signal(number, signal.SIG_IGN)
    for number in LOGGED:
        signal.signal(number, _note)  # not SIG_IGN, which every program that we start would inherit


def report_ignored(report: Callable[[int], object]) -> None:
    """Call `report` with each ignored signal from now on, and with those that came before."""
    global _report  # noqa: PLW0603  # handlers belong to the process, too
    _report = report
    while _pending:
        report(_pending.popleft())


def name_of(number: int) -> str:
    """Return a signal's name; of a real-time signal, its number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _note(number: int, _frame: FrameType | None) -> None:
    _report(number)
