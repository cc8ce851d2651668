"""The control API's certificate, which is read again when its files have changed.

Certificates are renewed every few weeks, which must not need a restart. The files are looked at
before each handshake, so that there is nothing to reload by hand. While a new pair is only half
there, or unusable, the old one stays and the log says so.
"""

from __future__ import annotations

import ssl
from pathlib import Path

import structlog

from atlas_supervisor.errors import StartRefusedError

log = structlog.get_logger(__name__)

_Seen = tuple[tuple[int, int, int], ...]
"""Of both files: inode, size and time of the last change."""


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return the server's context. Raises StartRefusedError if the pair can't be used."""
    pair = _Pair(certificate, key)
    try:
        seen, context = pair.seen(), pair.load()
    except (OSError, ValueError) as error:  # changed since the settings were checked
        raise StartRefusedError(
            f"CONTROL_TLS_CERT={certificate} with CONTROL_TLS_KEY={key} can't be used: {error}"
        ) from error
    current = _CurrentPair(pair, seen, context)
    context.sni_callback = current.choose
    return context


class _Pair:
    """The two files."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = (certificate, key)

    def seen(self) -> _Seen:
        """Return the identity of both contents. Raises OSError."""
        found = [path.stat() for path in self._files]
        return tuple((each.st_ino, each.st_size, each.st_mtime_ns) for each in found)

    def load(self) -> ssl.SSLContext:
        """Return a context with the files' content. Raises OSError, ValueError."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*self._files, password="")  # never ask at a terminal
        return context


class _CurrentPair:
    """The last usable content of the files."""

    def __init__(self, pair: _Pair, seen: _Seen, context: ssl.SSLContext) -> None:
        self._pair = pair
        self._seen = seen
        self._context = context

    def choose(self, connection: ssl.SSLObject, _name: str | None, _: ssl.SSLContext) -> None:
        """Give a connection the current certificate; OpenSSL calls this in each handshake."""
        try:
            self._refresh()
        except (OSError, ValueError) as error:
            log.error("certificate_unusable", why=str(error), instead="the last one is kept")
        connection.context = self._context

    def _refresh(self) -> None:
        """Read changed files, once for each change. Raises OSError, ValueError."""
        try:
            seen = self._pair.seen()
        except OSError:
            if not self._seen:
                return  # it was reported
            self._seen = ()
            raise
        if seen != self._seen:
            self._seen = seen
            self._context = self._pair.load()
            log.info("certificate_loaded")
