"""Binds the API's sockets: TCP on every address of the host, and the Unix socket."""

from __future__ import annotations

import asyncio
import errno
import socket
from contextlib import ExitStack
from pathlib import Path

from atlas_supervisor.errors import StartRefusedError
from atlas_supervisor.system import sockdiag
from atlas_supervisor.system.files import short_name
from atlas_supervisor.system.procfs import describe_listeners

_BACKLOG = 4096  # at most; a flood of connections must not keep others out of the queue
_SEND_BUFFER_BYTES = 64 * 1024
"""What the kernel holds of an answer that its client does not read; accepted sockets inherit it."""
_SOCKET_MODE = 0o660


async def bind_tcp(host: str, port: int) -> list[socket.socket]:
    """Return sockets that listen on every address of `host`.

    Raises StartRefusedError if the name has no address, or one can't be bound.
    """
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError) as error:  # UnicodeError: not a valid name
        reason = error.strerror if isinstance(error, OSError) else "not a valid host name"
        raise StartRefusedError(f"CONTROL_HOST: {host} has no address: {reason}") from error
    with ExitStack() as stack:
        listeners = []
        for family, _, _, _, address in dict.fromkeys(found):
            try:
                listener = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
                if family == socket.AF_INET6:
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listener.setblocking(False)
                listener.bind(address)
                listener.listen(_BACKLOG)
            except OSError as error:
                if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT) and len(found) > 1:
                    continue  # `localhost` may have an IPv6 address on a machine without IPv6
                raise StartRefusedError(_why_not(host, port, error)) from error
            listeners.append(listener)
        if not listeners:
            raise StartRefusedError(f"CONTROL_HOST: {host} is not an address of this machine")
        stack.pop_all()
    return listeners


def _why_not(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE and (found := sockdiag.listeners(port)):
        return (
            f"CONTROL_PORT={port} is taken: {describe_listeners(found)}. "
            "Stop it, or choose another CONTROL_PORT."
        )
    return f"CONTROL_PORT={port} on {host} can't be bound: {error.strerror}"


def bind_unix(path: Path) -> socket.socket:
    """Return a socket that listens at `path`, mode 0660, replacing one that a dead daemon left.

    Raises StartRefusedError if another daemon listens there, or `path` is not a socket.
    """
    with ExitStack() as stack:
        try:
            name = stack.enter_context(short_name(path))
            _remove_stale(name, path)
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            with ExitStack() as undo:
                undo.callback(listener.close)
                listener.bind(name)
                Path(name).chmod(_SOCKET_MODE)  # no client can connect before listen
                listener.setblocking(False)
                listener.listen(_BACKLOG)
                undo.pop_all()
        except OSError as error:
            raise StartRefusedError(f"{path} can't be bound: {error.strerror}") from error
    return listener


def _remove_stale(name: str, path: Path) -> None:
    try:
        if not Path(name).is_socket():
            if Path(name).exists() or Path(name).is_symlink():
                raise StartRefusedError(f"{path} exists and is not a socket; remove it")
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            probe.connect(name)
    except (ConnectionRefusedError, FileNotFoundError):
        Path(name).unlink(missing_ok=True)
    except BlockingIOError:
        raise StartRefusedError(f"{path}: another daemon listens there") from None
    else:
        raise StartRefusedError(f"{path}: another daemon listens there")
