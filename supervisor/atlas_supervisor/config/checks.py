"""Checks across settings: keys that contradict each other, or a key and its file."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

from atlas_supervisor.config.envfile import load_worker_env
from atlas_supervisor.config.fields import NAME_IN_FLEET
from atlas_supervisor.config.settings import FIELD_OF_KEY, Settings
from atlas_supervisor.errors import SettingsError

Fault = tuple[set[str], str]
"""The keys involved, and the line to print."""


def check_together(settings: Settings) -> Iterator[Fault]:
    """Yield every fault; each setting is valid by itself."""
    yield from _ports(settings)
    yield from _control(settings)
    yield from _worker_env(settings)
    yield from _worker_user(settings)
    yield from _fleet(settings)


def _ports(settings: Settings) -> Iterator[Fault]:
    ports = {
        "ACTIVE_PORT": settings.active_port,
        "STAGING_PORT": settings.staging_port,
        "PUBLIC_PORT": settings.public_port,
        "CONTROL_PORT": settings.control_port,
        "FLEETLOCK_PORT": settings.fleetlock_port,
        "FLEET_AGENT_PORT": settings.fleet_agent_port,
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
    yield from _tls_pair(settings, "CONTROL_TLS_CERT", "CONTROL_TLS_KEY")
    secured = settings.control_tls_cert and settings.control_tls_key
    if not settings.control_host.is_loopback and not secured:
        open_host = f"CONTROL_HOST={settings.control_host}"
        accepted = "a loopback address; any other only with CONTROL_TLS_CERT and CONTROL_TLS_KEY"
        names = {"CONTROL_HOST", "CONTROL_TLS_CERT", "CONTROL_TLS_KEY"}
        yield names, f"{open_host}: accepted: {accepted}"


def _tls_pair(settings: Settings, cert_key: str, key_key: str) -> Iterator[Fault]:
    """Yield the fault of a certificate and its private key, by the keys that name their files."""
    cert, key = (getattr(settings, FIELD_OF_KEY[name]) for name in (cert_key, key_key))
    if cert and key:
        if reason := _tls_fault(cert, key):
            both = f"{cert_key}={cert} and {key_key}={key}"
            accepted = "a certificate and its key, both in PEM"
            yield {cert_key, key_key}, f"{both}: {reason}; accepted: {accepted}"
        return
    yield from _both_or_neither(settings, cert_key, key_key)


def _both_or_neither(settings: Settings, one: str, other: str) -> Iterator[Fault]:
    values = {name: getattr(settings, FIELD_OF_KEY[name]) for name in (one, other)}
    given = [name for name, value in values.items() if value]
    if len(given) == 1:
        missing = other if given[0] == one else one
        line = f"{given[0]}={values[given[0]]}: without {missing}; accepted: both or neither"
        yield {one, other}, line


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


def _fleet(settings: Settings) -> Iterator[Fault]:
    yield from _tls_pair(settings, "FLEET_ETCD_CERT", "FLEET_ETCD_KEY")
    yield from _both_or_neither(settings, "FLEET_ETCD_USER", "FLEET_ETCD_PASSWORD_FILE")
    if (ca := settings.fleet_etcd_ca) and (reason := _ca_fault(ca)):
        accepted = "certificates of authorities in PEM"
        yield {"FLEET_ETCD_CA"}, f"FLEET_ETCD_CA={ca}: {reason}; accepted: {accepted}"
    if not settings.fleet_etcd_endpoints:
        if settings.fleetlock_port:
            port = f"FLEETLOCK_PORT={settings.fleetlock_port}"
            accepted = "0, or a port together with FLEET_ETCD_ENDPOINTS"
            yield {"FLEETLOCK_PORT", "FLEET_ETCD_ENDPOINTS"}, f"{port}: accepted: {accepted}"
        return
    name = settings.host_in_fleet
    if name.partition(".")[0] == "localhost" or not re.fullmatch(NAME_IN_FLEET, name):
        given = f"FLEET_HOST={settings.fleet_host}"
        accepted = "a name that no other machine of the fleet has"
        line = f"{given}: accepted: {accepted} (this machine's own name is {name})"
        yield {"FLEET_HOST", "FLEET_ETCD_ENDPOINTS"}, line


def _ca_fault(path: Path) -> str | None:
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(path)
    except ssl.SSLError as error:
        return (error.reason or str(error)).replace("_", " ").lower()
    except OSError as error:
        return error.strerror or str(error)
    return None if context.get_ca_certs() else "there is no certificate of an authority in it"
