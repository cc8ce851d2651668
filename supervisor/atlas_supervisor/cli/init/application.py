"""An application as it was found in a folder, and the order in which one is looked for."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

KIT = "atlas-supervisor"
ENVIRONMENTS = (".venv", "venv", "env")
HEALTH_PATHS = (
    *("/health", "/healthz", "/health/", "/healthz/", "/healthcheck", "/livez", "/readyz"),
    *("/ping", "/up", "/status"),
)
"""What applications call the page that says that they work, the usual name first."""
RELAYED = (
    "It binds a port, so the daemon relays: a switch may cost a client with keep-alive a request. "
    "How a program inherits its sockets instead: docs/worker-contract.md"
)


@dataclass(frozen=True)
class Application:
    """How one application is run, and what tests it."""

    kind: str
    source: str
    """Where it was found: a file, with a line."""
    command: str
    path: str = "/"
    """A page that answers 2xx."""
    settings: dict[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    """The distributions that its command needs, besides the kit."""
    notes: tuple[str, ...] = ()
    """What to know, or to do, before it can be deployed."""


def command_line(words: Iterable[str]) -> str:
    """Return the words as one line; `{port}` and the like need no quotes."""
    plain = re.compile(r"[\w@%+=:,./{}-]+")
    return " ".join(word if plain.fullmatch(word) else shlex.quote(word) for word in words)


def environment_of(folder: Path) -> str | None:
    """Return the name of the application's own environment; None: the daemon's serves."""
    return next((each for each in ENVIRONMENTS if (folder / each / "bin/python").exists()), None)


def program(folder: Path, name: str) -> str:
    """Return a program of the application's environment; `.venv` is found by the daemon itself."""
    environment = environment_of(folder)
    return name if environment in {None, ".venv"} else f"{environment}/bin/{name}"


def is_installed(folder: Path, name: str) -> bool:
    """Return whether the application's environment has a distribution; nothing of it is run."""
    from importlib.metadata import distributions  # noqa: PLC0415 - slow, and seldom used

    environment = environment_of(folder)
    if environment is None:
        return next(iter(distributions(name=name)), None) is not None
    paths = [str(path) for path in (folder / environment).glob("lib/python*/site-packages")]
    return next(iter(distributions(name=name, path=paths)), None) is not None


def best_path(paths: Iterable[str], default: str = "/") -> str:
    """Return the page that tells best whether the application works."""
    found = [path for path in paths if path.startswith("/") and not set(path) & set("{<:*(")]
    named = [path for path in HEALTH_PATHS if path in found]
    named += [path for path in found if path.rstrip("/").endswith(("/health", "/healthz"))]
    if named:
        return named[0]
    if "/" in found or not found:
        return "/" if "/" in found else default
    return default if default != "/" else found[0]


def mentioned_paths(texts: Iterable[str]) -> Iterator[str]:
    """Yield the health pages that a source in any language names as a string."""
    for text in texts:
        for found in re.findall(r"""["'`](?:GET )?(/[\w/-]*)["'`]""", text):
            if found in HEALTH_PATHS:
                yield found
