"""What a worker finds in its environment: an allow-list, its own settings, and the contract.

The daemon's environment may hold secrets, sockets and addresses that are not the worker's: it
gets a few names that every program expects, what the operator wrote down for it, and no more.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from atlas_supervisor.config import Settings, load_worker_env
from atlas_supervisor.model.release import Release
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.telemetry.sanitize import is_secret, keep_secret
from atlas_worker import contract

ALLOWED = (
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TERM",
    "XDG_RUNTIME_DIR", "SSL_CERT_FILE", "SSL_CERT_DIR",
)  # fmt: skip
ALLOWED_PREFIX = "LC_"


def worker_environment(
    settings: Settings,
    *,
    slot: SlotName,
    port: int,
    instance: str,
    release: Release,
    environ: Mapping[str, str] = os.environ,
) -> dict[str, str]:
    """Return the environment of one instance.

    Raises SettingsError if the operator's file of extra variables can't be used any more.
    """
    values = {
        name: value
        for name, value in environ.items()
        if name in ALLOWED or name.startswith(ALLOWED_PREFIX)
    }
    own = load_worker_env(settings.worker_env_file)
    keep_secret(value for key, value in own.items() if is_secret(key))
    values |= own
    values["PATH"] = _path(release.path, values.get("PATH", os.defpath))
    values |= {
        contract.ENV_SLOT: slot.value,
        contract.ENV_PORT: str(port),
        contract.ENV_INSTANCE: instance,
        contract.ENV_VERSION: release.version,
        contract.ENV_CHANNEL: settings.channel,
        contract.ENV_STATE_DIR: str(settings.state_dir),
        contract.ENV_SUPERVISOR_SOCKET: str(settings.state_dir / contract.SUPERVISOR_SOCKET),
        contract.ENV_DRAIN_TIMEOUT: f"{settings.drain_timeout_seconds:g}",
        "LLM_URL": settings.llm_url,
        "LLM_MODEL": settings.llm_model,
        "LLM_API_KEY_FILE": str(settings.llm_api_key_file or ""),
        "SCHEDULER_ENABLED": str(settings.scheduler_enabled).lower(),
        "MEMORY_ENABLED": str(settings.memory_enabled).lower(),
    }
    return values


def _path(release: Path, inherited: str) -> str:
    """Put the release's own environment first, then the daemon's interpreter."""
    own = [str(release / ".venv" / "bin")] if (release / ".venv" / "bin").is_dir() else []
    return os.pathsep.join([*own, str(Path(sys.executable).parent), inherited])
