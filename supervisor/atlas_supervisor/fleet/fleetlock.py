"""Speaks FleetLock: agents that update an operating system ask for a slot before they reboot.

Zincati and others send `POST /v1/pre-reboot` before a reboot, and `/v1/steady-state` once the host
is back. In the protocol a server serves all hosts; here each host asks its own supervisor, whose
slot comes from the fleet's semaphore (`reboots`).

The protocol knows no credentials, so it is spoken on loopback alone. The header that it requires,
which no page of another site can send, and the names of loopback keep a browser on this machine
out. An answer other than 200 means no, and an agent asks again after some minutes.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated

from aiohttp import StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import RawRequestMessage
from pydantic import BaseModel, StringConstraints, ValidationError

from atlas_supervisor.fleet.engine import EngineError
from atlas_supervisor.fleet.listening import accepting
from atlas_supervisor.fleet.reboots import Reboots, SlotRefusedError

_MOST_CONNECTIONS = 16
_MOST_BYTES = 4096
"""Of a request's body."""
_SECONDS = 30.0
"""For a connection, which has one request: its sending, the slot, and the drain."""
_NAMES = {"127.0.0.1", "localhost"}


class _Client(BaseModel):
    id: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    group: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9.-]+$", max_length=256)]


class _Body(BaseModel):
    client_params: _Client


class _FaultError(Exception):
    """An answer other than 200. Few kinds: agents use them as a metric's label."""

    def __init__(self, status: int, kind: str, value: str) -> None:
        super().__init__(value)
        self.status = status
        self.kind = kind


class FleetLock:
    """The server on one listening socket."""

    def __init__(self, listener: socket.socket, reboots: Reboots) -> None:
        self._listener = listener
        self._operations: dict[str, Callable[[str], Awaitable[None]]] = {
            "/v1/pre-reboot": reboots.take,
            "/v1/steady-state": reboots.give_back,
        }
        self._connecting: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve until cancelled."""
        server = web.Server(
            self._handle, request_factory=_bounded, auto_decompress=False, access_log=None
        )
        async with accepting(self._listener, partial(self._accept, server)):
            try:
                await asyncio.Event().wait()
            finally:
                await server.shutdown(0)

    def _accept(self, server: web.Server, client: socket.socket) -> None:
        if len(server.connections) + len(self._connecting) >= _MOST_CONNECTIONS:
            client.close()
            return
        task = asyncio.get_running_loop().create_task(_connect(server, client))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            await self._perform(request)
        except _FaultError as fault:
            answer = _answer(fault.status, kind=fault.kind, value=str(fault))
        except SlotRefusedError as refused:
            answer = _answer(409, kind=refused.kind, value=str(refused))
        except EngineError as error:
            answer = _answer(503, kind="engine_failed", value=f"no answer from etcd: {error}")
        else:
            answer = _answer(200)
        answer.force_close()
        return answer

    async def _perform(self, request: web.BaseRequest) -> None:
        operation = self._operations.get(request.path)
        if operation is None:
            raise _FaultError(404, "unknown_path", f"{' and '.join(self._operations)} are served")
        if request.method != "POST":
            raise _FaultError(405, "unknown_method", "the method is POST")
        if (request.url.host or "") not in _NAMES:
            raise _FaultError(421, "unknown_host", f"ask as {' or '.join(sorted(_NAMES))}")
        if request.headers.get("fleet-lock-protocol") != "true":
            raise _FaultError(400, "bad_header", "the header fleet-lock-protocol must be: true")
        await operation(await _client_id(request))


async def _client_id(request: web.BaseRequest) -> str:
    try:
        return _Body.model_validate_json(await request.read()).client_params.id
    except web.HTTPRequestEntityTooLarge:
        raise _FaultError(413, "bad_body", f"the body has over {_MOST_BYTES} bytes") from None
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"])) or "body"
        raise _FaultError(400, "bad_body", f"{where}: {fault['msg']}") from None


def _answer(status: int, **body: str) -> web.Response:
    return web.Response(status=status, text=json.dumps(body), content_type="application/json")


def _bounded(
    message: RawRequestMessage,
    payload: StreamReader,
    protocol: web.RequestHandler,
    writer: AbstractStreamWriter,
    task: asyncio.Task[None],
) -> web.BaseRequest:
    """Return a request whose body is bounded."""
    loop = asyncio.get_running_loop()
    return web.BaseRequest(
        message, payload, protocol, writer, task, loop, client_max_size=_MOST_BYTES
    )


async def _connect(server: web.Server, client: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    transport, _protocol = await loop.connect_accepted_socket(server, client)
    loop.call_later(_SECONDS, transport.abort)
