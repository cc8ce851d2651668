"""The bundled worker's own settings, passed on by the supervisor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from atlas_worker.app.llm import Model
from atlas_worker.contract import BUNDLED_WORKER_DIRECTORY
from atlas_worker.instance import BadEnvironmentError

_WORDS = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}


@dataclass(frozen=True, slots=True)
class AppSettings:
    """Which modules run, and where their data is."""

    directory: Path
    scheduler_enabled: bool = True
    memory_enabled: bool = True
    model: Model | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str], state_dir: Path) -> AppSettings:
        """Read them; raises `BadEnvironmentError`."""
        return cls(
            directory=state_dir / BUNDLED_WORKER_DIRECTORY,
            scheduler_enabled=_switch(environ, "SCHEDULER_ENABLED"),
            memory_enabled=_switch(environ, "MEMORY_ENABLED"),
            model=_model(environ),
        )


def _model(environ: Mapping[str, str]) -> Model | None:
    url = environ.get("LLM_URL", "")
    if not url:
        return None
    if not url.startswith(("http://", "https://")):
        raise BadEnvironmentError(f"LLM_URL={url!r}: expected an http:// or https:// address")
    key_file = environ.get("LLM_API_KEY_FILE") or None
    name = environ.get("LLM_MODEL", "")
    return Model(url, name, Path(key_file) if key_file else None)


def _switch(environ: Mapping[str, str], name: str) -> bool:
    text = environ.get(name) or "true"
    if text.lower() not in _WORDS:
        raise BadEnvironmentError(f"{name}={text!r}: expected true or false")
    return _WORDS[text.lower()]
