"""Sends an answer that goes on until its source ends, its client leaves or the daemon stops."""

from __future__ import annotations

import structlog
from aiohttp import web

from supervisor.api import answers
from supervisor.api.connection import Connection
from supervisor.api.routes import StreamReply
from supervisor.errors import AtlasError

log = structlog.get_logger()


async def send(
    request: web.Request, connection: Connection, reply: StreamReply
) -> web.StreamResponse:
    """Send what there is until there is no more, and return what was begun.

    Raises RefusedError if there are too many streams; ConnectionError once the client has left.
    """
    source = reply.source
    try:
        response = answers.stream(reply)
        if request.method != "HEAD":
            connection.open_stream(source.close)
            await response.prepare(request)
            try:
                while (part := await source.next()) is not None:
                    await connection.send(request, response, part)
            # The answer has begun, so it can't become a refusal. It ends, and the client asks
            # again: then it is told.
            except AtlasError as error:
                log.error("api.stream_ended", origin=connection.peer.address, why=str(error))
            except ConnectionError:
                raise
            except Exception as error:
                log.error("api.failed", origin=connection.peer.address, exc_info=error)
    finally:
        source.close()
    return response
