"""The goodbyes of WebSockets and server-sent events, with real processes and real clients."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from atlas_worker.aiohttp import run_app
from atlas_worker.aiohttp_streams import WebSocket
from tests.unit.worker.support import Client, Worker, end, launch, listening_socket, port_of
from tests.unit.worker.support import running_worker as running

SHORT = {"ATLAS_DRAIN_TIMEOUT_SECONDS": "2", "ATLAS_IDLE_GRACE_SECONDS": "0.3"}
LONG = {"ATLAS_DRAIN_TIMEOUT_SECONDS": "50", "ATLAS_IDLE_GRACE_SECONDS": "0.3"}

# A handler that only sends, one that works on each message, and one that writes half an event.
APP = """
import asyncio
from aiohttp import web
from atlas_worker.aiohttp import run_app
from atlas_worker.aiohttp_streams import WebSocket

async def ticks(request):
    ws = web.WebSocketResponse()
    await ws.prepare(request)
    while not ws.closed:
        await ws.send_str("tick")
        await asyncio.sleep(0.01)
    return ws

async def work(request):
    ws = web.WebSocketResponse()
    await ws.prepare(request)
    async for message in ws:
        await ws.send_str("started")
        await asyncio.sleep(0.5)
        await ws.send_str("done")
    print("ended normally", flush=True)
    return ws

async def halves(request):
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    if "compress" in request.query:
        response.enable_compression(web.ContentCoding.gzip)
    await response.prepare(request)
    await response.write(b"data: one\\n")
    await asyncio.sleep(float(request.query.get("pause", "0")))
    await response.write(b"data: two\\n\\n")
    await asyncio.sleep(3600)
    return response

async def flood(request):
    ws = web.WebSocketResponse()
    await ws.prepare(request)
    while True:
        await stuck(ws.send_bytes(b"x" * 65536))

async def events(request):
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    while True:
        await stuck(response.write(b"data: " + b"x" * 65536 + b"\\n\\n"))

async def stuck(sending):
    noted = asyncio.get_running_loop().call_later(0.2, lambda: print("stuck", flush=True))
    await sending
    noted.cancel()

async def make():
    app = web.Application()
    app.add_routes([web.get("/ticks", ticks), web.get("/work", work),
                    web.get("/flood", flood), web.get("/events", events),
                    web.get("/halves", halves), web.post("/halves", halves)])
    return app

