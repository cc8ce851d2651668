"""Receives the head of a request before its connection gets one of the bounded places.

A connection in a place has a parser, tasks and timers. One that arrives has a socket and the bytes
of its request's head, so thousands that send nothing, or a byte now and then, cost little and take
no place from others. The head also shows whether the caller has the token, so that it is served
first, before anything is decided about it.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable
from contextlib import suppress

from atlas_supervisor.api.messages import raw_timeout

_MOST_BYTES = 4 * 1024
"""The beginning of a longer head counts as a head; the rest stays in the kernel meanwhile."""
_COMPLETE = re.compile(rb"\n\r?\n")
_NO_HEAD = re.compile(rb"\A[^A-Z]|[^\t\r\n -~]")
"""What no request begins with, or has in it: the HTTP parser refuses it at once."""


class Arrival:
    """A connection that is accepted and has no place yet.

    `complete` is called when its head has arrived. `ended` is called if it ends before it has a
    place; with True if `deadline` (loop time) has passed and a part of the head has arrived.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        deadline: float,
        complete: Callable[[Arrival], None],
        ended: Callable[[Arrival, bool], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.sock = sock
        self.deadline = deadline
        self.head = b""
        self.is_complete = False
        self._complete = complete
        self._ended = ended
        self._timer = self._loop.call_at(deadline, self._expire)

    def receive(self) -> None:
        """Read until the head is complete."""
        self._loop.add_reader(self.sock.fileno(), self._read)

    def take(self) -> socket.socket:
        """Return the socket, which is the caller's from now on."""
        self._stop()
        return self.sock

    def close(self) -> None:
        """End the connection."""
        self._stop()
        self.sock.close()

    def _stop(self) -> None:
        self._loop.remove_reader(self.sock.fileno())
        self._timer.cancel()

    def _read(self) -> None:
        try:
            data = self.sock.recv(_MOST_BYTES - len(self.head))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._end(late=False)
            return
        self.head += data
        full = len(self.head) == _MOST_BYTES
        if full or _COMPLETE.search(self.head) or _NO_HEAD.search(self.head):
            self._loop.remove_reader(self.sock.fileno())
            self.is_complete = True
            self._complete(self)

    def _expire(self) -> None:
        """End it: with an answer, if a part of a request has come and the rest is late."""
        late = bool(self.head) and not self.is_complete
        if late:
            with suppress(OSError):  # it does not read either, or has left
                self.sock.send(raw_timeout())
        self._end(late=late)

    def _end(self, *, late: bool) -> None:
        self._ended(self, late)
        self.close()
