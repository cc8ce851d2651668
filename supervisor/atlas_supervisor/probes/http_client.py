"""One HTTP request and its complete response, in bounded time and memory.

The health probe and the smoke tests send requests to programs that may be broken in any way. A
failure is attributed: a supervisor without descriptors left is no evidence against the worker.
"""

from __future__ import annotations

import asyncio
import errno
import re
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Self

import aiohttp
from multidict import CIMultiDict
from pydantic import JsonValue
from yarl import URL

from atlas_supervisor.config import Settings
from atlas_supervisor.model.verdict import Verdict
from atlas_supervisor.model.worker_text import quoted
from atlas_supervisor.system.text import escaped, without_known_secrets

_OWN_ERRORS = frozenset(
    {
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOBUFS,
        errno.ENOMEM,
        errno.EADDRNOTAVAIL,
        errno.EACCES,
        errno.EPERM,
    }
)
"""Errors of this machine, before a request was sent."""

_STALL_SECONDS = 1.0
"""A time-out noticed this late means that the supervisor itself stood still."""

_DIAGNOSIS_SECONDS = 0.5
"""How long the other scheme is tried after a failure, to explain it."""

_WANTS_TLS = re.compile(rb"(?i)http request.{0,80}https|requires tls", re.DOTALL)
"""How servers answer plain HTTP on a TLS port: nginx, Apache, Go, Tomcat and others."""

_NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST"})
"""OpenSSL's words for an answer that is not TLS."""

_HOST_CHECKS = frozenset({400, 403, 421})
"""How applications refuse a `Host` that they do not serve."""

_LOCATION_LIMIT = 200

_HEADER_LIMIT = 64 * 1024
"""Bytes of one header, as a long security policy or cookie has; browsers take more."""

EXCERPT_LIMIT = 600
"""Characters of foreign text that go into a record."""


def printable(text: str) -> str:
    """Return foreign text safe to show: without known secrets, and fit for a terminal."""
    return escaped(without_known_secrets(text), keep="\n")


@dataclass(frozen=True)
class RequestShape:
    """The shape of every probe and smoke test: HEALTH_SCHEME, HEALTH_HOST and HEALTH_HEADERS."""

    scheme: str = "http"
    host: str = ""
    """The `Host`; empty: the address that is connected to."""
    headers: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the shape that the settings ask for."""
        return cls(settings.health_scheme, settings.health_host, settings.health_headers)

    def base_url(self, port: int) -> str:
        """Return the URL of a worker on loopback, without a path."""
        return f"{self.scheme}://127.0.0.1:{port}"

    def headers_for(self, port: int) -> CIMultiDict[str]:
        """Return the headers of a request to a worker on this port, `Host` included."""
        return CIMultiDict([*self.headers, ("Host", self.host or f"127.0.0.1:{port}")])


@dataclass(frozen=True)
class HttpResponse:
    """A response."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    cut: bool
    """The body goes on after `body`; the rest was not read."""

    @property
    def excerpt(self) -> str:
        """The body's beginning, printable; `…` stands for the rest."""
        # Four bytes are the most that a character takes; a body may be large.
        text = self.body[: 4 * EXCERPT_LIMIT].decode(errors="replace").replace("\r\n", "\n").strip()
        text = without_known_secrets(text)  # before one could be cut in two
        shown = printable(text[:EXCERPT_LIMIT])
        left = self.cut or len(self.body) > 4 * EXCERPT_LIMIT or len(text) > EXCERPT_LIMIT
        if len(shown) > EXCERPT_LIMIT:  # escapes are longer than what they stand for
            return shown[:EXCERPT_LIMIT] + "…"
        return shown + ("…" if left else "")


class HttpExchangeError(Exception):
    """There is no complete response to judge; the text says why.

    `status` is set where the response began, and broke off later.
    """

    def __init__(
        self, message: str, *, verdict: Verdict = Verdict.FAIL, status: int | None = None
    ) -> None:
        super().__init__(message)
        self.verdict = verdict
        self.status = status


def open_session() -> aiohttp.ClientSession:
    """Return a session without state between requests: no connections, no cookies."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(force_close=True, limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
        headers={"Accept-Encoding": "identity"},
        max_field_size=_HEADER_LIMIT,
        trust_env=False,
    )


async def exchange(
    session: aiohttp.ClientSession,
    method: str,
    url: str,
    *,
    headers: Mapping[str, str],
    timeout_seconds: float,
    limit: int,
    body: str | None = None,
    json: JsonValue = None,
) -> HttpResponse:
    """Send a request and return its answer with at most `limit` bytes of body.

    `timeout_seconds` covers all of it, from connecting to the body's last byte. Redirects are
    not followed. Raises HttpExchangeError.
    """
    status: int | None = None
    started = time.monotonic()
    target = URL(url, encoded=True)
    host = headers.get("Host", target.authority)
    failure: HttpExchangeError
    cause: Exception
    try:
        async with asyncio.timeout(timeout_seconds):
            response = await session.request(
                method,
                target,
                headers=headers,
                data=body,
                json=json,
                allow_redirects=False,
                ssl=_unverified(),
                server_hostname=server_name(host) if target.scheme == "https" else None,
            )
            try:
                status = response.status
                read, cut = await _read(response.content, limit)
            finally:
                response.close()
            return HttpResponse(status, response.headers, read, cut)
    except TimeoutError as error:
        cause, failure = error, _too_late(status, timeout_seconds, time.monotonic() - started)
    except (aiohttp.ClientError, OSError) as error:
        cause, failure = error, _broken(status, error, host)
    if status is None and failure.verdict is Verdict.FAIL and (hint := await _hint(target, cause)):
        failure = HttpExchangeError(f"{failure}; {hint}")
    raise failure from cause


def server_name(host: str) -> str:
    """Return the name or address in a `Host`, without its port."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return name.removesuffix(".")


