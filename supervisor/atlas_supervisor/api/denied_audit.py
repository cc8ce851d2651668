"""Audits denied changes at a bounded rate.

Anyone who reaches the port can send such requests without limit, so the entries must not fill the
disk. Requests left out are counted, and the next entry has their number.
"""

from __future__ import annotations

import asyncio

from atlas_supervisor.api.ports import AuditPort
from atlas_supervisor.errors import RefusedError
from atlas_supervisor.model.actor import Actor

AT_ONCE = 10
"""Number of entries without delay; after that one per `SECONDS_EACH`."""

SECONDS_EACH = 60.0


class DeniedRequests:
    """Records denied changes in the audit trail, as a token bucket allows."""

    STATUSES = frozenset({401, 403})

    def __init__(self, audit: AuditPort) -> None:
        self._audit = audit
        self._tokens = float(AT_ONCE)
        self._refilled = asyncio.get_running_loop().time()
        self._left_out = 0

    def record(self, actor: Actor, method: str, path: str, refused: RefusedError) -> None:
        """Record one request; `path` is the route's, not the client's."""
        now = asyncio.get_running_loop().time()
        self._tokens = min(AT_ONCE, self._tokens + (now - self._refilled) / SECONDS_EACH)
        self._refilled = now
        if self._tokens < 1:
            self._left_out += 1
            return
        self._tokens -= 1
        left_out, self._left_out = self._left_out, 0
        self._audit.enqueue(
            actor, "request", "refused",
            method=method, path=path, code=refused.code, left_out=left_out,
        )  # fmt: skip
