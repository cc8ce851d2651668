"""The audit trail: who did what, when, to what effect. It is kept whole."""

from __future__ import annotations

import json
from typing import Any

from supervisor.clock import now
from supervisor.model.actor import Actor
from supervisor.store.statements import Statements


class Audit(Statements):
    """What is audited."""

    async def audit(
        self, actor: Actor, action: str, outcome: str, *, subject: str | None = None, **detail: Any
    ) -> None:
        """Write an entry of the audit trail."""
        entry = {"ts": now().isoformat(), "actor": actor.name, "origin": actor.origin}
        entry |= {"action": action, "outcome": outcome, "detail": json.dumps(detail)}
        await self._write(("add_audit", {**entry, "subject": subject}))
