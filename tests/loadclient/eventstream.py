"""Clients of server-sent events: numbers without a gap, over any number of proper ends.

A stream may end between two events, by the terminating chunk of its answer. The client comes back
at once with `Last-Event-ID` and wants the next number. A connection that just ends, an event that
is cut, a number that is missing or comes again: each is a loss.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass

from tests.loadclient.session import Session
from tests.loadclient.wire import LostError, Reason, Wire


@dataclass(frozen=True)
class EventTraffic:
    """`loops` clients of numbered events, whose data is JSON with the `version`.

    `timeout` is in seconds, for the next event, connecting included.
    """

    name: str
    loops: int
    path: str = "/events?interval=0.05"
    timeout: float = 15.0

    async def client(self, session: Session) -> None:
        """Behave as one client until the load is told to stop."""
        last: int | None = None
        while not session.stopping.is_set():
            stream = _Stream(self, session, last)
            try:
                await stream.follow()
            except LostError as error:
                session.tally.sent += 1
                await session.lose(f"{stream.last}", error, stream.nth)
            finally:
                stream.wire.close()
            last = stream.last


class _Stream:
    """One answer: from the request to its end."""

    def __init__(self, traffic: EventTraffic, session: Session, last: int | None) -> None:
        self.wire = Wire()
        self.last = last
        self.nth = 0
        self._traffic = traffic
        self._session = session
        self._who = ""
        self._buffer = b""

    async def follow(self) -> None:
        """Take events until the stream ends properly or the load stops. Raises `LostError`."""
        session, loop = self._session, asyncio.get_running_loop()
        session.tally.connections += 1
        began = loop.time()
        while not session.stopping.is_set():
            try:
                async with asyncio.timeout(self._traffic.timeout):
                    event = await self._next()
            except TimeoutError:
                raise LostError(Reason.TIMEOUT, f"after {self._traffic.timeout} s") from None
            if event is None:
                session.tally.goodbyes[0] += 1
                return
            if not self._judge(event):
                continue
            self.nth += 1
            session.tally.sent += 1
            # The time to the first event is what a client notices of a deploy.
            session.answered(self._who, loop.time() - began if self.nth == 1 else None)

    async def _next(self) -> bytes | None:
        if not self.wire.connected:
            await self.wire.connect(self._session.host, self._session.port)
            lines = [f"GET {self._traffic.path} HTTP/1.1", "Host: atlas.test"]
            lines += ["Accept: text/event-stream"]
            lines += [f"Last-Event-ID: {self.last}"] * (self.last is not None)
            headers = await self.wire.open_stream("\r\n".join([*lines, "", ""]).encode())
            if not headers.get("content-type", "").startswith("text/event-stream"):
                raise LostError(Reason.MALFORMED, f"no event stream: {headers}")
        while b"\n\n" not in self._buffer:
            piece = await self.wire.chunk()
            if not piece:
                if self._buffer:
                    raise LostError(Reason.TRUNCATED, f"in an event: {self._buffer[:80]!r}")
                return None
            self._buffer += piece
        event, _, self._buffer = self._buffer.partition(b"\n\n")
        return event

    def _judge(self, event: bytes) -> bool:
        """Whether this is a numbered event; raises `LostError` if it is not the next one."""
        lines = [line.partition(b":") for line in event.split(b"\n")]
        fields = {name: value.strip() for name, _, value in lines}
        if not fields.keys() & {b"id", b"data"}:
            return False  # a comment, or the time to wait before coming back
        try:
            number, who = int(fields[b"id"]), str(json.loads(fields[b"data"])["version"])
        except (ValueError, LookupError, TypeError) as error:
            raise LostError(Reason.WRONG_BODY, f"{event[:80]!r}: {error!r}") from None
        before, self.last = self.last, number
        if before is not None and number != before + 1:
            raise LostError(Reason.OUT_OF_ORDER, f"{number} after {before}")
        if self._who and who != self._who:
            raise LostError(Reason.WRONG_BODY, f"{who} on a stream of {self._who}")
        self._who = who
        return True
