"""What exit statuses, signals and failed starts usually mean, and where to look.

The daemon reports what happened; these are likely reasons, for the person who fixes it.
"""

from __future__ import annotations

import re
import signal
from contextlib import suppress

_NATIVE = "a crash in native code: an extension module or the interpreter, not an exception"
_ASKED = "it was asked to exit, but not by the supervisor"
_SIGNALS = {
    "SIGKILL": "killed from outside, often by the kernel for lack of memory; check `journalctl -k` "
    "or `dmesg`",
    "SIGSEGV": _NATIVE,
    "SIGBUS": _NATIVE,
    "SIGILL": _NATIVE,
    "SIGFPE": _NATIVE,
    "SIGABRT": "it aborted on an internal error; see its last output",
    "SIGSYS": "it made a system call that a seccomp filter forbids",
    "SIGTERM": _ASKED,
    "SIGINT": _ASKED,
    "SIGHUP": _ASKED,
}
_STATUSES = {
    126: "the program can't be executed: check its mode, its format, and for a `noexec` mount",
    127: "no such program: check for a typo, the PATH, and a script's `#!` line",
}
_NOT_READY = (
    "not ready: it gave no HTTP answer on its port. It may listen elsewhere, not speak HTTP, "
    "hang, or need longer than READY_TIMEOUT_SECONDS"
)
_REFUSED = "connection refused: it listens on another port or address, or it has exited"
_WORDS = (
    (re.compile(r"\bwas not ready within\b"), _NOT_READY),
    (re.compile(r"\bconnection refused: nothing listens there\b"), _REFUSED),
)

_BY_SIGNAL = re.compile(r"\bended by (SIG[A-Z0-9]+)\b")
_BY_STATUS = re.compile(r"\bexit(?:ed with status)? (\d{1,3})\b")
_SHELL_SIGNALS = (
    128  # a shell's exit status for a program ended by a signal is this plus its number
)


def hint(message: object) -> str | None:
    """Return the likely reason for the exit that `message` reports; None if it reports none."""
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
            return f"{status} is a shell's status for {name}: {_SIGNALS[name]}"
    return None
