"""The settings as text: the output and the warnings of `--check`, and values for messages.

A value in a message is short, printable and without secrets.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from atlas_supervisor.config.settings import FIELD_OF_KEY, Settings, Sticky
from atlas_supervisor.model.socket_passing import SocketPassing
from atlas_supervisor.system.text import escaped, masked

_LONGEST = 60

_SHELL_OPERATORS = frozenset({"&&", "||", "|", ";", "&", ">", ">>", "<", "2>", "2>&1", "&>"})
_SHELL_BUILTINS = frozenset({"cd", "source", ".", "export", "exec", "ulimit", "umask"})
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
_EXPANDED = re.compile(r"(?:^|[=:/])(\$\{?[A-Za-z_][A-Za-z0-9_]*\}?|(?<![:/])~/)")
_SCRIPT_OPTIONS = frozenset({"-c", "-e"})
"""What follows one of these is a script, which expands by itself."""


def shown(key: str, value: str) -> str:
    """Return the value for a message: one printable line of at most 60 characters."""
    text = masked(key, value)
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST - 1]}…"
    return escaped(text)


def describe_settings(settings: Settings) -> str:
    """Return the effective settings as `KEY=value` lines, secrets masked."""
    lines = []
    for key, name in FIELD_OF_KEY.items():
        value = getattr(settings, name)
        text = shlex.join(value) if key == "WORKER_COMMAND" else as_text(value)
        if key == "HEALTH_HEADERS":
            text = "; ".join(f"{header}: {content}" for header, content in value)
        lines.append(f"{key}={_quoted(masked(key, text))}")
    return "\n".join(lines)


def as_text(value: Any) -> str:
    """Return a setting's value as in the env file."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    if isinstance(value, tuple):
        return ",".join(as_text(item) for item in value)
    return str(value)


def _quoted(text: str) -> str:
    """Quote a value that the file's syntax would cut short."""
    if not re.search(r"^['\"]|^\s|\s$|\s#|\n", text):
        return text
    inner = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{inner}'"


def release_folders(settings: Settings) -> dict[str, Path | None]:
    """Return the folders that releases come from, by their keys."""
    return {
        "WORKER_DIRECTORY": settings.worker_directory,
        "RELEASES_DIR": settings.releases_dir,
    }


def warnings(settings: Settings) -> list[str]:
    """Return a line for each setting that is valid but probably a mistake."""
    return [*_missing_folders(settings), *_warnings(settings)]


def _missing_folders(settings: Settings) -> Iterator[str]:
    for key, path in release_folders(settings).items():
        if path is not None and not path.is_dir():
            yield f"{key}={path} does not exist: a recorded release is started, and deploys need it"


def _warnings(settings: Settings) -> Iterator[str]:
    if settings.guard_seconds > settings.keep_warm_seconds:
        yield (
            f"GUARD_SECONDS={as_text(settings.guard_seconds)} is longer than "
            f"KEEP_WARM_SECONDS={as_text(settings.keep_warm_seconds)}: in the rest of the guard "
            "time there is no warm version to roll back to"
        )
    if settings.health_timeout_seconds >= settings.ready_timeout_seconds:
        yield (
            f"HEALTH_TIMEOUT_SECONDS={as_text(settings.health_timeout_seconds)} is not below "
            f"READY_TIMEOUT_SECONDS={as_text(settings.ready_timeout_seconds)}: one slow answer "
            "takes all the time that a worker has to get ready"
        )
    if settings.smoke_file is None:
        yield "SMOKE_FILE is empty or missing: the health gate is the only check of a release"
    if settings.public_port == 0 and settings.control_port == 0:
        yield (
            "PUBLIC_PORT=0 and CONTROL_PORT=0: clients must follow active_port in the state file, "
            "and the API is on its Unix socket alone"
        )
    if settings.control_tls_cert and settings.control_port == 0:
        yield "CONTROL_TLS_CERT has no effect, because CONTROL_PORT=0 turns TCP off"
    for name in ("CONTROL_TLS_KEY", "FLEET_ETCD_KEY"):
        key = getattr(settings, FIELD_OF_KEY[name])
        if key and key.stat().st_mode & 0o007:
            yield f"{name}={key} is readable by every user of this machine; use chmod o="
    if settings.socket_passing is SocketPassing.FD and settings.public_port == 0:
        yield "WORKER_COMMAND has {fd}, the public socket, and with PUBLIC_PORT=0 there is none"
    yield from _about_the_command(settings.worker_command)
    yield from _about_the_relay(settings)
    yield from _about_the_holdback(settings)
    yield from _about_the_split(settings)
    yield from _about_the_stop(settings)
    yield from _about_the_fleet(settings)
    if settings.llm_api_key_file and settings.llm_url.startswith("http://"):
        yield "LLM_URL is http://: the key in LLM_API_KEY_FILE is sent unencrypted"


