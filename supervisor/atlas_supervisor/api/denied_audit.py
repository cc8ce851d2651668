"""Audits changes that were asked for by callers who may not, at a bounded rate.

Anybody who reaches the port can ask, as often as they like: what is written of it must not fill
the disk. What is left out is counted, and the next entry tells how many that were.
"""

from __future__ import annotations

import asyncio

from atlas_supervisor.api.ports import AuditPort
from atlas_supervisor.errors import RefusedError
from atlas_supervisor.model.actor import Actor

AT_ONCE = 10
"""So many are written one by one; then one in `SECONDS_EACH`."""

SECONDS_EACH = 60.0


class DeniedRequests:
    """Writes them down, as long as there are not too many."""

    STATUSES = frozenset({401, 403})

    def __init__(self, audit: AuditPort) -> None:
        self._audit = audit
        self._may = float(AT_ONCE)
        self._since = asyncio.get_running_loop().time()
        self._left_out = 0

    def tell(self, actor: Actor, method: str, path: str, refused: RefusedError) -> None:
        """Take note of one; `path` is the route's own, not what the caller made of it."""
        now = asyncio.get_running_loop().time()
        self._may = min(AT_ONCE, self._may + (now - self._since) / SECONDS_EACH)
        self._since = now
        if self._may < 1:
            self._left_out += 1
            return
        self._may -= 1
        left_out, self._left_out = self._left_out, 0
        self._audit.enqueue(
            actor, "request", "refused",
            method=method, path=path, code=refused.code, left_out=left_out,
        )  # fmt: skip
