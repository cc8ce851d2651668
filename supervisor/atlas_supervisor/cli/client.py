"""Sends requests to the daemon and returns its answers, or raises an explained failure."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp

from atlas_supervisor.cli.endpoint import Endpoint
from atlas_supervisor.cli.errors import BrokenError, FailedError, NoDaemonError, NoStreamError
from atlas_supervisor.cli.words import Record
from atlas_supervisor.output import see_through

SERVER_ERROR = 500
"""From this status on the daemon itself fails, at least for now."""

CONNECT_SECONDS = 5.0
MIB = 1024 * 1024
MOST_BYTES = 32 * MIB
PATIENCE_SECONDS = 10.0
QUIET_SECONDS = 45.0
"""A stream that is silent for so long is dead: the daemon sends something every 15 s."""
RESTART_SECONDS = 15.0
"""How long to wait for a daemon that restarts."""
_RETRY_PAUSE_SECONDS = 0.2
_LOCK_FILE = "supervisor.lock"

START_HINT = (
    "Start it with `atlas-supervisor` (in a checkout: ./scripts/start; of a service, `systemctl "
    "status` says why it is down), or name another one with --env-file or --url."
)
UNSURE_HINT = (
    "The request may have been executed all the same; check with `atlasctl status` or `atlasctl "
    "canary status`."
)
PLAIN_HINT = "If TLS is off there (no CONTROL_TLS_CERT), use http:// in --url."
TLS_HINT = "If it has TLS (CONTROL_TLS_CERT), use https:// in --url."
LONG_HINT = "Another program may answer there: check --url, or STATE_DIR of --env-file."
CERTIFICATE_HINT = (
    "If it is the daemon's own (CONTROL_TLS_CERT), name a copy of that file with --cacert or "
    "ATLAS_CACERT."
)
NAMES_HINT = "Use a name in --url that the certificate is made for."


@dataclass(frozen=True)
class ApiResponse:
    """An answer: its status, its raw body, and the body's object."""

    status: int
    body: bytes
    data: Record

    @property
    def ok(self) -> bool:
        """Whether the daemon did what was asked."""
        return 200 <= self.status < 300