def _about_the_command(command: tuple[str, ...]) -> Iterator[str]:
    """Yield what only a shell would understand; a value may be a secret, and is not shown."""
    if found := _ASSIGNMENT.match(command[0]):
        yield (
            f"WORKER_COMMAND begins with {found[0]}…, which is taken for the program: write "
            f"env {found[0]}… before the program, or put it into WORKER_ENV_FILE"
        )
    ours = () if _SCRIPT_OPTIONS.intersection(command) else command
    variables = (found[1] for word in ours if (found := _EXPANDED.search(word)))
    builtin = command[0] if command[0] in _SHELL_BUILTINS else None
    word = builtin or next((word for word in command if word in _SHELL_OPERATORS), None)
    if word := word or next(variables, None):
        yield (
            f"WORKER_COMMAND has {word}, which a shell would understand, and there is none: write "
            "sh -c '… exec PROGRAM', or name a start script that ends with exec"
        )


def _about_the_relay(settings: Settings) -> Iterator[str]:
    by_relay = settings.socket_passing is SocketPassing.PORT and settings.public_port
    if settings.relay_proxy_protocol and not by_relay:
        yield (
            "RELAY_PROXY_PROTOCOL=true has no effect: it is for workers that bind {port} "
            "themselves, behind a PUBLIC_PORT"
        )
    if by_relay and not settings.relay_proxy_protocol:
        yield (
            "WORKER_COMMAND has {port}, so the relay hides the client's address: workers see "
            "127.0.0.1; with RELAY_PROXY_PROTOCOL=true they get it by PROXY protocol v2"
        )


def _about_the_holdback(settings: Settings) -> Iterator[str]:
    without_kit = settings.socket_passing is not SocketPassing.ACTIVATION
    reasons = {
        "PUBLIC_PORT=0: clients follow active_port": not settings.public_port,
        "GUARD_SECONDS=0": not settings.guard_seconds,
        "KEEP_WARM_SECONDS=0: no version is kept warm": not settings.keep_warm_seconds,
        "KEEP_WARM_FOREIGN=false: a worker with {fd} or {port} is not kept warm": (
            without_kit and not settings.keep_warm_foreign
        ),
    }
    if settings.guard_holdback and (found := [why for why, applies in reasons.items() if applies]):
        yield f"GUARD_HOLDBACK={as_text(settings.guard_holdback)} has no effect: {found[0]}"


def _about_the_split(settings: Settings) -> Iterator[str]:
    if settings.traffic_sticky is Sticky.ADDRESS:
        yield (
            "TRAFFIC_STICKY=address is of no use behind a proxy: all clients share the proxy's "
            "address, and so one version"
        )
    if settings.traffic_testers and not settings.public_port:
        yield "TRAFFIC_TESTERS has no effect, because PUBLIC_PORT=0: clients follow active_port"
    elif settings.traffic_testers and settings.auto_switch_on_health and not settings.ramp:
        yield (
            "TRAFFIC_TESTERS has no effect, because AUTO_SWITCH_ON_HEALTH=true and TRAFFIC_RAMP=1: "
            "a release that has passed its gates gets all the traffic at once"
        )
    if len(settings.traffic_ramp) > 1 and not settings.ramp:
        yield (
            "TRAFFIC_RAMP has no effect, because PUBLIC_PORT=0: clients follow active_port, and a "
            "deploy switches them all at once"
        )


def _about_the_stop(settings: Settings) -> Iterator[str]:
    kit = "atlas_worker" in " ".join(settings.worker_command)
    if kit and settings.stop_signal != "TERM":
        yield (
            f"STOP_SIGNAL={settings.stop_signal} has no effect: WORKER_COMMAND runs the kit, which "
            "drains on SIGTERM and gets that"
        )
    if settings.drain_quiet_seconds >= settings.drain_timeout_seconds:
        yield (
            f"DRAIN_QUIET_SECONDS={as_text(settings.drain_quiet_seconds)} is not below "
            f"DRAIN_TIMEOUT_SECONDS={as_text(settings.drain_timeout_seconds)}: every drain of a "
            "worker without the kit takes all its time"
        )


def _about_the_fleet(settings: Settings) -> Iterator[str]:
    files = ("FLEET_ETCD_CA", "FLEET_ETCD_CERT", "FLEET_ETCD_PASSWORD_FILE", "FLEET_HOST")
    given = [key for key in files if getattr(settings, FIELD_OF_KEY[key])]
    if not settings.fleet_etcd_endpoints:
        if given:
            yield f"{given[0]} has no effect: FLEET_ETCD_ENDPOINTS is empty, so there is no fleet"
        return
    if not settings.fleet_etcd_endpoints[0].startswith("http://"):
        return
    hosts = [urlsplit(url).hostname or "" for url in settings.fleet_etcd_endpoints]
    if settings.fleet_etcd_ca or settings.fleet_etcd_cert:
        yield f"{given[0]} has no effect: FLEET_ETCD_ENDPOINTS is http://"
    if not all(host in {"localhost", "127.0.0.1", "::1"} for host in hosts):
        yield (
            "FLEET_ETCD_ENDPOINTS is http://: what steers all machines is sent unencrypted, and "
            "any program on the network may write it"
        )
