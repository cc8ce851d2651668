"""Reads the kernel's `struct tcp_info`: the one place that knows its layout (linux/tcp.h).

The kernel returns it for a socket of our own, and with each answer of the socket diagnosis.
"""

from __future__ import annotations

import socket
import struct

_WORD = struct.Struct("=I")
_QUEUE_LENGTH_OFFSET = 24  # tcpi_unacked, which a listening socket uses for its queue's length
_LAST_SENT_OFFSET, _LAST_RECEIVED_OFFSET = 44, 52  # milliseconds since data was sent and received
_SEGMENTS = struct.Struct("=II")  # with data: received, sent
_SEGMENTS_OFFSET = 152

_FIRST_REQUEST_MS = 1000
"""A client that has connected within this time is about to send a request."""


def queue_length(sock: socket.socket) -> int:
    """Return how many connections wait to be accepted from a listening socket."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _QUEUE_LENGTH_OFFSET + _WORD.size)
    return _word(info, _QUEUE_LENGTH_OFFSET)


def awaits_answer(info: bytes | None, quiet_seconds: float) -> bool:
    """Return whether a connection's last request may be unanswered, or its first about to come.

    An answer counts as given once data was sent after the last that was received, and nothing
    more for `quiet_seconds`. Without the information, or from an old kernel, this is true.
    """
    if info is None or len(info) < _SEGMENTS_OFFSET + _SEGMENTS.size:
        return True
    ever_received, ever_sent = _SEGMENTS.unpack_from(info, _SEGMENTS_OFFSET)
    sent, received = _word(info, _LAST_SENT_OFFSET), _word(info, _LAST_RECEIVED_OFFSET)
    if not ever_received or not ever_sent:  # these times begin with the connection
        return bool(ever_received) or received < _FIRST_REQUEST_MS
    return sent > received or sent < 1000 * quiet_seconds


def _word(info: bytes, offset: int) -> int:
    return int(_WORD.unpack_from(info, offset)[0])
