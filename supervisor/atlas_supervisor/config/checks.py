"""Checks across settings: keys that contradict each other, or a key and its file."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

from atlas_supervisor.config.envfile import load_worker_env
from atlas_supervisor.config.settings import Settings
from atlas_supervisor.errors import SettingsError

Fault = tuple[set[str], str]
"""The keys involved, and the line to print."""


def check_together(settings: Settings) -> Iterator[Fault]:
    """Yield every fault; each setting is valid by itself."""
    yield from _ports(settings)
    yield from _control(settings)
    yield from _worker_env(settings)
    yield from _worker_user(settings)


def _ports(settings: Settings) -> Iterator[Fault]:
    ports = {
        "ACTIVE_PORT": settings.active_port,
        "STAGING_PORT": settings.staging_port,
        "PUBLIC_PORT": settings.public_port,
        "CONTROL_PORT": settings.control_port,
    }
    for (key, port), (other, other_port) in combinations(ports.items(), 2):
        if port == other_port and port != 0:
            yield (
                {key, other},
                f"{key}={port} and {other}={port}: accepted: a port of its own for each",
            )


def _control(settings: Settings) -> Iterator[Fault]:
    token, view = settings.control_token_file, settings.control_view_token_file
    if view is not None and view.resolve() == token.resolve():
        yield (
            {"CONTROL_TOKEN_FILE", "CONTROL_VIEW_TOKEN_FILE"},
            f"CONTROL_VIEW_TOKEN_FILE={view}: accepted: another file than CONTROL_TOKEN_FILE",
        )
    cert, key = settings.control_tls_cert, settings.control_tls_key
    names = {"CONTROL_TLS_CERT", "CONTROL_TLS_KEY"}
    if cert and key:
        reason = _tls_fault(cert, key)
        if reason:
            both = f"CONTROL_TLS_CERT={cert} and CONTROL_TLS_KEY={key}"
            yield names, f"{both}: {reason}; accepted: a certificate and its key, both in PEM"
    elif cert or key:
        given = f"CONTROL_TLS_CERT={cert}" if cert else f"CONTROL_TLS_KEY={key}"
        other = "CONTROL_TLS_KEY" if cert else "CONTROL_TLS_CERT"
        yield names, f"{given}: without {other}; accepted: both or neither"
    if not settings.control_host.is_loopback and not (cert and key):
        open_host = f"CONTROL_HOST={settings.control_host}"
        accepted = "a loopback address; any other only with CONTROL_TLS_CERT and CONTROL_TLS_KEY"
        yield {"CONTROL_HOST", *names}, f"{open_host}: accepted: {accepted}"


def _tls_fault(cert: Path, key: Path) -> str | None:
    try:
        # Without a password, OpenSSL would prompt for it on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password="")
    except ssl.SSLError as error:
        return (error.reason or str(error)).replace("_", " ").lower()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _worker_env(settings: Settings) -> Iterator[Fault]:
    if settings.worker_env_file is None:
        return
    try:
        load_worker_env(settings.worker_env_file)
    except SettingsError as error:
        for fault in error.faults:
            yield {"WORKER_ENV_FILE"}, f"WORKER_ENV_FILE={fault}"


def _worker_user(settings: Settings) -> Iterator[Fault]:
    try:
        account = settings.worker_account
    except ValueError as error:
        why = str(error)
    else:
        if account is None or os.geteuid() == 0:
            return
        why = f"the daemon is not root, but uid {os.geteuid()}, and can't start their processes"
    accepted = "a user other than root, if root runs the daemon; or empty for the daemon's own"
    yield {"WORKER_USER"}, f"WORKER_USER={settings.worker_user}: accepted: {accepted} ({why})"
