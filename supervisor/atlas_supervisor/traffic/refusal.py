"""Answers a client while no worker can, so that it does not wait for one that may never come.

The request is read first, as far as it has arrived in a moment: a connection that is closed with
unread bytes is reset, and the client may lose the answer. It is not parsed.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import NamedTuple

from atlas_supervisor.traffic.steering import DIRECT_SOURCE

PATIENCE_SECONDS = 30.0
"""How long a client waits, at least, for a worker that can't be reached."""

_SECONDS = 5.0  # for all of it: a client that sends nothing must not keep a descriptor
_HEAD_BYTES = 64 * 1024
_CHUNK_BYTES = 64 * 1024
_OWN_SOURCES = frozenset(map(str, DIRECT_SOURCE.values()))


class Refusal(NamedTuple):
    """The response of every request; without one, connections are just closed."""

    response: bytes = b""


async def refuse(client: socket.socket, refusal: Refusal) -> None:
    """Answer one client and close its connection; never raises OSError.

    The daemon's own connections to a slot get no answer: it would be taken for the worker's.
    """
    with client, contextlib.suppress(OSError, TimeoutError):
        if not refusal.response or client.getpeername()[0] in _OWN_SOURCES:
            return
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(_SECONDS):
            head = await _head(client)
            if not head:
                return
            bodiless = head.startswith(b"HEAD ")
            end = refusal.response.index(b"\r\n\r\n") + 4 if bodiless else None
            await loop.sock_sendall(client, refusal.response[:end])
            client.shutdown(socket.SHUT_WR)
            while await loop.sock_recv(client, _CHUNK_BYTES):
                pass


async def _head(client: socket.socket) -> bytes:
    """Return the request's head as far as the client sends it; empty if it sends nothing."""
    head = b""
    while b"\r\n\r\n" not in head and len(head) < _HEAD_BYTES:
        chunk = await asyncio.get_running_loop().sock_recv(client, _CHUNK_BYTES)
        if not chunk:
            break
        head += chunk
    return head
