"""A worker without the kit whose streams pause, and which cuts everything off at SIGTERM.

`pausing.py port N` binds a port, `pausing.py fd N` serves an inherited socket.
"""

from __future__ import annotations

import asyncio
import socket
import sys

PARTS = 3
PAUSE_SECONDS = 0.5


async def head_of(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while head := await head_of(reader):
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        if head.startswith(b"GET /stream "):
            for _ in range(PARTS):
                writer.write(b"4\r\npart\r\n")
                await asyncio.sleep(PAUSE_SECONDS)
        writer.write(b"4\r\nlast\r\n0\r\n\r\n")
    writer.close()


async def main(how: str, number: int) -> None:
    if how == "port":
        server = await asyncio.start_server(serve, "127.0.0.1", number)
    else:
        server = await asyncio.start_server(serve, sock=socket.socket(fileno=number))
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
