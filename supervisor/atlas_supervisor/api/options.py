"""The API's options; the daemon takes them from the settings."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from atlas_supervisor.api.tls import server_context
from atlas_supervisor.api.token import load_or_create_token
from atlas_supervisor.config import Settings
from atlas_supervisor.errors import StartRefusedError
from atlas_supervisor.system.program import own_version
from atlas_supervisor.system.text import keep_secret
from atlas_worker.contract import SUPERVISOR_SOCKET


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
    view_token: str | None = None
    """A token that may read everything; None: there is none."""
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


def api_options(settings: Settings) -> ApiOptions:
    """Return the options that the settings ask for; the token's file is made if there is none."""
    tls = None
    if settings.control_tls_cert and settings.control_tls_key:
        tls = server_context(settings.control_tls_cert, settings.control_tls_key)
    token = load_or_create_token(settings.control_token_file)
    view_token = None
    if view_file := settings.control_view_token_file:
        view_token = load_or_create_token(view_file, "CONTROL_VIEW_TOKEN_FILE")
        if view_token == token:
            raise StartRefusedError(
                f"CONTROL_VIEW_TOKEN_FILE: {view_file} has the token of CONTROL_TOKEN_FILE, which "
                "may change everything; remove it, and a new one is created"
            )
    _refuse_readable(settings)
    keep_secret([token, *filter(None, [view_token])])
    return ApiOptions(
        socket_path=settings.state_dir / SUPERVISOR_SOCKET,
        token=token,
        token_file=settings.control_token_file,
        version=own_version(),
        host=str(settings.control_host),
        port=settings.control_port,
        view_token=view_token,
        tls=tls,
    )


def _refuse_readable(settings: Settings) -> None:
    """Raise StartRefusedError if workers could command the daemon, read its log, or pass for it."""
    account, files = (
        settings.worker_account,
        (
            ("CONTROL_TOKEN_FILE", settings.control_token_file),
            ("CONTROL_VIEW_TOKEN_FILE", settings.control_view_token_file),
            ("CONTROL_TLS_KEY", settings.control_tls_key),
            ("FLEET_ETCD_KEY", settings.fleet_etcd_key),
            ("FLEET_ETCD_PASSWORD_FILE", settings.fleet_etcd_password_file),
        ),
    )
    for key, path in files:
        if account is not None and path is not None and account.may(4, path):
            raise StartRefusedError(
                f"{key}={path} is readable by WORKER_USER={account.name}; let root own it, with "
                "another group (chgrp root), and no other user read it (chmod o=)"
            )
