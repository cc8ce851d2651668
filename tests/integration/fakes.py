"""A way to the daemon on which answers without an end have one, for clients that wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

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
