"""Standard output and standard error whose failures never change what a program does.

A reader may have left (`| head -1`), a disk may be full, a descriptor closed, a terminal gone. What
can't be written then is dropped, and said once on standard error; the exit status remains that of
what was asked.
"""

from __future__ import annotations

import errno
import io
import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, TextIO


class Output(io.TextIOWrapper):
    """A standard stream that drops what it can't write; characters it lacks are escaped."""

    def __init__(self, descriptor: int, like: TextIO | None) -> None:
        self._raw = _Descriptor(descriptor, is_closed=like is None)
        encoding = like.encoding if like is not None else "utf-8"
        super().__init__(
            io.BufferedWriter(self._raw),
            encoding=encoding,
            errors="backslashreplace",
            line_buffering=self._raw.isatty(),
        )

    @property
    def fault(self) -> OSError | None:
        """Why the stream can't be written; None while it can."""
        return self._raw.fault


class _Descriptor(io.FileIO):
    """An open descriptor; after its first fault nothing is written to it."""

    def __init__(self, descriptor: int, *, is_closed: bool) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self.fault: OSError | None = None
        self._is_closed = is_closed

    def write(self, data: Any) -> int:
        """Write, or drop, all of `data`."""
        rest = memoryview(data).cast("B")
        length = len(rest)
        try:
            if self._is_closed and length:
                raise OSError(errno.EBADF, "it is closed")
            while rest and self.fault is None:
                written = super().write(rest)
                if written is None:  # another program has made the descriptor non-blocking
                    select.select([], [self], [])
                else:
                    rest = rest[written:]
        except OSError as error:
            self.fault = self.fault or error
        return length


class _Call:
    """Whether what was asked changes something, so that its outcome must not be missed."""

    changes = False


def see_through() -> None:
    """Note that what follows changes something: a terminal that disappears does not end it."""
    _Call.changes = True
    with suppress(ValueError):  # a test calls from another thread, which can't
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


def is_lost(stream: IO[str]) -> bool:
    """Return whether the stream can't be written any more."""
    return isinstance(stream, Output) and stream.fault is not None


def outcome_is_lost(stream: IO[str]) -> bool:
    """Return whether a change was made whose outcome the stream can't show."""
    return _Call.changes and is_lost(stream)


@contextmanager
def unfailing_output(program: str) -> Iterator[None]:
    """Let both standard streams be unfailing ones; say at the end if standard output failed.

    A reader that left is no fault, unless it missed the outcome of a change.
    """
    _fill_standard_descriptors()
    before = sys.stdout, sys.stderr
    out, err = Output(1, sys.stdout), Output(2, sys.stderr)
    sys.stdout, sys.stderr = out, err
    try:
        yield
    finally:
        out.flush()
        fault = out.fault
        if fault is not None and (fault.errno != errno.EPIPE or _Call.changes):
            err.write(
                f"{program}: standard output can't be written ({fault.strerror}); the exit status "
                "is that of the request\n"
            )
        err.flush()
        sys.stdout, sys.stderr = before


def _fill_standard_descriptors() -> None:
    """Open the null device where a standard descriptor is closed; no other file may take it."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, descriptor)
            if null != descriptor:
                os.close(null)
            os.set_inheritable(descriptor, True)
