"""What every asyncio adapter shares: from the first connection to the last.

Signals, the role, the words to the supervisor and the drain's turns are the same under any server;
an adapter only shows its server as `AsyncServer` and lets `serve` live its life.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import Protocol

from atlas_worker.drain import DrainController, RemainingWork, Server
from atlas_worker.instance import Instance
from atlas_worker.notify import Notifier
from atlas_worker.role import InstanceRole, RoleWatcher

_log = logging.getLogger("atlas.worker")

_TICK_STOPPING = 0.02
_TICK_RETIRED = 0.05
# Looking at thousands of connections may take this share of a core, and be this late (seconds).
_LOOK_SHARE = 0.05
_TICK_LATEST = 0.25
# While draining, how often at most the supervisor hears what is left.
_LEFT_SECONDS = 0.5


class AsyncServer(Server, Protocol):
    """A server on asyncio, as its adapter shows it."""

    async def start(self) -> None:
        """Accept connections from now on; raises OSError where a socket can't be listened on."""

    def addresses(self) -> Iterable[str]:
        """Return where it is reached, for people."""


Signals = Callable[[DrainController, Notifier, asyncio.Event], AbstractContextManager[None]]
"""What has signals stop the drain, and sets the event whenever one has come."""


def new_drain(instance: Instance) -> DrainController:
    """Return the drain of an instance, with its times."""
    return DrainController(idle_grace=instance.idle_grace, timeout=instance.drain_timeout)


async def serve(
    drain: DrainController,
    server: AsyncServer,
    instance: Instance,
    notifier: Notifier,
    *,
    signals: Signals | None = None,
) -> None:
    """Start the server, and drain it after SIGTERM or SIGINT; returns when nothing is left to do.

    At the hard deadline it returns with exchanges open: they are counted, logged and reported,
    and cutting them is the adapter's. `signals` takes the place of the handlers set here. Raises
    what the server's start raises.
    """
    changed = asyncio.Event()
    with ExitStack() as stack:
        stack.enter_context(_role(drain, instance, changed))
        stack.enter_context((signals or _signals)(drain, notifier, changed))
        await server.start()
        notifier.ready()
        for address in server.addresses():
            _log.info("version %s serves %s", instance.version, address)
        await _attend(drain, server, notifier, changed)


@contextmanager
def _role(drain: DrainController, instance: Instance, changed: asyncio.Event) -> Iterator[None]:
    """Follow the role of this instance; without a port of its own there is none to follow."""
    if instance.port is None:
        yield
        return
    loop = asyncio.get_running_loop()

    def take(role: InstanceRole) -> None:
        _log.info("the role of this instance is now: %s", role)
        drain.set_role(role)
        changed.set()

    def report(role: InstanceRole) -> None:
        loop.call_soon_threadsafe(take, role)

    watch = RoleWatcher(instance.state_file, instance.port, report)
    watch.start()
    try:
        yield
    finally:
        watch.stop()


@contextmanager
def _signals(drain: DrainController, notifier: Notifier, changed: asyncio.Event) -> Iterator[None]:
    """Stop at the first SIGTERM or SIGINT.

    A second SIGTERM says that this place is needed: all streams are told to go at once. A second
    SIGINT is a person at a keyboard: now.
    """
    loop = asyncio.get_running_loop()

    def stop() -> None:
        begin_drain(drain, notifier)

    for number, again in ((signal.SIGTERM, drain.hurry_streams), (signal.SIGINT, drain.hurry)):
        loop.add_signal_handler(number, _in_turn(stop, again, changed.set))
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def begin_drain(drain: DrainController, notifier: Notifier) -> None:
    """Begin the end of this process, and say so; a second call changes nothing."""
    if not drain.stopping:
        _log.info("draining")
        drain.stop()
        notifier.stopping()


def _in_turn(
    first: Callable[[], None], again: Callable[[], None], always: Callable[[], None]
) -> Callable[[], None]:
    steps = [again, first]

    def turn() -> None:
        (steps.pop() if len(steps) > 1 else again)()
        always()

    return turn


async def _attend(
    drain: DrainController, server: AsyncServer, notifier: Notifier, changed: asyncio.Event
) -> None:
    """Let the drain do what is due until it says that the process may end."""
    reporter = _Reporter(drain, server, notifier)
    began = time.monotonic()
    while not drain.tick(server):
        reporter.report()
        pause = _pause(drain, time.monotonic() - began)
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await changed.wait()
        changed.clear()
        # From accept() to a registered connection asyncio takes three turns of the loop; after
        # these, whatever was accepted before the last tick can be seen by the next one.
        for _ in range(4):
            await asyncio.sleep(0)
        began = time.monotonic()
    reporter.report_end()


def _pause(drain: DrainController, took: float) -> float | None:
    """Return how long to wait after a turn that took `took` seconds; None until something comes."""
    if not (drain.stopping or drain.shedding):
        return None
    shortest = _TICK_STOPPING if drain.stopping else _TICK_RETIRED
    return max(shortest, min(took / _LOOK_SHARE, _TICK_LATEST))


class _Reporter:
    """Tells the supervisor how far the drain is."""

    def __init__(self, drain: DrainController, server: Server, notifier: Notifier) -> None:
        self._drain = drain
        self._server = server
        self._notifier = notifier
        self._accepting = True
        self._left: RemainingWork | None = None
        self._next = 0.0

    def report(self) -> None:
        """Say what has changed since the last time, if it is time to."""
        if not self._drain.stopping:
            return
        if self._accepting and not self._drain.accepting:
            self._accepting = False
            self._notifier.not_accepting()
        now = time.monotonic()
        if now < self._next:
            return
        left = self._drain.left(self._server)
        # What was not delivered is said again.
        if left != self._left and self._notifier.left(left.as_dict()):
            self._left = left
        self._next = now + _LEFT_SECONDS

    def report_end(self) -> None:
        """Say what is cut off, if anything is."""
        left = self._drain.left(self._server)
        if left.owed:
            _log.warning(
                "the drain time is over: cutting off %d requests, %d WebSockets, %d event streams",
                left.requests,
                left.websockets,
                left.event_streams,
            )
            self._notifier.cut(left.as_dict())
