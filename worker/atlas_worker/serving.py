"""The life of an asyncio worker, from its first connection to its last; shared by the adapters.

Theory. An adapter shows its server as `AsyncServer`, and `serve` leads it through these states:

    starting -> serving <-> retired            (a rollback makes it active again)
                   |           |
                   +-----------+--> stopping --> not accepting --> ended

- `READY=1` is sent after `start` has returned, so that a request sent then finds a listener.
- The role comes from the state file, through a thread; signals come from the loop. Both only call
  `DrainController` and set `changed`: all consequences happen in one place, `_run`, at a tick.
- The first SIGTERM or SIGINT starts the drain. A second SIGTERM means that the slot is needed: all
  streams are closed at once. A second SIGINT is a person at a keyboard: exit now.
- The order of messages to the supervisor is fixed: `READY`, `STOPPING`, then `X_ATLAS_ACCEPTING=0`
  once nothing is accepted (the next instance may start in this slot only from then on), counts in
  `X_ATLAS_LEFT` whenever they change, and `X_ATLAS_CUT` last, if the deadline cuts anything.
- Between two ticks the loop runs at least four times: a connection that the kernel had accepted
  before a tick is registered, and so visible, at the next one. Without that, an empty server could
  end with a connection in its hands.
- A tick looks at every connection, so ticks are spaced to cost a bounded share of a core.
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
# Ticks may take this share of a core, and be at most this far apart (seconds).
_TICK_SHARE = 0.05
_TICK_LATEST = 0.25
# While draining, the shortest time between two reports to the supervisor.
_REPORT_SECONDS = 0.5


class AsyncServer(Server, Protocol):
    """A server on asyncio, as its adapter shows it."""

    async def start(self) -> None:
        """Accept connections from now on; raises OSError if a socket can't be listened on."""

    def addresses(self) -> Iterable[str]:
        """Return its addresses, for people."""


def peer_of(transport: asyncio.BaseTransport) -> str | None:
    """Return the client's address; None over a Unix socket."""
    peer = transport.get_extra_info("peername")
    return str(peer[0]) if isinstance(peer, tuple) else None


Signals = Callable[[DrainController, Notifier, asyncio.Event], AbstractContextManager[None]]
"""Connects signals with the drain, and sets the event at each of them."""


def new_drain(instance: Instance) -> DrainController:
    """Return the drain of an instance."""
    return DrainController(idle_grace=instance.idle_grace, timeout=instance.drain_timeout)


async def serve(
    drain: DrainController,
    server: AsyncServer,
    instance: Instance,
    notifier: Notifier,
    *,
    signals: Signals | None = None,
) -> None:
    """Start the server, and drain it after SIGTERM or SIGINT; returns at the end of the drain.

    At the hard deadline it returns with exchanges open: they are counted, logged and reported, and
    the adapter must cut them. `signals` replaces the handlers set here. Raises what the server's
    start raises.
    """
    changed = asyncio.Event()
    with ExitStack() as stack:
        stack.enter_context(_role(drain, instance, changed))
        stack.enter_context((signals or _signals)(drain, notifier, changed))
        await server.start()
        notifier.ready()
        for address in server.addresses():
            _log.info("version %s serves %s", instance.version, address)
        await _run(drain, server, notifier, changed)


@contextmanager
def _role(drain: DrainController, instance: Instance, changed: asyncio.Event) -> Iterator[None]:
    """Follow the role of this instance; without a port of its own it has none."""
    if instance.port is None:
        yield
        return
    loop = asyncio.get_running_loop()

    def set_role(role: InstanceRole, held: bool) -> None:
        _log.info("role: %s%s", role, ", new connections are held" if held else "")
        drain.set_role(role, held=held)
        changed.set()

    def report(role: InstanceRole, held: bool) -> None:
        loop.call_soon_threadsafe(set_role, role, held)

    watch = RoleWatcher(instance.state_file, instance.port, report)
    watch.start()
    try:
        yield
    finally:
        watch.stop()


@contextmanager
def _signals(drain: DrainController, notifier: Notifier, changed: asyncio.Event) -> Iterator[None]:
    """Start the drain at the first SIGTERM or SIGINT; see the module for a second one."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        begin_drain(drain, notifier)

    for number, again in ((signal.SIGTERM, drain.close_streams_now), (signal.SIGINT, drain.expire)):
        loop.add_signal_handler(number, _in_turn(stop, again, changed.set))
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def begin_drain(drain: DrainController, notifier: Notifier) -> None:
    """Start the drain and report it; a second call has no effect."""
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


async def _run(
    drain: DrainController, server: AsyncServer, notifier: Notifier, changed: asyncio.Event
) -> None:
    """Run ticks until the drain is over."""
    reporter = _Reporter(drain, server, notifier)
    began = time.monotonic()
    while not drain.tick(server):
        reporter.report()
        pause = _pause(drain, time.monotonic() - began)
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await changed.wait()
        changed.clear()
        # From accept() to a registered connection asyncio takes three turns of the loop.
        for _ in range(4):
            await asyncio.sleep(0)
        began = time.monotonic()
    reporter.report_end()


def _pause(drain: DrainController, took: float) -> float | None:
    """Return the pause after a tick that took `took` seconds; None waits for a change."""
    if not (drain.stopping or drain.shedding):
        return None
    shortest = _TICK_STOPPING if drain.stopping else _TICK_RETIRED
    return max(shortest, min(took / _TICK_SHARE, _TICK_LATEST))


class _Reporter:
    """Reports the progress of the drain to the supervisor."""

    def __init__(self, drain: DrainController, server: Server, notifier: Notifier) -> None:
        self._drain = drain
        self._server = server
        self._notifier = notifier
        self._accepting = True
        self._first = True
        """Whether it was not tried yet to report that nothing is accepted."""
        self._reported: RemainingWork | None = None
        self._next = 0.0

    def report(self) -> None:
        """Report changes since the last report, if enough time has passed."""
        if not self._drain.stopping:
            return
        now = time.monotonic()
        # A report that was not delivered is repeated: the supervisor may be starting again.
        if self._accepting and not self._drain.accepting and (self._first or now >= self._next):
            self._accepting = not self._notifier.not_accepting(wait=self._first)
            self._first = False
        if now < self._next:
            return
        left = self._drain.remaining_work(self._server)
        if left != self._reported and self._notifier.left(left.as_dict()):
            self._reported = left
        self._next = now + _REPORT_SECONDS

    def report_end(self) -> None:
        """Report exchanges that the deadline cuts, if there are any."""
        left = self._drain.remaining_work(self._server)
        if left.unfinished:
            _log.warning(
                "drain timeout: cutting %d requests, %d WebSockets, %d event streams",
                left.requests,
                left.websockets,
                left.event_streams,
            )
            self._notifier.cut(left.as_dict())
