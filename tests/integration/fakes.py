"""Servers that want a PROXY protocol header or answer nonsense, and paths to servers that break."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

_NGINX = """\
daemon off; pid nginx-$1.pid; error_log stderr; worker_processes 1; user root;
events {}
http {
    access_log off;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    server {
        listen 127.0.0.1:$1 proxy_protocol;
        location / {
            add_header Content-Type text/plain;
            return 200 '"\\$proxy_protocol_addr:\\$proxy_protocol_port"';
        }
    }
}
"""
_HAPROXY = """\
defaults
    mode http
    timeout client 5s
frontend app
    bind 127.0.0.1:$1 accept-proxy
    http-request return status 200 content-type text/plain lf-string \\"%[src]:%[src_port]\\"
"""
COMMANDS = {
    "nginx": (_NGINX, "nginx -p . -e stderr -c conf-$1"),
    "haproxy": (_HAPROXY, "haproxy -db -f conf-$1"),
}

SILENCE_SECONDS = 0.1
"""So long a stream may say nothing before it is ended, as its protocol ends it."""

_LAST_CHUNK = b"0\r\n\r\n"


@asynccontextmanager
async def ending_streams(port: int) -> AsyncIterator[int]:
    """Pass bytes on to the port of a daemon; yield the port to go to instead.

    Nothing else is changed, so `Host` must be one that the daemon takes with any port.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, to_daemon = await asyncio.open_connection("127.0.0.1", port)
        upwards = asyncio.create_task(_copy(reader, to_daemon))
        try:
            await _copy_answers(there, writer)
        finally:
            upwards.cancel()
            await asyncio.wait([upwards])
            for each in (to_daemon, writer):
                each.close()

    tasks: set[asyncio.Task[None]] = set()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(begin, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


async def _copy_answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy until the daemon closes, or a stream (its only answers in chunks) has gone silent."""
    streaming = False
    with suppress(ConnectionError):
        while True:
            try:
                async with asyncio.timeout(SILENCE_SECONDS if streaming else None):
                    data = await reader.read(65536)
            except TimeoutError:
                writer.write(_LAST_CHUNK)
                await writer.drain()
                return
            if not data:
                return
            head = data.partition(b"\r\n\r\n")[0]
            streaming |= head.startswith(b"HTTP/1.1 ") and b"Transfer-Encoding: chunked" in head
            writer.write(data)
            await writer.drain()


def write_server(folder: Path, name: str) -> str:
    """Write a script that starts the server, and return the worker command that runs it."""
    config, command = COMMANDS[name]
    script = folder / f"{name}.sh"
    script.write_text(f"cat >conf-$1 <<END\n{config}END\nexec {command}\n")
    return f"sh {script} {{port}}"


class Gate:
    """A port before another one. What passes through it can be cut off, or held up in silence."""

    def __init__(self, port: int, behind: int) -> None:
        self.port = port
        self.behind = behind
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.WriteTransport] = set()
        self._last_request: dict[asyncio.WriteTransport, bytes] = {}
        self._held: set[asyncio.WriteTransport] = set()

    async def __aenter__(self) -> Gate:
        """Let everything pass."""
        await self.mend()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the port and every connection."""
        await self.cut()

    async def mend(self) -> None:
        """Accept connections again."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def cut(self) -> None:
        """Refuse connections, and end those that there are."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for transport in self._open:
            transport.abort()
        await asyncio.sleep(0)

    def hold(self, path: bytes) -> None:
        """Pass on no more of the answers to this path that are in progress; all else goes on."""
        self._held |= {each for each, last in self._last_request.items() if path in last}

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, onwards = await asyncio.open_connection("127.0.0.1", self.behind)
        self._open |= {writer.transport, onwards.transport}
        try:
            await asyncio.gather(
                self._pass(reader, onwards, answers=writer.transport), self._pass(there, writer)
            )
        finally:
            for each in (onwards, writer):
                each.transport.abort()
            self._open -= {writer.transport, onwards.transport}
            self._last_request.pop(writer.transport, None)

    async def _pass(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        answers: asyncio.WriteTransport | None = None,
    ) -> None:
        with suppress(OSError):
            while content := await reader.read(1 << 16):
                if answers is not None and content.startswith(b"POST "):
                    self._last_request[answers] = content.split(b"\r\n")[0]
                if writer.transport not in self._held:
                    writer.write(content)
                    await writer.drain()
        writer.transport.abort()


@asynccontextmanager
async def answering(port: int, answer: bytes, *, endless: bool = False) -> AsyncIterator[str]:
    """Answer every request with these bytes, `endless` without an end; yield the server's URL."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
            while endless:
                writer.write(answer[-65536:])
                await writer.drain()
        writer.transport.abort() if endless else writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.close()
