"""The kit as a middleware, for those who start their ASGI server themselves.

A middleware sees exchanges and not connections, and it doesn't decide when its server stops. So
it can announce and wait, which is most of a drain, and leave the rest to the server.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from atlas_worker.asgi.exchanges import LED_BY_KIT, App, Exchanges, Scope
from atlas_worker.asgi.streams import Message, Receive, Send
from atlas_worker.drain import Connection, DrainController, Stream
from atlas_worker.instance import Instance
from atlas_worker.notify import Notifier
from atlas_worker.serving import begin_drain, new_drain, serve

_log = logging.getLogger("atlas.worker")

Handler = Callable[[int, FrameType | None], Any]


class DrainMiddleware:
    """An ASGI application that drains: put it outermost, around the whole application.

    Reads the worker contract's environment when it is made and raises `BadEnvironmentError` if
    that can't be used. Without a supervisor it does nothing that a client could notice. It begins
    with the lifespan's startup, so a server that runs no lifespan gets marked answers only for
    the probe header. Under `python -m atlas_worker.asgi` it steps aside.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._instance = Instance.from_environment(os.environ)
        self._drain = new_drain(self._instance)
        self._exchanges = Exchanges(app, self._drain, self._instance.id)
        self._life: asyncio.Task[None] | None = None
        self._aside = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve as ASGI has it."""
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        else:
            await (self._app if self._aside else self._exchanges)(scope, receive, send)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._aside = LED_BY_KIT in scope
        if self._aside:
            await self._app(scope, receive, send)
            return

        answered = False

        async def send_and_begin(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)
            if message["type"] == "lifespan.startup.complete":
                self._begin()

        try:
            try:
                await self._app(scope, receive, send_and_begin)
            except Exception:
                if answered:
                    raise
                # As servers do, take an early error for "no lifespan here".
                _log.debug("the application takes no lifespan", exc_info=True)
            if not answered:
                await self._own_lifespan(receive, send_and_begin)
        finally:
            await self._end()

    async def _own_lifespan(self, receive: Receive, send: Send) -> None:
        await send({"type": "lifespan.startup.complete"})
        while (await receive())["type"] != "lifespan.shutdown":
            pass
        await send({"type": "lifespan.shutdown.complete"})

    def _begin(self) -> None:
        if self._life is None:
            self._life = asyncio.get_running_loop().create_task(self._live())

    async def _live(self) -> None:
        """Follow the role, and hold the server's stop back until the drain is done."""
        held = _HeldStop()
        view = _View(self._exchanges, self._drain)
        notifier = _AcceptingNotifier.from_environment(os.environ)
        try:
            await serve(self._drain, view, self._instance, notifier, signals=held.hold)
        finally:
            held.let_go()

    async def _end(self) -> None:
        """Leave nothing of ours behind, however the server has come to its end."""
        if self._life is not None:
            self._life.cancel()
            with suppress(asyncio.CancelledError):
                await self._life


class _AcceptingNotifier(Notifier):
    """Never says that nothing is accepted any more: the server accepts until it hears SIGTERM.

    The next instance in this slot would share its sockets with this one, and its probes be
    answered here.
    """

    def not_accepting(self) -> bool:
        return False


class _HeldStop:
    """SIGTERM's handler, held back.

    Possible where the server has set a plain handler by `signal.signal` and this is the main
    thread: uvicorn does. Else nothing is touched, and the server stops as it always does.
    """

    def __init__(self) -> None:
        self._theirs: Handler | None = None
        self._ours: Handler | None = None
        self._came = False

    @contextmanager
    def hold(
        self, drain: DrainController, notifier: Notifier, changed: asyncio.Event
    ) -> Iterator[None]:
        theirs = _replaceable_handler()
        if theirs is None:
            _log.warning(
                "SIGTERM is not the kit's to hold back under this server: it drains in its own way"
            )
            yield
            return
        loop = asyncio.get_running_loop()

        def begin() -> None:
            (drain.hurry_streams if drain.stopping else begin_drain_now)()
            changed.set()

        def begin_drain_now() -> None:
            begin_drain(drain, notifier)

        def ours(_number: int, _frame: FrameType | None) -> None:
            self._came = True
            loop.call_soon_threadsafe(begin)

        self._theirs, self._ours = theirs, ours
        signal.signal(signal.SIGTERM, ours)
        # Not let go at the end of the block: the server's turn comes when the drain is reported.
        yield

    def let_go(self) -> None:
        """Put the server's handler back, and have it do what it would have done at once."""
        if self._theirs is None:
            return
        if signal.getsignal(signal.SIGTERM) is self._ours:
            signal.signal(signal.SIGTERM, self._theirs)
        if self._came:
            self._theirs(signal.SIGTERM, None)


def _replaceable_handler() -> Handler | None:
    if threading.current_thread() is not threading.main_thread():
        return None
    handler = signal.getsignal(signal.SIGTERM)
    # asyncio's own handlers are reached through the loop; what stands here is its placeholder.
    if not callable(handler) or getattr(handler, "__module__", "").startswith(
        ("asyncio", "signal")
    ):
        return None
    return handler


class _View:
    """The server as the middleware sees it: exchanges, and one stand-in for idle connections."""

    def __init__(self, exchanges: Exchanges, drain: DrainController) -> None:
        self._exchanges = exchanges
        self._idle = _IdleOnes()
        self._drain = drain

    async def start(self) -> None:
        """Nothing: the server listens after the lifespan's startup."""

    def addresses(self) -> Iterable[str]:
        return ["(an address that its server knows)"]

    def connections(self) -> Iterable[Connection]:
        busy: list[Connection] = [_Exchanging() for _ in self._exchanges.running()]
        return busy if self._idle.gone or not self._drain.stopping else [*busy, self._idle]

    def streams(self) -> Iterable[Stream]:
        return self._exchanges.streams()

    def queue_length(self) -> int:
        return 0

    def stop_accepting(self) -> None:
        pass


class _Exchanging:
    def idle_since(self) -> None:
        return None

    def close_if_unread(self) -> None:
        pass


class _IdleOnes:
    """Stands for the idle connections that the server may hold: kept for the idle grace.

    It is never idle before the drain, so the grace begins with it; at its end the server is left
    to close them.
    """

    def __init__(self) -> None:
        self.gone = False

    def idle_since(self) -> float:
        return 0.0

    def close_if_unread(self) -> None:
        self.gone = True
