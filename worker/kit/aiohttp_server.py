"""Run an aiohttp application on the handed sockets, and drain it without losing a request.

aiohttp's own runner closes idle connections the moment it is told to stop, does not announce it,
and shrinks the backlog that the supervisor shares with us. So its runner is used for the
application's life cycle only; accepting, watching connections and ending them is done here.
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import logging
import os
import signal
import socket
import termios
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from http import HTTPStatus

from aiohttp import hdrs, web
from aiohttp.web_protocol import RequestHandler

from worker.contract import INSTANCE_HEADER, PROBE_HEADER
from worker.kit.drain import Drain
from worker.kit.instance import Instance
from worker.kit.notify import Notifier
from worker.kit.role import Role, RoleWatch
from worker.kit.sockets import BACKLOG, Listener, find_listeners

DRAIN: web.AppKey[Drain] = web.AppKey("atlas_drain", Drain)
"""Handlers and background work find the drain at `app[DRAIN]`."""

_log = logging.getLogger("atlas.worker")

_TICK_STOPPING = 0.02
_TICK_RETIRED = 0.05
# After the deadline, how long handlers get to notice that they are cancelled.
_CANCEL_SECONDS = 0.2


class _Connection(RequestHandler):
    """One connection; knows, beyond aiohttp, whether a request is under way on it."""

    __slots__ = ("_head_begun",)

    def __init__(self, server: web.Server, loop: asyncio.AbstractEventLoop) -> None:
        # Bodies are the application's own: an encoded one reaches it as it was sent. No access
        # log: the supervisor's metrics tell more, and it would cost each request a write.
        super().__init__(server, loop=loop, access_log=None, auto_decompress=False)  # type: ignore[arg-type]  # aiohttp takes None, its annotation does not
        self._head_begun = False

    def data_received(self, data: bytes) -> None:
        """Note whether the data began a request's head without ending it."""
        seen = self._request_count
        super().data_received(data)
        if self._request_count != seen:
            self._head_begun = False
        elif (self._waiter is not None or seen == 0) and data.strip(b"\r\n"):
            self._head_begun = True

    def idle_since(self) -> float | None:
        if self._waiter is None or self._messages or self._head_begun:
            return None
        # aiohttp notes when its own keep-alive limit ends, at each answer and at the start.
        return self._next_keepalive_close_time - self._keepalive_timeout

    def has_more(self) -> bool:
        """Whether the client has sent further requests behind the one being answered."""
        return bool(self._messages)

    def close_if_unread(self) -> None:
        if self.transport is None:
            return
        sock: socket.socket | None = self.transport.get_extra_info("socket")
        if sock is None or _unread_bytes(sock) > 0:
            return
        # The transport closes in a later turn of the loop; the client is told at once, so that
        # the moment in which its request could cross our close is as short as it can be.
        try:
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            _log.debug("a client was gone before its idle connection was closed")
        self.force_close()


def _unread_bytes(sock: socket.socket) -> int:
    count = array.array("i", [0])
    try:
        fcntl.ioctl(sock.fileno(), termios.FIONREAD, count)
    except OSError:
        return 0
    return count[0]


class _Listening:
    """The server side of the drain: accepts on every listener until told to stop."""

    def __init__(self, server: web.Server, listeners: Sequence[Listener]) -> None:
        self._server = server
        self._listeners = listeners
        self._accepting: list[asyncio.Server] = []

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        for listener in self._listeners:
            # asyncio closes what it is given; a duplicate keeps the handed socket open until
            # the process ends, because the group that it belongs to must not shrink.
            accepting = await loop.create_server(
                lambda: _Connection(self._server, loop),
                sock=listener.socket.dup(),
                backlog=BACKLOG,
            )
            self._accepting.append(accepting)

    def addresses(self) -> Iterable[str]:
        return [f"{listener.url} ({listener.name})" for listener in self._listeners]

    def connections(self) -> Iterable[_Connection]:
        return [c for c in self._server.connections if isinstance(c, _Connection)]

    def queue_length(self) -> int:
        return sum(listener.queue_length() for listener in self._listeners)

    def stop_accepting(self) -> None:
        for accepting in self._accepting:
            accepting.close()
        for listener in self._listeners:
            if not listener.handed:
                listener.socket.close()


