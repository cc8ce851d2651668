"""Divides the daemon's time and memory between callers, so that none can take all of it.

A caller is trusted if it has the token, or connects to the Unix socket as root or the daemon's own
user. Its requests begin at once, those of all others at a bounded rate. Answers that are made and
not sent yet are bounded over all connections.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

BEGUN_AT_ONCE = 4
"""So many requests of untrusted callers begin in `PAUSE_SECONDS`."""
PAUSE_SECONDS = 0.005

MOST_UNSENT = 24 * 1024 * 1024
"""Bytes of all answers that are not sent yet."""


class Turnstile:
    """Lets requests begin at a bounded rate, in the order in which they came."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._left = BEGUN_AT_ONCE
        self._refilling = False

    async def enter(self) -> None:
        """Return once the request may begin."""
        if not self._refilling:
            self._refilling = True
            self._loop.call_later(PAUSE_SECONDS, self._refill)
        if self._left and not self._waiting:
            self._left -= 1
            return
        turn = self._loop.create_future()
        self._waiting.append(turn)
        await turn

    def _refill(self) -> None:
        self._left = BEGUN_AT_ONCE
        while self._left and self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # else its request was cancelled
                turn.set_result(None)
                self._left -= 1
        self._refilling = bool(self._waiting)
        if self._refilling:
            self._loop.call_later(PAUSE_SECONDS, self._refill)


@dataclass(eq=False)
class _Answer:
    size: int
    end: Callable[[], None]
    trusted: bool


class Unsent:
    """Counts the bytes of answers that are being sent; beyond the limit the oldest ones are ended.

    Those of untrusted callers go first. An answer is counted until it is sent to its end: it is in
    memory as a whole.
    """

    def __init__(self) -> None:
        self._total = 0
        self._answers: dict[_Answer, None] = {}

    @contextmanager
    def count(self, size: int, *, trusted: bool, end: Callable[[], None]) -> Iterator[None]:
        """Count an answer while the context lasts; `end` is called if it must make room."""
        answer = _Answer(size, end, trusted)
        self._answers[answer] = None
        self._total += size
        try:
            self._make_room(answer)
            yield
        finally:
            self._remove(answer)

    def _make_room(self, newest: _Answer) -> None:
        for trusted in (False, True):
            for each in [one for one in self._answers if one.trusted is trusted]:
                if self._total <= MOST_UNSENT:
                    return
                if each is not newest:
                    self._remove(each)
                    each.end()

    def _remove(self, answer: _Answer) -> None:
        if answer in self._answers:
            del self._answers[answer]
            self._total -= answer.size