@cache
def _unverified() -> ssl.SSLContext:
    """Return the TLS settings of probes: on this machine, a certificate proves nothing more."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    return context


def explanation(response: HttpResponse, url: str, host: str) -> str | None:
    """Return the probable cause of a refusal, and the setting that helps; None if nothing is known.

    `host` is the request's `Host`.
    """
    status, scheme = response.status, url.partition(":")[0]
    if scheme == "http" and 400 <= status <= 499 and _WANTS_TLS.search(response.body[:4096]):
        return "it answers TLS: HEALTH_SCHEME=https"
    if 300 <= status <= 399 and (location := response.headers.get("Location")) is not None:
        text = f"Location: {quoted(printable(location)[:_LOCATION_LIMIT])}"
        if scheme == "http" and location.lower().startswith("https:"):
            text += " (behind TLS, HEALTH_HEADERS=X-Forwarded-Proto: https may help)"
        return f"{text}; the Host that was sent: {host} (HEALTH_HOST)"
    if status in _HOST_CHECKS:
        return f"the Host that was sent: {host} (HEALTH_HOST)"
    return None


async def _hint(url: URL, cause: Exception) -> str | None:
    """Return that the worker speaks the other scheme, if a failure may come from that.

    Most servers just close a connection in the wrong scheme, so the right one is tried.
    """
    if isinstance(cause, OSError) and cause.errno == errno.ECONNREFUSED:
        return None
    try:
        async with asyncio.timeout(_DIAGNOSIS_SECONDS):
            if url.scheme == "https":
                plain = _tls_reason(cause) in _NO_TLS or await _answers_plain_http(url)
                return "it answers plain HTTP: HEALTH_SCHEME=http" if plain else None
            tls = not isinstance(cause, TimeoutError) and await _answers_tls(url)
            return "it answers TLS: HEALTH_SCHEME=https" if tls else None
    except (OSError, asyncio.IncompleteReadError):
        return None


def _tls_reason(error: Exception) -> str | None:
    """Return OpenSSL's word for an error of TLS; None for any other error.

    aiohttp wraps it. Its number must not be taken for the system's: 1 is EPERM as well.
    """
    cause: BaseException | None = error.__cause__ or error
    if isinstance(error, aiohttp.ClientConnectorError):
        cause = error.os_error
    return (cause.reason or "unknown error") if isinstance(cause, ssl.SSLError) else None


async def _answers_tls(url: URL) -> bool:
    """Return whether a TLS handshake is answered as such, with an alert perhaps."""
    try:
        _reader, writer = await asyncio.open_connection(url.host, url.port, ssl=_unverified())
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")
    writer.transport.abort()
    return True


async def _answers_plain_http(url: URL) -> bool:
    """Return whether plain HTTP is answered, and not with a request for TLS."""
    reader, writer = await asyncio.open_connection(url.host, url.port)
    try:
        writer.write(f"GET {url.raw_path_qs} HTTP/1.0\r\n\r\n".encode())
        begin = await reader.readexactly(5)
        return begin == b"HTTP/" and not _WANTS_TLS.search(await reader.read(4096))
    finally:
        writer.transport.abort()


async def _read(content: aiohttp.StreamReader, limit: int) -> tuple[bytes, bool]:
    body = bytearray()
    async for chunk in content.iter_any():
        body += chunk
        if len(body) > limit:
            return bytes(body[:limit]), True
    return bytes(body), False


def _too_late(status: int | None, allowed: float, waited: float) -> HttpExchangeError:
    if waited > allowed + _STALL_SECONDS:
        return HttpExchangeError(
            f"the supervisor itself stood still: {waited:.1f} s went by in a wait of {allowed:g} s",
            verdict=Verdict.INCONCLUSIVE,
        )
    if status is None:
        return HttpExchangeError(f"no answer within {allowed:g} s")
    message = f"answered {status}, but the body did not end within {allowed:g} s"
    return HttpExchangeError(message, status=status)


def _broken(status: int | None, error: Exception, host: str) -> HttpExchangeError:
    if tls := _tls_reason(error):
        words = tls.replace("_", " ").lower()
        return HttpExchangeError(f"TLS with {server_name(host)} failed: {words}", status=status)
    number = error.errno if isinstance(error, OSError) else None
    if number in _OWN_ERRORS:
        message = f"the supervisor itself could not connect: {_reason(error)}"
        return HttpExchangeError(message, verdict=Verdict.INCONCLUSIVE)
    if number == errno.ECONNREFUSED:
        message = "connection refused: nothing listens there"
    elif isinstance(error, aiohttp.ClientConnectorError) and number is None:
        message = f"closed the connection in the TLS handshake with {server_name(host)}"
    elif status is not None:
        message = f"answered {status}, but the body broke off ({_reason(error)})"
    elif isinstance(error, aiohttp.ServerDisconnectedError):
        message = "closed the connection without an answer"
    elif number in {errno.ECONNRESET, errno.EPIPE}:
        message = "reset the connection without an answer"
    elif isinstance(error, aiohttp.ClientResponseError):
        message = f"answered with something that is not HTTP ({_reason(error)})"
    else:
        message = f"no answer ({_reason(error)})"
    return HttpExchangeError(message, status=status)


def _reason(error: Exception) -> str:
    """Return the error in one short printable line; it may quote what a broken server sent."""
    if isinstance(error, OSError) and error.strerror:
        return escaped(error.strerror)
    text = error.message if isinstance(error, aiohttp.ClientResponseError) else str(error)
    line = printable(" ".join(text.split()))[:160]
    return quoted(line) if line else type(error).__name__
