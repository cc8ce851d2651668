"""The daemon as the client sees it: requests in, answers or an understandable failure out."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self

import aiohttp

from atlas_supervisor.cli.endpoint import Endpoint
from atlas_supervisor.cli.errors import BrokenError, FailedError, NoDaemonError, NoStreamError

Record = dict[str, Any]
"""A JSON object of the API. Fields are read with `.get`: an older daemon may lack some."""

SERVER_ERROR = 500
"""From this status on it is the daemon that can't, at least for now."""

CONNECT_SECONDS = 5.0
PATIENCE_SECONDS = 10.0
QUIET_SECONDS = 45.0
"""A stream that says nothing for so long is dead: the daemon says something every 15 s."""
RESTART_SECONDS = 15.0
"""How long a daemon that restarts is waited for."""
_RETRY_PAUSE_SECONDS = 0.2

START_HINT = "Start one with ./scripts/start, or name another with --env-file or --url."
UNSURE_HINT = (
    "What was asked may have been begun all the same; `atlasctl status`, or `atlasctl canary "
    "status`, shows it."
)


def mapping(value: object) -> Record:
    """Return a value of the API as an object; an empty one where it is none."""
    return value if isinstance(value, dict) else {}


def objects(value: object) -> list[Record]:
    """Return the objects of a list of the API; none where it is no list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


@dataclass(frozen=True)
class ApiResponse:
    """What the daemon said: the status, the body as it came, and what it holds."""

    status: int
    body: bytes
    data: Record

    @property
    def ok(self) -> bool:
        """Tell whether the daemon did what was asked."""
        return 200 <= self.status < 300


class DaemonClient:
    """A connection to one daemon. Raises `NoDaemonError` where nobody answers as one does."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._folder: int | None = None
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        headers = {"Accept": "application/json"}
        if self.endpoint.token is not None:
            headers["Authorization"] = f"Bearer {self.endpoint.token}"
        self._http = aiohttp.ClientSession(connector=self._connector(), headers=headers)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._http is not None:
            await self._http.close()
        if self._folder is not None:
            os.close(self._folder)
            self._folder = None

    async def get(self, path: str, *, query: Mapping[str, str] | None = None) -> ApiResponse:
        """Read from the daemon; a read that takes over 10 s counts as nobody there."""
        return await self._request("GET", path, query=query, patience=PATIENCE_SECONDS)

    async def post(
        self,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Record | None = None,
        patience: float | None = PATIENCE_SECONDS,
        key: str | None = None,
    ) -> ApiResponse:
        """Ask for a change. `patience` is in seconds; None waits for as long as it takes.

        With a `key`, under which the daemon does it only once, it is asked once more where the
        connection broke before the answer; a daemon that restarts meanwhile is waited for.
        """
        headers = {} if key is None else {"Idempotency-Key": key}
        ask = partial(
            self._request,
            "POST",
            path,
            patience=patience,
            query=query,
            body=body,
            headers=headers,
        )
        return await (ask() if key is None else self._ask_insistently(ask))

    async def put(self, path: str, *, body: Record) -> ApiResponse:
        """Ask for something to be so; within 10 s, and once more if the connection broke.

        Done twice it comes to the same, so it needs no key.
        """
        ask = partial(self._request, "PUT", path, patience=PATIENCE_SECONDS, body=body)
        return await self._ask_insistently(ask)

    async def _ask_insistently(self, ask: Callable[[], Awaitable[ApiResponse]]) -> ApiResponse:
        """Ask, and once more where the connection broke before the answer."""
        try:
            return await ask()
        except BrokenError:
            return await self._ask_again(ask)

    async def _ask_again(self, ask: Callable[[], Awaitable[ApiResponse]]) -> ApiResponse:
        """Ask once more, when there is a daemon that takes it; it may be just restarting."""
        deadline = time.monotonic() + RESTART_SECONDS
        while True:
            try:
                answer = await ask()
                if not _stops(answer) or time.monotonic() > deadline:
                    return answer
            except BrokenError:
                raise
            except NoDaemonError as error:
                if time.monotonic() > deadline:
                    error.hint = UNSURE_HINT
                    raise
            await asyncio.sleep(_RETRY_PAUSE_SECONDS)

    @asynccontextmanager
    async def stream(
        self, path: str, *, query: Mapping[str, str], last_id: str = ""
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open a stream of events, and yield its bytes as they come, up to its proper end.

        Raises `NoStreamError` where there are no events to be had, `NoDaemonError` where they
        can't be had now, the stream broke, or nothing came for 45 s.
        """
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if last_id:
            headers["Last-Event-ID"] = last_id
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_SECONDS, sock_read=QUIET_SECONDS
        )
        with self._explained("GET", QUIET_SECONDS):
            async with self._session().get(
                self.endpoint.base + path,
                params=query,
                headers=headers,
                allow_redirects=False,
                timeout=timeout,
            ) as response:
                if response.status >= SERVER_ERROR:
                    raise self._nobody(f"no events for now (HTTP {response.status})")
                if response.status != 200 or response.content_type != "text/event-stream":
                    answer = self._refusal(response, await response.read())
                    raise NoStreamError(f"{self.endpoint} tells no events.", answer)
                yield response.content.iter_any()

    def _connector(self) -> aiohttp.BaseConnector:
        if self.endpoint.socket is None:
            return aiohttp.TCPConnector()
        # A socket's address holds 107 bytes; by way of its folder's descriptor any path fits.
        try:
            self._folder = os.open(
                self.endpoint.socket.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
            )
        except OSError as error:
            raise self._unreachable(error) from error
        return aiohttp.UnixConnector(f"/proc/self/fd/{self._folder}/{self.endpoint.socket.name}")

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            raise RuntimeError("the daemon is used outside its `async with`")
        return self._http

    async def _request(
        self,
        method: str,
        path: str,
        *,
        patience: float | None,
        query: Mapping[str, str] | None = None,
        body: Record | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> ApiResponse:
        with self._explained(method, patience):
            async with self._session().request(
                method,
                self.endpoint.base + path,
                params=query,
                json=body,
                headers=headers,
                # A redirect is no answer of the daemon, and must not carry the token away.
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=patience, sock_connect=CONNECT_SECONDS),
            ) as response:
                return self._answer(response, await response.read())

    @contextmanager
    def _explained(self, method: str, patience: float | None) -> Iterator[None]:
        """Raise what goes wrong on the way as `NoDaemonError`, in words."""
        try:
            yield
        except aiohttp.ClientConnectorCertificateError as error:
            raise self._nobody(f"its certificate is not trusted: {error.certificate_error}") from (
                error
            )
        except aiohttp.ConnectionTimeoutError as error:
            raise self._nobody(f"no connection within {CONNECT_SECONDS:g} s") from error
        except TimeoutError as error:
            raise self._nobody(f"no answer within {patience:g} s", _unsure(method)) from error
        except aiohttp.ClientConnectorError as error:
            raise self._unreachable(error.os_error) from error
        except (aiohttp.ClientError, OSError) as error:
            raise BrokenError(
                f"No daemon at {self.endpoint}: the connection broke before an answer ({error}).",
                _unsure(method),
            ) from error

    def _answer(self, response: aiohttp.ClientResponse, body: bytes) -> ApiResponse:
        try:
            data = json.loads(body)
        except (ValueError, RecursionError):
            data = None
        if not isinstance(data, dict):
            kind = response.headers.get("Content-Type", "no content type")
            raise self._nobody(
                f"something else answers there (HTTP {response.status}, {kind}, not an object of "
                "the API)"
            )
        return ApiResponse(response.status, body, data)

    def _refusal(self, response: aiohttp.ClientResponse, body: bytes) -> ApiResponse | None:
        try:
            answer = self._answer(response, body)
        except NoDaemonError:
            return None
        return answer if "error" in answer.data else None

    def _unreachable(self, error: OSError) -> FailedError:
        if isinstance(error, PermissionError):
            return FailedError(
                f"You may not enter {self.endpoint}: {error.strerror}.",
                "Run as root or the daemon's own user, or use --url with --token-file.",
            )
        # asyncio puts its own words, with the address, into `strerror`; a resolver's errno is none.
        if error.errno is not None and error.errno > 0:
            return self._nobody(os.strerror(error.errno))
        return self._nobody(str(error.strerror or error))

    def _nobody(self, why: str, hint: str = START_HINT) -> NoDaemonError:
        return NoDaemonError(f"No daemon at {self.endpoint}: {why}.", hint)


def _stops(answer: ApiResponse) -> bool:
    """Tell whether the daemon is on its way out, and can't tell what came of an earlier request."""
    error = answer.data.get("error")
    return not answer.ok and isinstance(error, dict) and error.get("code") == "stopping"


def _unsure(method: str) -> str:
    """Return the hint for a request that got through, but whose answer did not."""
    return START_HINT if method == "GET" else UNSURE_HINT
