"""The API's options; the daemon takes them from the settings."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class ApiOptions:
    """Where to listen, whom to admit, and the limits."""

    socket_path: Path
    """The Unix socket, a path of any length; its folder exists."""
    token: str
    token_file: Path
    """The file with the token; only its name is shown."""
    version: str
    """The daemon's own version, for the OpenAPI document."""
    host: str = "127.0.0.1"
    port: int = 0
    """0 turns TCP off."""
    allowed_hosts: tuple[str, ...] = ()
    """Further host names that clients may use."""
    tls: ssl.SSLContext | None = None
    own_uid: int = field(default_factory=os.geteuid)
    receive_seconds: float = 20.0
    """Limit for a request's headers and body together, a TLS handshake included; also for an idle
    connection, and for reading an answer."""
    max_connections: int = 256
    """On the Unix socket, and again on TCP."""
    shutdown_seconds: float = 2.0
    """How long to wait for requests in progress when stopping."""
