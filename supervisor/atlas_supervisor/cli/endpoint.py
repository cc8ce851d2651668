"""Finds the daemon to talk to: from the options, the environment, or the current folder.

A wrong daemon is worse than none: an env file or URL that is named is used or reported as a fault,
never replaced by another one.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from pathlib import Path

import click
from dotenv import dotenv_values
from yarl import URL

from atlas_worker.contract import SUPERVISOR_SOCKET

ENV_FILE = "atlas.env"
ENV_ENV_FILE = "ATLAS_ENV_FILE"
ENV_TOKEN = "ATLAS_TOKEN"  # noqa: S105 - the name of the variable, not a token
ENV_CACERT = "ATLAS_CACERT"
STATE_DIR = "STATE_DIR"
DEFAULT_STATE_DIR = "state"

_IMPORT_ROOT = Path(__file__).resolve().parents[2]
"""`supervisor/` of a checkout, or the `site-packages` that the package is installed in."""


@dataclass
class ConnectionOptions:
    """The common options, given before the verb or after it."""

    env_file: Path | None = None
    url: str | None = None
    token_file: Path | None = None
    cacert: Path | None = None
    json: bool = False


@dataclass(frozen=True)
class Endpoint:
    """Where requests go: a Unix socket, or a base URL with the token for changes.

    `tls` has the certificates that are trusted instead of the system's.
    """

    base: str
    socket: Path | None = None
    token: str | None = None
    tls: ssl.SSLContext | None = None

    def __str__(self) -> str:
        return self.base if self.socket is None else str(self.socket)


def find_endpoint(given: ConnectionOptions) -> Endpoint:
    """Return the daemon's endpoint. Raises `click.UsageError` if it can't be determined."""
    if given.url is None:
        if given.token_file is not None:
            raise click.UsageError("--token-file needs --url; the Unix socket needs no token.")
        if given.cacert is not None:
            raise click.UsageError("--cacert needs --url; the Unix socket has no TLS.")
        return Endpoint(base="http://localhost", socket=_state_dir(given) / SUPERVISOR_SOCKET)
    if given.env_file is not None:
        raise click.UsageError("Give --env-file or --url, not both.")
    base = _base(given.url)
    return Endpoint(base=base, token=_token(given), tls=_trusted(given, base))


def _state_dir(given: ConnectionOptions) -> Path:
    env_file = env_file_of(given)
    try:
        settings = dotenv_values(env_file, interpolate=False, encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"The env file {env_file} can't be read: {error}") from error
    chosen = os.environ.get(STATE_DIR) or settings.get(STATE_DIR) or DEFAULT_STATE_DIR
    return env_file.absolute().parent.resolve() / chosen


def env_file_of(given: ConnectionOptions) -> Path:
    """Return the daemon's env file. Raises `click.UsageError` if there is none."""
    if (found := find_env_file(given)) is not None:
        return found
    where = " or in ".join(map(str, _folders()))
    raise click.UsageError(
        f"There is no {ENV_FILE} in {where}. Name the daemon's env file with --env-file or "
        f"{ENV_ENV_FILE}, or its API with --url. `atlasctl init` writes one."
    )


def find_env_file(given: ConnectionOptions) -> Path | None:
    """Return --env-file, $ATLAS_ENV_FILE, ./atlas.env or that of the checkout, in this order.

    Raises `click.UsageError` if one is named that is not there.
    """
    if given.env_file is not None:
        return given.env_file
    if named := os.environ.get(ENV_ENV_FILE):
        if not Path(named).is_file():
            raise click.UsageError(f"{ENV_ENV_FILE} names {named}, which is not a file.")
        return Path(named)
    files = (folder / ENV_FILE for folder in _folders())
    return next((file for file in files if file.is_file()), None)


def _folders() -> list[Path]:
    return [Path.cwd(), *checkout()]


def checkout() -> list[Path]:
    """Return the checkout that this code is run from; an installed package has none."""
    root = _IMPORT_ROOT.parent
    return [root] if (root / "pyproject.toml").is_file() else []


def _base(given: str) -> str:
    try:
        url = URL(given)
        usable = url.scheme in {"http", "https"} and bool(url.host) and url.port is not None
    except ValueError:
        usable = False
    if not usable:
        raise click.UsageError(f"--url must be http[s]://HOST:PORT, not {given!r}.")
    if url.user is not None or url.password is not None:
        raise click.UsageError(
            f"--url can't have a user or password; use --token-file or {ENV_TOKEN}."
        )
    if url.query_string or url.fragment:
        raise click.UsageError("--url can't have a query or fragment.")
    return str(url).rstrip("/")


def _trusted(given: ConnectionOptions, base: str) -> ssl.SSLContext | None:
    """Return a context that trusts --cacert, $ATLAS_CACERT or the system's; None without TLS."""
    named = given.cacert or os.environ.get(ENV_CACERT)
    if not base.startswith("https://"):
        if given.cacert is not None:
            raise click.UsageError("--cacert is for an https:// URL.")
        return None
    if not named:
        return ssl.create_default_context()  # what aiohttp made at its import trusts none
    try:
        context = ssl.create_default_context(cafile=named)
    except (OSError, ssl.SSLError) as error:
        raise click.UsageError(
            f"{named} can't be used as certificates in PEM form: {error.strerror or error}"
        ) from error
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the daemon's own certificate suffices
    return context


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
        raise click.UsageError(f"{source} is not a token: one word of printable ASCII.")
    return token
