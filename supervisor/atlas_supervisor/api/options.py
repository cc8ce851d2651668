"""What the API must be told; the daemon fills it in from the settings."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class ApiOptions:
    """Where to listen, whom to let in, and the limits."""

    socket_path: Path
    """The Unix socket; its folder exists. Any length will do."""
    token: str
    token_file: Path
    """Where the token stands; only its name is ever shown."""
    version: str
    """The daemon's own version, for the OpenAPI document."""
    host: str = "127.0.0.1"
    port: int = 0
    """0 turns TCP off."""
    allowed_hosts: tuple[str, ...] = ()
    """Further names by which clients may call this host."""
    tls: ssl.SSLContext | None = None
    own_uid: int = field(default_factory=os.geteuid)
    receive_seconds: float = 20.0
    """For a request's headers and body in all, a TLS handshake included; also the longest that a
    connection may idle, and that an answer may take to be read."""
    max_connections: int = 256
    """On each of the two, Unix socket and TCP."""
    shutdown_seconds: float = 2.0
    """How long requests that are being handled are waited for at the end."""
