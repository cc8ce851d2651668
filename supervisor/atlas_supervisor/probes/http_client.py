"""One HTTP request and its complete response, in bounded time and memory.

The health probe and the smoke tests send requests to programs that may be broken in any way. A
failure is attributed: a supervisor without descriptors left is no evidence against the worker.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp
from pydantic import JsonValue
from yarl import URL

from atlas_supervisor.model.verdict import Verdict
from atlas_supervisor.system.text import escaped

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

EXCERPT_LIMIT = 600
"""Characters of foreign text that go into a record."""


def printable(text: str) -> str:
    """Return foreign text safe to print: it must not move a terminal's cursor."""
    return escaped(text, keep="\n")


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
    try:
        async with asyncio.timeout(timeout_seconds):
            response = await session.request(
                method,
                URL(url, encoded=True),
                headers=headers,
                data=body,
                json=json,
                allow_redirects=False,
            )
            try:
                status = response.status
                read, cut = await _read(response.content, limit)
            finally:
                response.close()
    except TimeoutError as error:
        raise _too_late(status, timeout_seconds, time.monotonic() - started) from error
    except (aiohttp.ClientError, OSError) as error:
        raise _broken(status, error) from error
    return HttpResponse(status, response.headers, read, cut)


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


def _broken(status: int | None, error: Exception) -> HttpExchangeError:
    number = error.errno if isinstance(error, OSError) else None
    if number in _OWN_ERRORS:
        message = f"the supervisor itself could not connect: {_reason(error)}"
        return HttpExchangeError(message, verdict=Verdict.INCONCLUSIVE)
    if number == errno.ECONNREFUSED:
        message = "connection refused: nothing listens there"
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
    if isinstance(error, aiohttp.ClientResponseError):
        text = error.message
    else:
        text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    line = " ".join((text or type(error).__name__).split())
    return escaped(line[:160])
