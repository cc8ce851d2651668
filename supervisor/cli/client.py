"""The daemon as the client sees it: requests in, answers or an understandable failure out."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import aiohttp

from supervisor.cli.endpoint import Endpoint
from supervisor.cli.errors import FailedError, NoDaemonError

Record = dict[str, Any]
"""A JSON object of the API. Fields are read with `.get`: an older daemon may lack some."""

CONNECT_SECONDS = 5.0
PATIENCE_SECONDS = 10.0

START_HINT = "Start one with ./scripts/start, or name another with --env-file or --url."
UNSURE_HINT = "What was asked may have been begun all the same; `atlasctl status` shows it."


@dataclass(frozen=True)
class Answer:
    """What the daemon said: the status, the body as it came, and what it holds."""

    status: int
    body: bytes
    data: Record

    @property
    def ok(self) -> bool:
        """Tell whether the daemon did what was asked."""
        return 200 <= self.status < 300


class Daemon:
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

    async def get(self, path: str, *, query: Mapping[str, str] | None = None) -> Answer:
        """Read from the daemon; a read that takes over 10 s counts as nobody there."""
        return await self._request("GET", path, query=query, patience=PATIENCE_SECONDS)

    async def post(
        self,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Record | None = None,
        patience: float | None = PATIENCE_SECONDS,
    ) -> Answer:
        """Ask for a change. `patience` is in seconds; None waits for as long as it takes."""
        return await self._request("POST", path, query=query, body=body, patience=patience)

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

    async def _request(
        self,
        method: str,
        path: str,
        *,
        patience: float | None,
        query: Mapping[str, str] | None = None,
        body: Record | None = None,
    ) -> Answer:
        if self._http is None:
            raise RuntimeError("the daemon is used outside its `async with`")
        try:
            async with self._http.request(
                method,
                self.endpoint.base + path,
                params=query,
                json=body,
                # A redirect is no answer of the daemon, and must not carry the token away.
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=patience, sock_connect=CONNECT_SECONDS),
            ) as response:
                return self._answer(response, await response.read())
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
            why = f"the connection broke before an answer ({error})"
            raise self._nobody(why, _unsure(method)) from error

    def _answer(self, response: aiohttp.ClientResponse, body: bytes) -> Answer:
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
        return Answer(response.status, body, data)

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


def _unsure(method: str) -> str:
    """Return the hint for a request that got through, but whose answer did not."""
    return START_HINT if method == "GET" else UNSURE_HINT
