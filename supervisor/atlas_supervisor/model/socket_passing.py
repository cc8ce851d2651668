"""How a worker gets its socket: what its command's placeholders say, and what traffic must do."""

from __future__ import annotations

from enum import StrEnum


class SocketPassing(StrEnum):
    """The three ways of section 6 of the contract."""

    ACTIVATION = "activation"
    """No placeholder: the listening sockets, as systemd hands them over."""
    FD = "fd"
    """`{fd}`: one listening socket, by its number."""
    PORT = "port"
    """`{port}`: none; the worker binds its own port."""
