"""Configures gunicorn to drain: `gunicorn --config python:atlas_worker.gunicorn module:app`.

A gunicorn configuration: its settings and hooks are the names in `__all__`. An application's own
configuration file starts with `from atlas_worker.gunicorn import *`, and a hook that it defines
must call the one from here. Written for the worker classes gthread and sync.

gunicorn alone sends READY=1 before a worker process is up, and at SIGTERM drops the connections in
the queue. Here the last worker process sends it, and SIGTERM reaches gunicorn's own handler only
once the queue has been empty for the settling time. Meanwhile every response carries
`Connection: close`.
"""

from __future__ import annotations

import array
import errno
import fcntl
import math
import os
import signal
import sys
import termios
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

try:
    from gunicorn.workers import gthread  # type: ignore[import-untyped]  # it ships no types
except ImportError as error:
    raise ImportError(
        "atlas_worker.gunicorn needs gunicorn: install 27 or newer in the application's environment"
    ) from error

from atlas_worker.contract import PROBE_HEADER, SMOKE_HEADER
from atlas_worker.drain import HELD_BACK_SECONDS, SETTLE_SECONDS
from atlas_worker.instance import Instance
from atlas_worker.notify import Notifier
from atlas_worker.request_counter import (
    CLIENT_LEFT,
    NOT_COUNTED,
    NOT_DRAWN,
    UNFINISHED,
    counter,
)
from atlas_worker.role import InstanceRole, RoleWatcher
from atlas_worker.sockets import Listener

__all__ = [
    "control_socket_disable",
    "graceful_timeout",
    "keepalive",
    "post_request",
    "post_worker_init",
    "pre_request",
    "threads",
    "worker_class",
]

if not hasattr(gthread, "STOP_KEEPALIVE_LINGER"):  # an older one stops in another way
    raise ImportError("this gunicorn is too old for atlas_worker.gunicorn: install 27 or newer")

_POLL_SECONDS = 0.02

# Removed from the environment here, before gunicorn would use it too early.
_notifier = Notifier.from_environment()
_instance = Instance.from_environment()
# One byte for each worker process that is up: a counter that the forks share.
_up_reader, _up_writer = os.pipe()

worker_class = "gthread"
threads = 4
# Whole seconds. Longer than gunicorn's 2, so that connections are rarely closed unannounced.
keepalive = 75
graceful_timeout = max(1, math.ceil(_instance.drain_timeout))
# It would be one path in the home folder for all instances, old and new.
control_socket_disable = True


