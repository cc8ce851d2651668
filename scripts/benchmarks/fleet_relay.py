"""Passes connections on to etcd until standard input ends; `./scripts/bench fleet` starts it.

A process of its own, because it can be stopped: then connections stay open and nothing passes.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from urllib.parse import urlsplit

_BACKLOG = 1024


async def main(port: int, behind: int) -> None:
    async def passed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while content := await reader.read(1 << 16):
                writer.write(content)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, onwards = await asyncio.open_connection("127.0.0.1", behind)
        except OSError:
            writer.close()
            return
        await asyncio.gather(passed(reader, onwards), passed(there, writer))

    async with await asyncio.start_server(serve, "127.0.0.1", port, backlog=_BACKLOG):
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), urlsplit(sys.argv[2]).port or 0))
