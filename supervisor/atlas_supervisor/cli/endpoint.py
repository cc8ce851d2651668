"""Where the daemon is, found out from what the caller said and from where he stands.

A wrong answer here is worse than none: whoever names an env file or a URL gets that one or a
fault, never another daemon that happens to be nearby.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import click
from dotenv import dotenv_values
from yarl import URL

from atlas_worker.contract import SUPERVISOR_SOCKET

ENV_FILE = "atlas.env"
ENV_ENV_FILE = "ATLAS_ENV_FILE"
ENV_TOKEN = "ATLAS_TOKEN"  # noqa: S105 - the name of the variable, not a token
STATE_DIR = "STATE_DIR"
DEFAULT_STATE_DIR = "state"

_ROOT = Path(__file__).resolve().parents[3]


@dataclass
class ConnectionOptions:
    """What the caller said about the daemon, before the verb or after it."""

    env_file: Path | None = None
    url: str | None = None
    token_file: Path | None = None
    json: bool = False


@dataclass(frozen=True)
class Endpoint:
    """Where requests go: a Unix socket, or a base URL with the token that changes need."""

    base: str
    socket: Path | None = None
    token: str | None = None

    def __str__(self) -> str:
        return self.base if self.socket is None else str(self.socket)


def find_endpoint(given: ConnectionOptions) -> Endpoint:
    """Return where the daemon should be; raises `click.UsageError` if that can't be told."""
    if given.url is None:
        if given.token_file is not None:
            raise click.UsageError("--token-file goes with --url; the Unix socket needs no token.")
        return Endpoint(base="http://localhost", socket=_state_dir(given) / SUPERVISOR_SOCKET)
    if given.env_file is not None:
        raise click.UsageError("Give --env-file or --url, not both.")
    return Endpoint(base=_base(given.url), token=_token(given))


def _state_dir(given: ConnectionOptions) -> Path:
    env_file = _env_file(given)
    try:
        settings = dotenv_values(env_file, interpolate=False, encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"The env file {env_file} can't be read: {error}") from error
    chosen = os.environ.get(STATE_DIR) or settings.get(STATE_DIR) or DEFAULT_STATE_DIR
    return env_file.absolute().parent.resolve() / chosen


def _env_file(given: ConnectionOptions) -> Path:
    if given.env_file is not None:
        return given.env_file
    if named := os.environ.get(ENV_ENV_FILE):
        if not Path(named).is_file():
            raise click.UsageError(f"{ENV_ENV_FILE} names {named}, which is no file.")
        return Path(named)
    candidates = [Path.cwd() / ENV_FILE, _ROOT / ENV_FILE]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    tried = " and ".join(str(candidate) for candidate in candidates)
    raise click.UsageError(f"There is no env file (tried {tried}); give --env-file or --url.")


def _base(given: str) -> str:
    try:
        url = URL(given)
        usable = url.scheme in {"http", "https"} and bool(url.host) and url.port is not None
    except ValueError:
        usable = False
    if not usable:
        raise click.UsageError(f"--url takes http://HOST:PORT or https://HOST:PORT, not {given!r}.")
    if url.user is not None or url.password is not None:
        raise click.UsageError(f"--url takes no user or password; use --token-file or {ENV_TOKEN}.")
    if url.query_string or url.fragment:
        raise click.UsageError("--url takes no query and no fragment.")
    return str(url).rstrip("/")


def _token(given: ConnectionOptions) -> str | None:
    source, token = ENV_TOKEN, os.environ.get(ENV_TOKEN, "")
    if given.token_file is not None:
        source = str(given.token_file)
        try:
            token = given.token_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise click.UsageError(f"The token file {source} can't be read: {error}") from error
    token = token.strip()
    if not token:
        if given.token_file is not None:
            raise click.UsageError(f"The token file {source} is empty.")
        return None
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise click.UsageError(f"{source} holds no token: one word of plain characters.")
    return token
