"""Binds the ports of the fleet's neighbours, and accepts from them within bounds.

A connection here is short: one answer, then it is closed. asyncio's own accept loop has no limit
and spins when descriptors are short; this one leaves the daemon's own work its descriptors.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from atlas_supervisor.errors import StartRefusedError
from atlas_supervisor.system import sockdiag
from atlas_supervisor.system.descriptors import Purpose, has_room
from atlas_supervisor.system.procfs import describe_listeners

_BACKLOG = 128
_ACCEPTED_AT_ONCE = 32
_PAUSE_SECONDS = 0.1  # after a lack of descriptors, which passes


def bind(key: str, host: str, port: int) -> socket.socket:
    """Return a socket that listens there; `key` is the setting that has the port.

    Raises StartRefusedError.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        why = f"can't be bound: {error.strerror}"
        if error.errno == errno.EADDRINUSE and (found := sockdiag.listeners(port)):
            why = f"is taken: {describe_listeners(found)}. Stop it, or choose another {key}."
        raise StartRefusedError(f"{key}={port} on {host} {why}") from error
    return listener


@asynccontextmanager
async def accepting(
    listener: socket.socket, accepted: Callable[[socket.socket], None]
) -> AsyncIterator[None]:
    """Hand each new connection to `accepted`, which owns it from then on."""
    loop = asyncio.get_running_loop()
    paused: asyncio.TimerHandle | None = None

    def resume() -> None:
        loop.add_reader(listener, accept)

    def accept() -> None:
        nonlocal paused
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                if not has_room(listener, Purpose.API_TCP):
                    raise OSError(errno.EMFILE, "no descriptor is free")
                client, _address = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:
                loop.remove_reader(listener)
                paused = loop.call_later(_PAUSE_SECONDS, resume)
                return
            client.setblocking(False)
            accepted(client)

    resume()
    try:
        yield
    finally:
        loop.remove_reader(listener)
        if paused is not None:
            paused.cancel()