run_app(make(), print=None)
"""


@asynccontextmanager
async def own_app(tmp_path: Path, **environ: str) -> AsyncIterator[Worker]:
    """Run `APP`; no state file names its port, so no other instance is active."""
    with listening_socket() as public, listening_socket() as private:
        process = await launch(
            ["-c", APP], [public, private], cwd=tmp_path,
            environ={"LISTEN_FDS": "2", "LISTEN_FDNAMES": "public:private",
                     "PYTHONPATH": str(Path(__file__).parents[3] / "worker"), **environ},
        )  # fmt: skip
        try:
            yield Worker(process, public, private, tmp_path)
        finally:
            await end(process)


async def close_code(websocket: ClientConnection) -> int | None:
    """Read until the server closes; returns the code of its close frame."""

    async def read_on() -> None:
        while True:
            await asyncio.wait_for(websocket.recv(), 20)

    with pytest.raises(ConnectionClosed) as closed:
        await read_on()
    assert closed.value.sent is not None  # the closing handshake was completed
    return None if closed.value.rcvd is None else closed.value.rcvd.code


async def chunks_until_end(client: Client) -> bytes:
    """Read a chunked body up to its terminating chunk, which must be there."""
    body = b""
    while True:
        size = int((await asyncio.wait_for(client.reader.readuntil(b"\r\n"), 20)).strip(), 16)
        body += await client.reader.readexactly(size)
        assert await client.reader.readexactly(2) == b"\r\n"
        if size == 0:
            return body


@pytest.mark.parametrize(("retired", "code"), [(True, 1012), (False, 1001)])
async def test_websockets_are_closed_with_the_code_of_the_reason(
    tmp_path: Path, retired: bool, code: int
) -> None:
    async with running(tmp_path, environ=SHORT) as worker, AsyncExitStack() as stack:
        url = f"ws://127.0.0.1:{worker.port}/ws"
        sockets = [await stack.enter_async_context(connect(url)) for _ in range(5)]
        for websocket in sockets:
            await websocket.send("hello")
            answer = json.loads(await websocket.recv())
            assert (answer["message"], answer["version"]) == ("hello", "1.2.3")
        worker.retire() if retired else worker.terminate()
        assert [await close_code(websocket) for websocket in sockets] == [code] * 5
        assert not retired or worker.process.returncode is None
        worker.terminate()
        assert await worker.exit_code() == 0


async def test_a_busy_websocket_gets_its_close_frame(tmp_path: Path) -> None:
    async with running(tmp_path, environ=SHORT) as worker, AsyncExitStack() as stack:
        url = f"ws://127.0.0.1:{worker.port}/ws"
        sockets = [await stack.enter_async_context(connect(url)) for _ in range(8)]

        async def chat(websocket: ClientConnection) -> int | None:
            try:
                while True:
                    await websocket.send("x" * 1000)
                    await websocket.recv()
            except ConnectionClosed as closed:
                return None if closed.rcvd is None else closed.rcvd.code

        chats = [asyncio.create_task(chat(websocket)) for websocket in sockets]
        worker.retire()
        # Each answers the close frame at once, and none waits for a time limit.
        assert await asyncio.wait_for(asyncio.gather(*chats), 8) == [1012] * 8


async def test_a_second_sigterm_closes_all_streams_and_cuts_no_request(tmp_path: Path) -> None:
    async with (
        running(tmp_path, environ=LONG) as worker,
        Client.to(worker.port) as slow,
        AsyncExitStack() as stack,
    ):
        url = f"ws://127.0.0.1:{worker.port}/ws"
        sockets = [await stack.enter_async_context(connect(url)) for _ in range(10)]
        slow.send("/slow?seconds=1.5")
        worker.terminate()
        await worker.shed()
        worker.terminate()
        codes = await asyncio.wait_for(asyncio.gather(*map(close_code, sockets)), 10)
        assert codes == [1001] * 10
        assert (await slow.answer()).status == 200
        assert await worker.exit_code() == 0


async def test_an_event_stream_ends_as_a_complete_response_and_its_connection_continues(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, environ=LONG) as worker, Client.to(worker.port) as client:
        client.send("/events?interval=0.02", headers={"Last-Event-ID": "41"})
        head = await client.reader.readuntil(b"\r\n\r\n")
        assert b"text/event-stream" in head
        worker.retire()
        body = await chunks_until_end(client)
        assert body.endswith(b"\n\n")
        ids = [int(line[4:]) for line in body.decode().splitlines() if line.startswith("id: ")]
        assert ids == list(range(42, 42 + len(ids)))
        # The connection was not announced to close: a request on it is still answered.
        answer = await client.get()
        assert answer.status == 200
        assert answer.closes


async def test_the_rest_of_an_event_is_waited_for_a_short_time(
    tmp_path: Path,
) -> None:
    queries = ["?pause=0.4", "?pause=0", "?compress=1", "?pause=3600"]
    async with own_app(tmp_path, **SHORT) as worker, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(Client.to(worker.port)) for _ in queries]
        for client, query in zip(clients, queries, strict=True):
            client.send("/halves" + query)
            await client.reader.readuntil(b"\r\n\r\n")
        worker.terminate()
        bodies = [await chunks_until_end(client) for client in clients]
        whole = b"data: one\ndata: two\n\n"
        assert bodies[:2] == [whole, whole]
        assert gzip.decompress(bodies[2]) == whole
        assert bodies[3] == b"data: one\n"
        assert await worker.exit_code() == 0


async def test_requests_that_are_not_streams_end_by_themselves(tmp_path: Path) -> None:
    async with own_app(tmp_path, **SHORT) as worker, Client.to(worker.port) as client:
        client.send("/halves?pause=0.1", method="POST")
        await client.reader.readuntil(b"\r\n\r\n")
        async with connect(f"ws://127.0.0.1:{worker.port}/ticks") as websocket:
            await websocket.recv()
            worker.terminate()
            assert await close_code(websocket) == 1001
        # Not ended by the kit but cut at the hard deadline: the client sees no end.
        with pytest.raises(asyncio.IncompleteReadError):
            await chunks_until_end(client)
        assert await worker.exit_code() == 0


async def test_a_received_message_is_answered_before_the_close(tmp_path: Path) -> None:
    async with own_app(tmp_path, **LONG) as worker:
        async with connect(f"ws://127.0.0.1:{worker.port}/work") as websocket:
            await websocket.send("job")
            assert await websocket.recv() == "started"
            worker.terminate()
            assert await websocket.recv() == "done"
            assert await close_code(websocket) == 1001
        assert worker.process.stdout is not None
        assert await worker.process.stdout.readline() == b"ended normally\n"
        assert await worker.exit_code() == 0


async def test_a_message_that_is_still_in_the_kernel_is_answered_before_the_close() -> None:
    streams: list[WebSocket] = []

    async def echo(request: web.Request) -> web.WebSocketResponse:
        response = web.WebSocketResponse()
        await response.prepare(request)
        streams.append(WebSocket(response, lambda: 10.0))
        async for message in response:
            await response.send_str(message.data)
        await streams[0].finished()
        return response

    app = web.Application()
    app.add_routes([web.get("/", echo)])
    runner = web.AppRunner(app)
    await runner.setup()
    with listening_socket() as listening:
        await web.SockSite(runner, listening).start()
        try:
            async with connect(f"ws://127.0.0.1:{port_of(listening)}/") as websocket:
                await websocket.send("first")
                assert await websocket.recv() == "first"
                await websocket.send("second")  # written at once, and the loop has not turned yet
                streams[0].begin_close(replaced=True)
                assert await websocket.recv() == "second"
                assert await close_code(websocket) == 1012
        finally:
            await runner.cleanup()


async def test_a_client_that_never_reads_is_cut_at_the_deadline_and_reported(
    tmp_path: Path,
) -> None:
    loop = asyncio.get_running_loop()
    address = f"@atlas-test-{os.getpid()}-{id(tmp_path)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind("\0" + address[1:])
        notify.setblocking(False)
        # Less than the second for which an unfinished event is waited for: both are still streams.
        environ = {"ATLAS_DRAIN_TIMEOUT_SECONDS": "0.9", "NOTIFY_SOCKET": address}
        async with (
            own_app(tmp_path, **environ) as worker,
            Client.to(worker.port) as client,
            Client.to(worker.port) as events,
            Client.to(worker.port) as other,
        ):
            client.writer.write(
                b"GET /flood HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
            )
            await client.reader.readuntil(b"\r\n\r\n")
            events.send("/events")
            assert worker.process.stdout is not None
            for _ in range(2):  # both have their buffers full
                assert await worker.process.stdout.readline() == b"stuck\n"
            worker.terminate()
            assert (await other.get("/none")).status == 404
            assert await worker.exit_code(seconds=5) == 0
            said: list[str] = []
            while not said or not said[-1].startswith("X_ATLAS_CUT="):
                said.append((await asyncio.wait_for(loop.sock_recv(notify, 4096), 5)).decode())
        assert said[:2] == ["READY=1\nX_ATLAS_KIT=1", "STOPPING=1"]
        assert "X_ATLAS_ACCEPTING=0" in said
        left = json.loads(next(s for s in said if s.startswith("X_ATLAS_LEFT=")).partition("=")[2])
        cut = json.loads(said[-1].partition("=")[2])
        # The other client may be counted among the rest, as a request or as idle.
        assert (left["websockets"], left["event_streams"]) == (1, 1)
        assert (cut["requests"], cut["websockets"], cut["event_streams"]) == (0, 1, 1)


async def test_close_frames_are_sent_even_after_a_second_sigint(tmp_path: Path) -> None:
    async with running(tmp_path, environ=LONG) as worker:
        async with (
            connect(f"ws://127.0.0.1:{worker.port}/ws") as first,
            connect(f"ws://127.0.0.1:{worker.port}/ws") as second,
        ):
            worker.process.send_signal(signal.SIGINT)
            await worker.shed()
            worker.process.send_signal(signal.SIGINT)
            assert [await close_code(first), await close_code(second)] == [1001, 1001]
        assert await worker.exit_code() == 0


async def test_a_bad_stream_request_gets_a_structured_error(tmp_path: Path) -> None:
    requests = [("/events?interval=0", {}), ("/events", {"Last-Event-ID": "x"}), ("/ws", {})]
    async with running(tmp_path) as worker, Client.to(worker.port) as client:
        for path, headers in requests:
            answer = await client.get(path, headers=headers)
            assert answer.status == 400
            assert set(answer.json()["error"]) >= {"code", "message", "hint"}


@pytest.mark.parametrize(
    ("argument", "hint"), [("ssl_context", "TLS"), ("path", "fd="), ("nonsense", "no argument")]
)
def test_unsupported_arguments_of_run_app_are_refused(argument: str, hint: str) -> None:
    arguments: dict[str, Any] = {argument: object()}
    with pytest.raises(TypeError, match=hint):
        run_app(web.Application(), **arguments)
