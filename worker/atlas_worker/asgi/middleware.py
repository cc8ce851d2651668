"""The kit as a middleware, for applications that start their ASGI server themselves.

A middleware sees exchanges but not connections, and does not decide when its server stops. So it
can announce the close and wait, which is most of a drain, and leaves the rest to the server.
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
from atlas_worker.request_counter import counter
from atlas_worker.serving import begin_drain, new_drain, serve

_log = logging.getLogger("atlas.worker")

Handler = Callable[[int, FrameType | None], Any]


class DrainMiddleware:
    """An ASGI application that drains: the outermost layer, around the whole application.

    Reads the worker contract's environment at construction and raises `BadEnvironmentError` if it
    is invalid. Without a supervisor it has no effect that a client could notice. It starts with the
    lifespan's startup: under a server without lifespan only the probe header is answered. Under
    `python -m atlas_worker.asgi` it passes everything through.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._instance = Instance.from_environment(os.environ)
        self._drain = new_drain(self._instance)
        self._exchanges = Exchanges(app, self._drain, self._instance.id)
        self._life: asyncio.Task[None] | None = None
        self._passthrough = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve as ASGI has it."""
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        else:
            await (self._app if self._passthrough else self._exchanges)(scope, receive, send)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._passthrough = LED_BY_KIT in scope
        if self._passthrough:
            await self._app(scope, receive, send)
            return

        answered = False

        async def send_and_start(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)
            if message["type"] == "lifespan.startup.complete":
                self._start()

        try:
            try:
                await self._app(scope, receive, send_and_start)
            except Exception:
                if answered:
                    raise
                # As servers do, take an early error for a missing lifespan.
                _log.debug("the application has no lifespan", exc_info=True)
            if not answered:
                await self._own_lifespan(receive, send_and_start)
        finally:
            await self._end()

    async def _own_lifespan(self, receive: Receive, send: Send) -> None:
        await send({"type": "lifespan.startup.complete"})
        while (await receive())["type"] != "lifespan.shutdown":
            pass
        await send({"type": "lifespan.shutdown.complete"})

    def _start(self) -> None:
        counter.open()
        if self._life is None:
            self._life = asyncio.get_running_loop().create_task(self._live())

    async def _live(self) -> None:
        """Follow the role, and delay the server's stop until the end of the drain."""
        stop = _DelayedStop()
        view = _View(self._exchanges, self._drain)
        notifier = _AcceptingNotifier.from_environment(os.environ)
        try:
            await serve(self._drain, view, self._instance, notifier, signals=stop.delay)
        finally:
            stop.release()

    async def _end(self) -> None:
        """Cancel the kit's task, for any end of the server."""
        if self._life is not None:
            self._life.cancel()
            with suppress(asyncio.CancelledError):
                await self._life


class _AcceptingNotifier(Notifier):
    """Never reports that nothing is accepted: the server accepts until it gets SIGTERM.

    The next instance in this slot would share its sockets with this one, and this one would answer
    its probes.
    """

    def not_accepting(self, *, wait: bool = True) -> bool:  # there is no report
        return True


class _DelayedStop:
    """Delays the server's handler of SIGTERM.

    Possible if the server has set a plain handler by `signal.signal`, as uvicorn does, and this is
    the main thread. Else nothing is changed, and the server stops as it always does.
    """

    def __init__(self) -> None:
        self._theirs: Handler | None = None
        self._ours: Handler | None = None
        self._received = False

    @contextmanager
    def delay(
        self, drain: DrainController, notifier: Notifier, changed: asyncio.Event
    ) -> Iterator[None]:
        theirs = _replaceable_handler()
        if theirs is None:
            _log.warning("SIGTERM can't be delayed under this server: it stops in its own way")
            yield
            return
        loop = asyncio.get_running_loop()

        def begin() -> None:
            (drain.close_streams_now if drain.stopping else begin_drain_now)()
            changed.set()

        def begin_drain_now() -> None:
            begin_drain(drain, notifier)

        def ours(_number: int, _frame: FrameType | None) -> None:
            self._received = True
            loop.call_soon_threadsafe(begin)

        self._theirs, self._ours = theirs, ours
        signal.signal(signal.SIGTERM, ours)
        # Not released at the end of the block: the drain is reported before the server stops.
        yield

    def release(self) -> None:
        """Restore the server's handler, and call it if SIGTERM was received."""
        if self._theirs is None:
            return
        if signal.getsignal(signal.SIGTERM) is self._ours:
            signal.signal(signal.SIGTERM, self._theirs)
        if self._received:
            self._theirs(signal.SIGTERM, None)


def _replaceable_handler() -> Handler | None:
    if threading.current_thread() is not threading.main_thread():
        return None
    handler = signal.getsignal(signal.SIGTERM)
    # asyncio's own handlers are reached through the loop; here is only its placeholder.
    if not callable(handler) or getattr(handler, "__module__", "").startswith(
        ("asyncio", "signal")
    ):
        return None
    return handler


class _View:
    """The server as the middleware sees it: exchanges, and one stand-in for idle connections."""

    def __init__(self, exchanges: Exchanges, drain: DrainController) -> None:
        self._exchanges = exchanges
        self._idle = _IdleConnections()
        self._drain = drain

    async def start(self) -> None:
        """Do nothing: the server listens after the lifespan's startup."""

    def addresses(self) -> Iterable[str]:
        return ["(the address of its server)"]

    def connections(self) -> Iterable[Connection]:
        busy: list[Connection] = [_Exchanging() for _ in self._exchanges.running()]
        return busy if self._idle.closed or not self._drain.stopping else [*busy, self._idle]

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


class _IdleConnections:
    """Represents the server's idle connections, which are kept for the idle grace.

    The grace starts with the drain; the server closes the connections after its end.
    """

    def __init__(self) -> None:
        self.closed = False

    def idle_since(self) -> float:
        return 0.0

    def close_if_unread(self) -> None:
        self.closed = True
