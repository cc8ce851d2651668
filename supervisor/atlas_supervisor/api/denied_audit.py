"""Audits denied changes at a bounded rate.

Anyone who reaches the port can send such requests without limit, so the entries must not fill the
disk. Each caller has a rate of its own, so that a flood of anonymous requests hides no other
caller's. Requests left out are counted, and an entry has their number as soon as the rate allows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from atlas_supervisor.api.ports import AuditPort
from atlas_supervisor.errors import RefusedError
from atlas_supervisor.model.actor import Actor

AT_ONCE = 10
"""Number of entries without delay; after that one per `SECONDS_EACH`."""
SECONDS_EACH = 60.0
MOST_CALLERS = 64
"""Callers with a rate of their own; further ones share one."""


class DeniedRequests:
    """Records denied changes in the audit trail, as a token bucket for each caller allows."""

    STATUSES = frozenset({401, 403})

    def __init__(self, audit: AuditPort) -> None:
        self._audit = audit
        self._buckets: dict[str, _Bucket] = {}

    def record(self, actor: Actor, method: str, path: str, refused: RefusedError) -> None:
        """Record one request; `path` is the route's, not the client's."""
        has_own = actor.name in self._buckets or len(self._buckets) < MOST_CALLERS
        bucket = self._buckets.setdefault(actor.name if has_own else "", _Bucket())
        bucket.spend(
            partial(
                self._audit.enqueue, actor, "request", "refused",
                method=method, path=path, code=refused.code,
            )
        )  # fmt: skip


class _Bucket:
    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._tokens = float(AT_ONCE)
        self._refilled = self._loop.time()
        self._left_out = 0
        self._timer: asyncio.TimerHandle | None = None

    def spend(self, write: Callable[..., object]) -> None:
        """Write an entry, or count it and write it later with the number of those before it."""
        now = self._loop.time()
        self._tokens = min(AT_ONCE, self._tokens + (now - self._refilled) / SECONDS_EACH)
        self._refilled = now
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._tokens >= 1:
            self._tokens -= 1
            left_out, self._left_out = self._left_out, 0
            write(left_out=left_out)
            return
        wait = (1 - self._tokens) * SECONDS_EACH
        self._timer = self._loop.call_later(wait, self._write_last, write)
        self._left_out += 1

    def _write_last(self, write: Callable[..., object]) -> None:
        self._left_out -= 1  # this one is written
        self._timer = None
        self.spend(write)
