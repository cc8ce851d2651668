"""Requests to etcd's members over HTTP: to which member, for how long, and with which token.

A request goes to the member that answered last. If that one fails, the next is tried, and kept;
streams that are open at the first are closed, because a member that hangs ends none by itself.
What may be done twice (reads, leases, tokens) is tried at each member. A commit is tried again only
while it can't have been sent: if a commit has no answer, it is unknown whether it was done.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import aiohttp

from atlas_supervisor.fleet.engine import (
    EngineError,
    EngineUnavailableError,
    GarbledAnswerError,
    RefusedByEngineError,
)
from atlas_supervisor.fleet.etcd_messages import (
    FAILED_PRECONDITION,
    UNAUTHENTICATED,
    Fault,
    M,
    Token,
    body,
    parsed,
    parsed_fault,
    parsed_line,
    refusal,
)
from atlas_supervisor.system.text import escaped

_HEADERS = {"Content-Type": "application/json", "Grpc-Metadata-hasleader": "true"}
"""A member without a leader refuses a request, and ends a stream, instead of waiting for one."""
REQUEST_SECONDS = 3.0
"""How long one member may take for an answer, if no other is left."""
_IMPATIENT_SECONDS = 1.0
"""The same, if it may be asked of another member too."""
_CONNECT_SECONDS = 2.0
_IDLE_SECONDS = 60.0
"""How long a connection is kept for the next request."""
ANSWER_LIMIT = 32 << 20
"""Bytes of one answer, or of one message of a stream: some 30,000 documents."""
_OLD_TOKEN = ("revision of auth store is old", "user name is empty")
"""How members name a token that is to be renewed, beside the code for it."""
_KEEP_ALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 10_000),
)
"""A stream whose other end is gone without a word ends after some ten seconds."""

T = TypeVar("T")


@dataclass(frozen=True)
class Tls:
    """Certificates to reach etcd with. Its own must name its host in a SAN.

    With etcd's users on, ours may have no CommonName: the gateway takes it for a user.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def context(self) -> ssl.SSLContext:
        """Read the files. Raises EngineError."""
        try:
            context = ssl.create_default_context(cafile=self.ca)
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            raise EngineError(f"the certificates for etcd can't be read: {error}") from None
        context.hostname_checks_common_name = False
        return context


@dataclass(frozen=True)
class Credentials:
    """An etcd user."""

    user: str
    password: str = field(repr=False)


class NotSentError(EngineUnavailableError):
    """A request that no member can have received."""


