"""Follows a deploy's record as it changes.

The daemon's events only trigger a read of the record. It is read at every event and after every
connection, so no change is missed and none has to be reconstructed from events.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from atlas_supervisor.cli import client
from atlas_supervisor.cli.client import SERVER_ERROR, DaemonClient
from atlas_supervisor.cli.errors import FailedError, NoDaemonError, NoStreamError
from atlas_supervisor.cli.session import Session, refusal
from atlas_supervisor.cli.sse import MAX_BYTES, EventReader, OverlongError, ServerEvent
from atlas_supervisor.cli.words import Record, settled

POLL_SECONDS = 0.1
"""For a daemon without an event stream."""
FIRST_PAUSE_SECONDS = 0.05
PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 5.0
"""Pauses before a stream is opened again: doubling, up to the time that the daemon names."""


async def follow(
    session: Session, deploy_id: str, until: Callable[[Record], bool] = settled
) -> AsyncGenerator[Record, None]:
    """Yield the deploy's record at each change, until `until` holds for it.

    Raises `NoDaemonError` after 15 s without a daemon, `FailedError` if the daemon does not know
    the deploy any more.
    """
    seen: Record | None = None
    away_since: float | None = None
    async with aclosing(events(session.daemon, deploy_id)) as triggers:
        async for _ in triggers:
            away: FailedError | None = None
            try:
                answer = await session.daemon.get(f"/deploy/{deploy_id}")
                if answer.status >= SERVER_ERROR:  # it stops, or can't read its storage
                    away = refusal(answer)
            except NoDaemonError as error:
                away = error
            if away is not None:
                away_since = away_since or time.monotonic()
                if time.monotonic() - away_since > client.RESTART_SECONDS:
                    raise away
                continue
            away_since = None
            record = session.expect(answer, "deploy_id", "steps")
            if record != seen:
                seen = record
                yield record
            if until(record):
                return


async def events(
    daemon: DaemonClient, deploy_id: str | None = None
) -> AsyncGenerator[ServerEvent | None, None]:
    """Yield each event of a deploy, or of all, without an end; None where a read is due anyway.

    None comes after each connection, after a failed one, at each keep-alive comment, and at short
    intervals if there is no event stream. A stream that ends is resumed.
    """
    last_id = ""
    pause = FIRST_PAUSE_SECONDS
    query = {} if deploy_id is None else {"deploy_id": deploy_id}
    while True:
        reader = EventReader(last_id, max_bytes=MAX_BYTES)
        try:
            async with daemon.stream("/deploy/events", query=query, last_id=last_id) as pieces:
                yield None
                comments = 0
                async for piece in pieces:
                    for event in reader.feed(piece):
                        pause = FIRST_PAUSE_SECONDS
                        yield event
                    if reader.comments != comments:
                        comments = reader.comments
                        yield None
        except (NoStreamError, OverlongError):
            break
        except NoDaemonError:
            yield None
        last_id = reader.last_id
        await asyncio.sleep(pause)
        pause = min(2 * pause, reader.retry_seconds or PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
    while True:
        yield None
        await asyncio.sleep(POLL_SECONDS)