async def serve(
    app: web.Application,
    listeners: Sequence[Listener],
    instance: Instance,
    notifier: Notifier,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain; returns when nothing is left to do.

    Raises OSError if a socket can't be listened on, and what the application's start raises.
    """
    drain = Drain(idle_grace=instance.idle_grace, timeout=instance.drain_timeout)
    app[DRAIN] = drain
    app.on_response_prepare.append(_marker(drain, instance.id))
    runner = web.AppRunner(app, shutdown_timeout=_CANCEL_SECONDS)
    await runner.setup()
    try:
        if runner.server is None:
            raise RuntimeError("aiohttp's runner has no server after its setup")
        listening = _Listening(runner.server, listeners)
        await _live(drain, listening, instance, notifier)
    finally:
        await runner.cleanup()


async def _live(
    drain: Drain, listening: _Listening, instance: Instance, notifier: Notifier
) -> None:
    """From the first connection to the last."""
    loop = asyncio.get_running_loop()
    changed = asyncio.Event()

    def take_role(role: Role) -> None:
        _log.info("the role of this instance is now: %s", role)
        drain.set_role(role)
        changed.set()

    def stop() -> None:
        if not drain.stopping:
            _log.info("draining")
            drain.stop()
            changed.set()
            notifier.stopping()

    with ExitStack() as stack:
        if instance.port is not None:
            watch = RoleWatch(
                instance.state_file,
                instance.port,
                lambda role: loop.call_soon_threadsafe(take_role, role),
            )
            watch.start()
            stack.callback(watch.stop)
        stack.enter_context(_signals(stop, drain.hurry))
        await listening.start()
        notifier.ready()
        for address in listening.addresses():
            _log.info("version %s serves %s", instance.version, address)
        await _attend(drain, listening, changed)


@contextmanager
def _signals(stop: Callable[[], None], hurry: Callable[[], None]) -> Iterator[None]:
    """Stop at SIGTERM or SIGINT; hurry at a second SIGINT, which is a person at a keyboard."""
    loop = asyncio.get_running_loop()
    interrupts = 0

    def interrupt() -> None:
        nonlocal interrupts
        interrupts += 1
        (stop if interrupts == 1 else hurry)()

    loop.add_signal_handler(signal.SIGTERM, stop)
    loop.add_signal_handler(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
        loop.remove_signal_handler(signal.SIGINT)


async def _attend(drain: Drain, listening: _Listening, changed: asyncio.Event) -> None:
    """Let the drain do what is due until it says that the process may end."""
    while not drain.tick(listening):
        pause = _TICK_STOPPING if drain.stopping else _TICK_RETIRED if drain.shedding else None
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await changed.wait()
        changed.clear()
        # From accept() to a registered connection asyncio takes three turns of the loop; after
        # these, whatever was accepted before the last tick can be seen by the next one.
        for _ in range(4):
            await asyncio.sleep(0)


def _marker(drain: Drain, instance_id: str) -> Callable[..., Awaitable[None]]:
    """Return the hook that puts the kit's headers on each answer."""

    async def mark(request: web.Request, response: web.StreamResponse) -> None:
        if PROBE_HEADER in request.headers:
            response.headers[INSTANCE_HEADER] = instance_id
        if not drain.shedding or response.status == HTTPStatus.SWITCHING_PROTOCOLS:
            return
        # What the client has already sent behind this request is still answered.
        if not (isinstance(request.protocol, _Connection) and request.protocol.has_more()):
            response.headers[hdrs.CONNECTION] = "close"
            response.force_close()

    return mark


def run(
    app: web.Application,
    instance: Instance | None = None,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    fd: int | None = None,
    default_port: int | None = None,
) -> None:
    """Serve an application until it is told to stop; returns once it is drained.

    The sockets are those handed over, unless `fd` or `port` names another; with neither,
    `ATLAS_PORT` or `default_port` on `host`. Raises `BadEnvironmentError` for an environment that
    can't be used, and OSError where the port can't be listened on.
    """
    instance = instance or Instance.from_environment(os.environ)
    own_port = instance.port or default_port
    listeners = find_listeners(os.environ, host=host, port=port, fd=fd, own_port=own_port)
    asyncio.run(serve(app, listeners, instance, Notifier.from_environment(os.environ)))
