"""The identity of this process: the environment from the supervisor, read once and checked.

Everything has a default, because the same program also runs without a supervisor.
"""

from __future__ import annotations

import math
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from atlas_worker import contract

DEFAULT_DRAIN_TIMEOUT = 30.0
DEFAULT_IDLE_GRACE = 5.0


class BadEnvironmentError(ValueError):
    """An invalid environment; the text names the variable, its value and the accepted values."""


@dataclass(frozen=True, slots=True)
class Instance:
    """One process of one version in one slot. Times are seconds."""

    id: str
    slot: str | None
    port: int | None
    version: str
    channel: str
    state_dir: Path
    drain_timeout: float
    idle_grace: float

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Instance:
        """Read the variables of the worker contract; raises `BadEnvironmentError`."""
        return cls(
            id=environ.get(contract.ENV_INSTANCE) or uuid.uuid4().hex,
            slot=environ.get(contract.ENV_SLOT) or None,
            port=_port(environ, contract.ENV_PORT),
            version=environ.get(contract.ENV_VERSION) or "dev",
            channel=environ.get(contract.ENV_CHANNEL) or "stable",
            state_dir=Path(environ.get(contract.ENV_STATE_DIR) or "state"),
            drain_timeout=_seconds(environ, contract.ENV_DRAIN_TIMEOUT, DEFAULT_DRAIN_TIMEOUT),
            idle_grace=_seconds(environ, contract.ENV_IDLE_GRACE, DEFAULT_IDLE_GRACE),
        )

    @property
    def state_file(self) -> Path:
        """The file with the active port."""
        return self.state_dir / contract.STATE_FILE


def _port(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name)
    if not text:
        return None
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise BadEnvironmentError(f"{name}={text!r}: expected a port from 1 to 65535")
    return int(text)


def _seconds(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name)
    if not text:
        return default
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise BadEnvironmentError(f"{name}={text!r}: expected a number of seconds, 0 or more")
    return seconds