class Stream:
    """The messages of one streaming answer, a line each."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self._lines: deque[bytes] = deque()
        self._rest = b""

    async def message(self, kind: type[M], *, within: float) -> M | None:
        """Return the next message; None if there was none in that many seconds.

        Raises EngineError: what the message reports, or that the stream has ended.
        """
        try:
            async with asyncio.timeout(within):
                await self._read_line()
        except TimeoutError:
            return None
        return parsed_line(kind, self._lines.popleft())

    async def _read_line(self) -> None:
        """Read until there is a whole line. If this is cancelled, nothing is lost."""
        while not self._lines:
            try:
                content = await self._response.content.readany()
            except (aiohttp.ClientError, OSError) as error:
                raise _unreachable(error) from None
            if not content:
                raise EngineUnavailableError("the stream has ended")
            *whole, self._rest = (self._rest + content).split(b"\n")
            self._lines += filter(None, whole)
            if len(self._rest) > ANSWER_LIMIT:
                raise GarbledAnswerError(f"a message of more than {ANSWER_LIMIT >> 20} MiB")

    def end(self) -> None:
        """Close the connection; who waits for a message gets an EngineError."""
        self._response.close()
        self._response.content.feed_eof()


class EtcdClient:
    """Requests to the members of one cluster."""

    def __init__(
        self, endpoints: Sequence[str], *, tls: Tls | None, credentials: Credentials | None
    ) -> None:
        """`endpoints` are client URLs (`https://host:2379`); each client begins at any of them."""
        self._endpoints = deque(each.rstrip("/") for each in endpoints)
        self._endpoints.rotate(random.randrange(len(endpoints)))  # noqa: S311 - spreads the load
        self._tls = tls
        self._credentials = credentials
        self._token: str | None = None
        self._renewal = asyncio.Lock()
        self._streams: dict[Stream, str] = {}

    async def __aenter__(self) -> Self:
        """Read the certificates; connect to nothing yet. Raises EngineError."""
        context = self._tls.context() if self._tls is not None else True
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, ssl=context, socket_factory=_kept_alive, keepalive_timeout=_IDLE_SECONDS
            ),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=_HEADERS,
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close all connections."""
        await self._session.close()

    async def ask(self, path: str, content: bytes, read: Callable[[bytes], T], *, twice: bool) -> T:
        """Send a request and return its answer, as read by `read`. Raises EngineError, as that may.

        `twice`: it does no harm if it is done twice.
        """
        for left in reversed(range(len(self._endpoints))):
            endpoint = self._endpoints[0]
            seconds = _IMPATIENT_SECONDS if left and twice else REQUEST_SECONDS
            try:
                return read(await self._ask_one(endpoint, path, content, seconds))
            except RefusedByEngineError:
                raise
            except EngineError as error:
                self._leave(endpoint)
                if not left or not (twice or isinstance(error, NotSentError)):
                    raise _named(endpoint, error) from None
        raise AssertionError

    async def each(self, path: str, kind: type[M]) -> dict[str, M | EngineError]:
        """Ask every member for itself; return its answer or its error, by endpoint."""

        async def one(endpoint: str) -> M | EngineError:
            try:
                return parsed(kind, await self._ask_one(endpoint, path, b"{}", REQUEST_SECONDS))
            except EngineError as error:
                return error

        endpoints = sorted(self._endpoints)
        return dict(zip(endpoints, await asyncio.gather(*map(one, endpoints)), strict=True))

    @asynccontextmanager
    async def stream(self, path: str, content: bytes) -> AsyncIterator[Stream]:
        """Send a request whose answer goes on until it is closed. Raises EngineError."""
        endpoint = self._endpoints[0]
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                response = await self._send(endpoint, path, content, await self._known(endpoint))
                if response.status != HTTPStatus.OK:
                    async with response:
                        raise refusal(await _fault(response))
        except TimeoutError:
            self._leave(endpoint)
            raise EngineUnavailableError(f"{endpoint}: did not answer") from None
        except EngineError as error:
            self._leave(endpoint)
            raise _named(endpoint, error) from None
        stream = Stream(response)
        self._streams[stream] = endpoint
        try:
            yield stream
        finally:
            del self._streams[stream]
            stream.end()

    def _leave(self, endpoint: str) -> None:
        """Go on to the next member, if this is the present one, and end the streams at this one."""
        if len(self._endpoints) == 1:
            return
        if self._endpoints[0] == endpoint:
            self._endpoints.rotate(-1)
        for stream, its_endpoint in self._streams.items():
            if its_endpoint == endpoint:
                stream.end()

    async def _ask_one(self, endpoint: str, path: str, content: bytes, seconds: float) -> bytes:
        """Return the body of one member's answer; a token that is too old is renewed once."""
        try:
            async with asyncio.timeout(seconds):
                token = await self._known(endpoint)
                for renewed in (False, True):
                    response = await self._send(endpoint, path, content, token)
                    async with response:
                        if response.status == HTTPStatus.OK:
                            return await _bounded(response)
                        fault = await _fault(response)
                    if renewed or self._credentials is None or not _is_old_token(fault):
                        raise refusal(fault)
                    token = await self._renewed(endpoint, self._credentials, token)
        except TimeoutError:
            raise EngineUnavailableError(f"no answer within {seconds:g} s") from None
        raise AssertionError

    async def _known(self, endpoint: str) -> str | None:
        """Return the present token, from the first request on."""
        if self._credentials is None or self._token is not None:
            return self._token
        return await self._renewed(endpoint, self._credentials, None)

    async def _renewed(
        self, endpoint: str, credentials: Credentials, old: str | None
    ) -> str | None:
        """Return another token than the old one; None if etcd's users are not switched on."""
        async with self._renewal:
            if self._token == old:
                content = body({"name": credentials.user, "password": credentials.password})
                async with await self._send(
                    endpoint, "/v3/auth/authenticate", content, None
                ) as got:
                    if got.status == HTTPStatus.OK:
                        self._token = parsed(Token, await _bounded(got)).token
                    elif (fault := await _fault(got)).code == FAILED_PRECONDITION:
                        self._token = None
                    else:
                        raise refusal(fault)
            return self._token

    async def _send(
        self, endpoint: str, path: str, content: bytes, token: str | None
    ) -> aiohttp.ClientResponse:
        headers = None if token is None else {"Authorization": token}
        try:
            return await self._session.post(
                endpoint + path, data=content, headers=headers, allow_redirects=False
            )
        except aiohttp.ClientResponseError as error:
            raise GarbledAnswerError(f"its answer is not HTTP: {error.message}") from None
        except (aiohttp.ClientError, OSError) as error:
            raise _unreachable(error) from None


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    """Read a body. Raises EngineError."""
    content = bytearray()
    try:
        async for part in response.content.iter_any():
            content += part
            if len(content) > ANSWER_LIMIT:
                raise GarbledAnswerError(f"its answer has more than {ANSWER_LIMIT >> 20} MiB")
    except (aiohttp.ClientError, OSError) as error:
        raise _unreachable(error) from None
    return bytes(content)


async def _fault(response: aiohttp.ClientResponse) -> Fault:
    return parsed_fault(response.status, await _bounded(response))


def _is_old_token(fault: Fault) -> bool:
    return fault.code == UNAUTHENTICATED or any(words in fault.message for words in _OLD_TOKEN)


def _unreachable(error: Exception) -> EngineUnavailableError:
    """Return the error for a connection that failed."""
    if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ConnectionTimeoutError):
        raise error
    unsent = isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError))
    kind = NotSentError if unsent else EngineUnavailableError
    text = str(error)
    if isinstance(error, aiohttp.ClientConnectorError) and (error.os_error.errno or 0) > 1:
        text = os.strerror(error.os_error.errno or 0)  # without the address, which is named anyway
    return kind(escaped(text) or type(error).__name__)


def _named(endpoint: str, error: EngineError) -> EngineError:
    """Return the error, with the member that it is about in its text."""
    error.args = (f"{endpoint}: {error}", *error.args[1:])
    return error


def _kept_alive(address: aiohttp.AddrInfoType) -> socket.socket:
    """Return the socket of a new connection."""
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    for level, option, value in _KEEP_ALIVE:
        made.setsockopt(level, option, value)
    return made
