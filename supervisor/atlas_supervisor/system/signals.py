"""The daemon's signals: SIGTERM and SIGINT end it, in order, SIGHUP reloads it, no other matters.

Most have an action by default that would end the process. Each of them is decided here, before
anything else of the daemon is imported: a stray SIGHUP in the first second must not end it either.

A reload executes the next program in this process. The three stay blocked from before the exec
until that program handles them (`kept`, `handled`): what arrives in between is not lost.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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


_HANDLED = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
"""Those that ask the daemon for something."""


def ignore_signals(*, reloaded: bool = False) -> None:
    """Let no signal end this process but SIGTERM and SIGINT; after a reload these wait as well."""
    for number in _FAULTS | _FAILED_WRITES:
        signal.signal(number, signal.SIG_IGN)
    for number in LOGGED:
        signal.signal(number, _note)  # not SIG_IGN, which every program that we start would inherit
    # A parent may have blocked any of them.
    signal.pthread_sigmask(signal.SIG_SETMASK, _HANDLED if reloaded else ())


def handled() -> None:
    """Let signals that wait since a reload arrive: there are handlers for them now."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)


@contextmanager
def kept() -> Iterator[int]:
    """Keep every signal that arrives meanwhile, for the next program in this process.

    Blocked signals wait, in an exec too. But another thread may take one that this thread blocks;
    the interpreter then writes its number to a pipe, whose end to `repeat` from is yielded. Signals
    from before are handled as ever, in the next turns of the event loop.
    """
    before = signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    woken = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield reading
    finally:
        signal.set_wakeup_fd(woken)
        os.close(writing)
        repeat(reading)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def repeat(reading: int) -> None:
    """Send us again the signals whose numbers are in a pipe of `kept`, and close it."""
    with suppress(BlockingIOError):
        for number in os.read(reading, 4096):
            if number in _HANDLED:
                os.kill(os.getpid(), number)
    os.close(reading)


def report(to: Callable[[int], object]) -> None:
    """Call `to` with each signal that ends nothing from now on, and with those from before."""
    global _report  # noqa: PLW0603  # handlers belong to the process, too
    _report = to
    while _pending:
        to(_pending.popleft())


def name_of(number: int) -> str:
    """Return a signal's name; of a real-time signal, its number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _note(number: int, _frame: FrameType | None) -> None:
    _report(number)