class DaemonClient:
    """A connection to one daemon. Raises `NoDaemonError` if no daemon answers."""

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
        """Read from the daemon; after 10 s without an answer it counts as absent."""
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
        """Request a change. `patience` is in seconds; None waits without a limit.

        With a `key`, for which the daemon executes the request only once, the request is repeated
        if the connection broke before the answer; a daemon that restarts is waited for.
        """
        see_through()
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
        return await (ask() if key is None else self._request_with_retry(ask))

    async def put(self, path: str, *, body: Record) -> ApiResponse:
        """Request a state; within 10 s, and once more if the connection broke.

        It is idempotent, so it needs no key.
        """
        see_through()
        ask = partial(self._request, "PUT", path, patience=PATIENCE_SECONDS, body=body)
        return await self._request_with_retry(ask)

    async def _request_with_retry(self, ask: Callable[[], Awaitable[ApiResponse]]) -> ApiResponse:
        """Send the request, and once more if the connection broke before the answer."""
        try:
            return await ask()
        except BrokenError:
            return await self._request_again(ask)

    async def _request_again(self, ask: Callable[[], Awaitable[ApiResponse]]) -> ApiResponse:
        """Send the request once more, as soon as a daemon accepts it; it may be restarting."""
        deadline = time.monotonic() + RESTART_SECONDS
        while True:
            try:
                answer = await ask()
                if not _is_stopping(answer) or time.monotonic() > deadline:
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
        """Open an event stream, and yield its bytes as they come, up to its proper end.

        Raises `NoStreamError` if there is no event stream, `NoDaemonError` if it is not available
        now, broke, or was silent for 45 s.
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
                    raise self._absent(f"no event stream for now (HTTP {response.status})")
                if response.status != 200 or response.content_type != "text/event-stream":
                    answer = self._refusal(response, await response.read())
                    raise NoStreamError(f"{self.endpoint} has no event stream.", answer)
                yield response.content.iter_any()

    def _connector(self) -> aiohttp.BaseConnector:
        if self.endpoint.socket is None:
            return aiohttp.TCPConnector(ssl=self.endpoint.tls or True)
        # A socket address has at most 107 bytes; through the folder's descriptor any path fits.
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
                # The daemon never redirects, and the token must not be sent elsewhere.
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=patience, sock_connect=CONNECT_SECONDS),
            ) as response:
                return self._answer(response, await self._body(response))

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        """Read an answer; nothing of the API is so long that this refuses it."""
        too_long = f"its answer has more than {MOST_BYTES // MIB} MiB"
        if (response.content_length or 0) > MOST_BYTES:
            raise self._absent(too_long, LONG_HINT)
        body = bytearray()
        async for part in response.content.iter_any():
            body += part
            if len(body) > MOST_BYTES:
                raise self._absent(too_long, LONG_HINT)
        return bytes(body)

    @contextmanager
    def _explained(self, method: str, patience: float | None) -> Iterator[None]:
        """Turn connection errors into `NoDaemonError` with an explanation."""
        try:
            yield
        except aiohttp.ClientConnectorCertificateError as error:
            raise self._untrusted(error.certificate_error) from error
        except aiohttp.ClientConnectorSSLError as error:
            raise self._absent("it does not speak TLS as expected", PLAIN_HINT) from error
        except aiohttp.ConnectionTimeoutError as error:
            raise self._absent(f"no connection within {CONNECT_SECONDS:g} s") from error
        except TimeoutError as error:
            raise self._absent(f"no answer within {patience:g} s", _unsure(method)) from error
        except aiohttp.ClientConnectorError as error:
            raise self._unreachable(error.os_error) from error
        except (aiohttp.ClientError, OSError) as error:
            is_plain = self.endpoint.socket is None and self.endpoint.base.startswith("http:")
            raise BrokenError(
                f"No daemon at {self.endpoint}: the connection broke before an answer ({error}).",
                f"{_unsure(method)} {TLS_HINT}" if is_plain else _unsure(method),
            ) from error

    def _answer(self, response: aiohttp.ClientResponse, body: bytes) -> ApiResponse:
        try:
            data = json.loads(body)
        except (ValueError, RecursionError):
            data = None
        if not isinstance(data, dict):
            kind = response.headers.get("Content-Type", "no content type")
            raise self._absent(
                f"something else answers there (HTTP {response.status}, {kind}, not an answer of "
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
                f"{self.endpoint} can't be opened: {error.strerror}.",
                "Run as root or the daemon's own user, or use --url with --token-file.",
            )
        path = self.endpoint.socket
        if path is not None and not path.exists() and (pid := _running_in(path.parent)):
            return NoDaemonError(
                f"The daemon runs (pid {pid}), but its socket {path} is not there.",
                f"Unless it has just started: `kill -HUP {pid}` reloads it, which makes the socket "
                "anew.",
            )
        # asyncio writes its own text into `strerror`; a resolver's errno is not an errno.
        if error.errno is not None and error.errno > 0:
            return self._absent(os.strerror(error.errno))
        return self._absent(str(error.strerror or error))

    def _untrusted(self, error: Exception) -> FailedError:
        """Return the failure for a certificate that is not trusted: a daemon may well be there."""
        why, hint = str(error), CERTIFICATE_HINT
        if isinstance(error, ssl.SSLCertVerificationError):
            why = error.verify_message.rstrip(".")
            hint = NAMES_HINT if "mismatch" in why.lower() else hint
        return FailedError(f"The certificate of {self.endpoint} is not trusted: {why}.", hint)

    def _absent(self, why: str, hint: str = START_HINT) -> NoDaemonError:
        return NoDaemonError(f"No daemon at {self.endpoint}: {why}.", hint)


def _running_in(state_dir: Path) -> int | None:
    """Return the daemon that has the folder's lock open, if this user may know."""
    lock = state_dir / _LOCK_FILE
    with suppress(OSError, ValueError):
        pid, held = int(lock.read_text()), lock.stat()
        for each in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):  # closed meanwhile
                if os.path.samestat(each.stat(), held):
                    return pid
    return None


def _is_stopping(answer: ApiResponse) -> bool:
    """Return whether the daemon is stopping and can't say what became of an earlier request."""
    error = answer.data.get("error")
    return not answer.ok and isinstance(error, dict) and error.get("code") == "stopping"


def _unsure(method: str) -> str:
    """Return the hint for a request that was sent, but not answered."""
    return START_HINT if method == "GET" else UNSURE_HINT
