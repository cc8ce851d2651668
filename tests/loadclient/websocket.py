"""Clients on WebSockets: every message gets its own echo, and every end is a proper goodbye.

The server may close at any time, with 1012 (another instance has the traffic) or 1001 (it goes
away). Its close frame can cross with the client's next message: after it has sent the frame it
may not answer any more, and what the client sent before it saw the frame is lost to nobody. The
client can't know whether the server had read a message when it said goodbye, but it knows how
long the message was on its way: up to `CROSSING_SECONDS` it counts as crossed, and is sent again
on the next connection; beyond that its answer was owed, and it is a loss.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from tests.loadclient.session import Session
from tests.loadclient.wire import LostError, Reason

CROSSING_SECONDS = 0.25
SERVICE_RESTART, GOING_AWAY, PROTOCOL_ERROR = 1012, 1001, 1002


@dataclass(frozen=True)
class WebSocketTraffic:
    """`loops` clients that send a text, want JSON with it as `message` and the `version`.

    `think` is the range of seconds between an answer and the next message; `timeout` is for one
    message in all, connecting included.
    """

    name: str
    loops: int
    path: str = "/ws"
    think: tuple[float, float] = (0.02, 0.1)
    timeout: float = 15.0

    async def client(self, session: Session) -> None:
        """Behave as one client until the load is told to stop."""
        token = session.token()
        while not session.stopping.is_set():
            connection = _Connection(self, session)
            try:
                token = await connection.converse(token)
            except LostError as error:
                await session.lose(connection.token, error, connection.nth)
                token = session.token()
            finally:
                await connection.end()


class _Connection:
    """One WebSocket from its handshake to its end."""

    def __init__(self, traffic: WebSocketTraffic, session: Session) -> None:
        self._traffic = traffic
        self._session = session
        self._wire: ClientConnection | None = None
        self._who = ""
        self.nth = 0
        self.token = ""

    async def converse(self, token: str) -> str:
        """Send messages until the server says goodbye or the load stops; return the next one.

        Raises `LostError`.
        """
        session, traffic = self._session, self._traffic
        session.tally.connections += 1
        self.token = token
        while not session.stopping.is_set():
            session.tally.sent += 1
            self.nth += 1
            if self.nth > 1 and await self._gone_within(session.random.uniform(*traffic.think)):
                session.tally.sent -= 1
                return self.token
            try:
                async with asyncio.timeout(traffic.timeout):
                    came = await self._exchange()
            except TimeoutError:
                raise LostError(Reason.TIMEOUT, f"after {traffic.timeout} s") from None
            if not came:
                session.tally.sent -= 1
                return self.token
            self.token = session.token()
        return self.token

    async def _exchange(self) -> bool:
        """Send a message and read its answer; False where a goodbye came instead."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        wire = self._wire = self._wire or await self._connect()
        sent = loop.time()
        try:
            await wire.send(self.token)
        except ConnectionClosed as closed:
            self._goodbye(closed)
            return False
        try:
            answer = await wire.recv()
        except ConnectionClosed as closed:
            self._goodbye(closed)
            if (on_its_way := loop.time() - sent) > CROSSING_SECONDS:
                raise LostError(Reason.UNANSWERED, f"sent {on_its_way:.3f} s before") from None
            self._session.tally.crossed += 1
            return False
        self._judge(answer)
        self._session.answered(self._who, loop.time() - began)
        return True

    async def _connect(self) -> ClientConnection:
        session = self._session
        uri = f"ws://{session.host}:{session.port}{self._traffic.path}"
        try:
            return await connect(
                uri, proxy=None, compression=None, ping_interval=None, open_timeout=None
            )
        except InvalidHandshake as error:
            raise LostError(Reason.HANDSHAKE, repr(error.__cause__ or error)) from None
        except ConnectionRefusedError as error:
            raise LostError(Reason.REFUSED, str(error)) from None
        except (OSError, EOFError) as error:
            raise LostError(Reason.RESET, f"while connecting: {error!r}") from None

    def _judge(self, answer: str | bytes) -> None:
        try:
            told = json.loads(answer)
            message, who = told["message"], str(told["version"])
        except (ValueError, LookupError, TypeError) as error:
            raise LostError(Reason.WRONG_BODY, f"{answer[:80]!r}: {error!r}") from None
        if message != self.token:
            raise LostError(Reason.WRONG_BODY, f"{message!r} for {self.token}")
        if self._who and who != self._who:
            raise LostError(Reason.WRONG_BODY, f"{who} answered on a connection of {self._who}")
        self._who = who

    def _goodbye(self, closed: ConnectionClosed) -> None:
        """Count a proper goodbye; raises `LostError` for any other end."""
        if closed.rcvd is None:
            if closed.sent is not None and closed.sent.code == PROTOCOL_ERROR:
                raise LostError(Reason.MALFORMED, closed.sent.reason) from None
            raise LostError(Reason.NO_GOODBYE, repr(closed.__cause__)) from None
        if closed.rcvd.code not in {SERVICE_RESTART, GOING_AWAY}:
            raise LostError(Reason.WRONG_GOODBYE, str(closed.rcvd)) from None
        self._session.tally.goodbyes[closed.rcvd.code] += 1

    async def _gone_within(self, seconds: float) -> bool:
        """Pause; whether the server said goodbye meanwhile. Raises `LostError` for another end."""
        assert self._wire is not None
        try:
            async with asyncio.timeout(seconds):
                await self._wire.wait_closed()
        except TimeoutError:
            return False
        try:
            await self._wire.recv()
        except ConnectionClosed as closed:
            self._goodbye(closed)
            return True
        raise LostError(Reason.SURPLUS, "a message that nobody asked for")

    async def end(self) -> None:
        """Say goodbye as a client does."""
        if self._wire is not None:
            await self._wire.close()