class _Drain:
    """The drain of one worker process: shed, serve the queue until it is empty, then stop."""

    def __init__(self, worker: Any) -> None:
        self.stopping = False
        self.retired = self.held_back = self.held = False
        self._since = 0.0
        self._worker = worker
        self._passed_on = False
        # Started here and not by the signal handler, which may interrupt the start of a thread.
        self._stop_started = threading.Event()
        threading.Thread(target=self._serve_queue, name="atlas-drain", daemon=True).start()
        signal.signal(signal.SIGTERM, self._on_sigterm)
        signal.siginterrupt(signal.SIGTERM, False)  # as gunicorn has it
        if isinstance(worker, gthread.ThreadWorker):
            self._manage_connections()
        if _instance.port is not None:
            RoleWatcher(_instance.state_file, _instance.port, self._set_role).start()

    @property
    def shedding(self) -> bool:
        """Whether responses carry `Connection: close`."""
        if self.stopping or self.retired or self.held:
            return True
        lately = time.monotonic() - self._since < _instance.idle_grace + HELD_BACK_SECONDS
        return self.held_back and lately

    def _set_role(self, role: InstanceRole, held: bool) -> None:
        retired, held_back = role is InstanceRole.RETIRED, role is InstanceRole.HELD_BACK
        led = not (self.retired or self.held_back)
        if (held_back and led) or ((retired or held) and not self.shedding):
            self._since = time.monotonic()
        self.retired, self.held_back, self.held = retired, held_back, held

    def _on_sigterm(self, sig: int, frame: FrameType | None) -> None:
        if self._passed_on:
            self._worker.handle_exit(sig, frame)
        elif not self.stopping:
            if not self.shedding:
                self._since = time.monotonic()
            self.stopping = True
            # gthread would close idle connections after two seconds, unread bytes or not.
            gthread.STOP_KEEPALIVE_LINGER = math.inf
            self._stop_started.set()

    def _serve_queue(self) -> None:
        self._stop_started.wait()
        started = time.monotonic()
        listeners = [Listener("", sock, inherited=True) for sock in self._worker.sockets]
        while (waited := time.monotonic() - started) < _instance.drain_timeout:
            if waited >= SETTLE_SECONDS and not any(one.queue_length() for one in listeners):
                break
            time.sleep(_POLL_SECONDS)
        # The signal again, because gunicorn's handler belongs to the main thread.
        self._passed_on = True
        os.kill(os.getpid(), signal.SIGTERM)

    def _manage_connections(self) -> None:
        """Replace gthread's way to expire idle connections and to close one."""
        end_idle = self._worker.murder_keepalived  # called at every turn of its main loop

        def murder_keepalived(force: bool = False) -> None:
            if self.shedding:
                self._expire_idle()
            end_idle(force)

        self._worker.murder_keepalived = murder_keepalived
        self._note_first_requests()
        gthread.TConn.close = self._closing_aside(gthread.TConn.close)

    def _note_first_requests(self) -> None:
        """Let `pre_request` know the beginning of a request's connection, if it is the first one.

        Under other worker classes it does not, and no first requests are counted.
        """
        handle_request, connect = self._worker.handle_request, gthread.TConn.__init__
        names = [socket.getsockname() for socket in self._worker.sockets]

        def connected(conn: Any, cfg: Any, sock: Any, client: Any, server: Any) -> None:
            connect(conn, cfg, sock, client, server)
            # The first one is the public one, if there are several.
            if server == names[0]:
                conn.atlas_since = counter.connected(client[0] if client else None)

        def handle(req: Any, conn: Any) -> Any:
            req.atlas_since = vars(conn).pop("atlas_since", NOT_DRAWN)
            return handle_request(req, conn)

        gthread.TConn.__init__ = connected
        self._worker.handle_request = handle

    def _closing_aside(self, close: Callable[..., None]) -> Callable[..., None]:
        """Return a `close` that does not make the main loop wait for the client.

        A graceful close waits up to two seconds. gthread does it in its main loop, which accepts no
        connection meanwhile; in a drain every response closes.
        """
        worker = self._worker

        def forget() -> None:
            worker.nr_conns -= 1

        def close_and_forget(conn: Any) -> None:
            close(conn, graceful=True)
            worker.method_queue.defer(forget)

        def close_aside(conn: Any, graceful: bool = False) -> None:
            if graceful:
                # Its caller has decremented the count; the process has to wait for it.
                worker.nr_conns += 1
                threading.Thread(target=close_and_forget, args=(conn,), daemon=True).start()
            else:
                close(conn)

        return close_aside

    def _expire_idle(self) -> None:
        """Let gthread close connections that were idle for the grace and have no unread bytes."""
        worker = self._worker
        idle_before = time.monotonic() - _instance.idle_grace
        if self._since > idle_before:
            return
        for conn in (*worker.keepalived_conns, *worker.pending_conns):
            became_idle = conn.timeout - worker.cfg.keepalive
            if became_idle <= idle_before and not _unread(conn.sock):
                conn.timeout = 0.0


def _unread(sock: Any) -> int:
    size = array.array("i", [0])
    fcntl.ioctl(sock, termios.FIONREAD, size)
    return size[0]


_drain: _Drain | None = None


def post_worker_init(worker: Any) -> None:
    """Follow the role and SIGTERM in this worker process; the last one up sends READY=1."""
    global _drain  # noqa: PLW0603 - gunicorn gives its hooks no other place for state
    _drain = _Drain(worker)
    counter.open()
    if _unread(_up_reader) < worker.cfg.workers:  # else one is replaced, and it is sent
        os.write(_up_writer, b".")
        if _unread(_up_reader) >= worker.cfg.workers:
            _notifier.ready()


_SUPERVISORS = frozenset({PROBE_HEADER.upper(), SMOKE_HEADER.upper()})
_CLIENT_LEFT = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN})


def pre_request(worker: Any, req: Any) -> None:
    """Count the request; make the response carry `Connection: close` during the drain.

    Decided once for each request: the header must announce what happens.
    """
    supervisors = any(name in _SUPERVISORS for name, _ in req.headers)
    req.atlas_began = NOT_COUNTED
    if not supervisors:
        req.atlas_began = counter.begin(getattr(req, "atlas_since", NOT_DRAWN))
    worker.log.debug("%s %s", req.method, req.path)  # as gunicorn's own hook
    if _drain is not None and _drain.shedding:
        req.should_close = lambda: True


def post_request(_worker: Any, req: Any, _environ: Any, resp: Any) -> None:
    """Count the end of the request."""
    # gunicorn calls this while what the application raised is on its way up.
    error, status = sys.exc_info()[1], UNFINISHED
    if isinstance(error, OSError) and error.errno in _CLIENT_LEFT:
        status = CLIENT_LEFT
    elif error is None and resp is not None:
        status = resp.status_code or UNFINISHED
    counter.end(getattr(req, "atlas_began", NOT_COUNTED), status)
