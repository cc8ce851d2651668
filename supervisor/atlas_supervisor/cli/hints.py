"""What the ways in which a program ends usually mean, and where to look then.

The daemon says what happened; these are a guess at why, for a person who has to mend it.
"""

from __future__ import annotations

import re
import signal
from contextlib import suppress

_NATIVE = "a crash in native code: an extension module or the interpreter, not an exception"
_ASKED = "it was asked to end, by somebody else than the supervisor or by itself"
_SIGNALS = {
    "SIGKILL": "it was killed from outside, often by the kernel because memory ran out; "
    "`journalctl -k` or `dmesg` says so",
    "SIGSEGV": _NATIVE,
    "SIGBUS": _NATIVE,
    "SIGILL": _NATIVE,
    "SIGFPE": _NATIVE,
    "SIGABRT": "it gave up by itself on an internal error; its last output says which",
    "SIGSYS": "it made a system call that a filter (seccomp) forbids",
    "SIGTERM": _ASKED,
    "SIGINT": _ASKED,
    "SIGHUP": _ASKED,
}
_STATUSES = {
    126: "the program can't be executed: its mode bits, its format, or a `noexec` mount",
    127: "there is no such program: a typo, the PATH, or what a script's first line names",
}
_NOT_READY = (
    "not ready: it neither said READY=1 nor answered on its port. It listens elsewhere, hangs, "
    "or needs longer than READY_TIMEOUT_SECONDS"
)
_REFUSED = "connection refused: it listens on another port or address, or it has ended"
_WORDS = (
    (re.compile(r"\bwas not ready within\b"), _NOT_READY),
    (re.compile(r"\bconnection refused: nothing listens there\b"), _REFUSED),
)

_BY_SIGNAL = re.compile(r"\bended by (SIG[A-Z0-9]+)\b")
_BY_STATUS = re.compile(r"\bexit(?:ed with status)? (\d{1,3})\b")
_SHELL_SIGNALS = 128  # a shell exits with this and a signal's number for a program ended by it


def hint(message: object) -> str | None:
    """Return what the ending that `message` tells of usually means; None if it tells of none."""
    text = str(message)
    if (found := _BY_SIGNAL.search(text)) and found[1] in _SIGNALS:
        return f"{found[1]}: {_SIGNALS[found[1]]}"
    if found := _BY_STATUS.search(text):
        return _of_status(int(found[1]))
    return next((words for pattern, words in _WORDS if pattern.search(text)), None)


def _of_status(status: int) -> str | None:
    if status in _STATUSES:
        return f"{status}: {_STATUSES[status]}"
    with suppress(ValueError):
        name = signal.Signals(status - _SHELL_SIGNALS).name
        if name in _SIGNALS:
            return f"{status} is a shell's word for {name}: {_SIGNALS[name]}"
    return None
