"""How a worker gets its socket, as its command's placeholders say."""

from __future__ import annotations

from enum import StrEnum


class SocketPassing(StrEnum):
    """The three ways of section 6 of the contract."""

    ACTIVATION = "activation"
    """No placeholder: the listening sockets, as with systemd's socket activation."""
    FD = "fd"
    """`{fd}`: one listening socket, by its number."""
    PORT = "port"
    """`{port}`: none; the worker binds its own port."""
