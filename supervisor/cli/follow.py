"""Watching a deploy from outside, so that the verbs need not know how its news get here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator

from supervisor.cli.client import Record
from supervisor.cli.errors import NoDaemonError
from supervisor.cli.records import settled
from supervisor.cli.session import Session

POLL_SECONDS = 0.1
RESTART_SECONDS = (
    15.0  # a daemon that restarts brings the deploy to an end that the record explains
)


async def follow(session: Session, deploy_id: str) -> AsyncGenerator[Record, None]:
    """Yield the deploy's record whenever it has changed, the last time once it has settled.

    Raises `NoDaemonError` when the daemon has been away for 15 s, `FailedError` when it no
    longer knows the deploy.
    """
    seen: Record | None = None
    answered = time.monotonic()
    while True:
        try:
            answer = await session.daemon.get(f"/deploy/{deploy_id}")
        except NoDaemonError:
            if time.monotonic() - answered > RESTART_SECONDS:
                raise
        else:
            answered = time.monotonic()
            record = session.expect(answer, "deploy_id", "steps")
            if record != seen:
                seen = record
                yield record
            if settled(record):
                return
        await asyncio.sleep(POLL_SECONDS)
