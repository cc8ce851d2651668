"""Who asks for a change; it stands beside every change in the audit trail."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Actor(BaseModel):
    """Somebody who was let in, and how."""

    model_config = ConfigDict(frozen=True)

    name: str
    """`uid:0`, `token`, or `supervisor` for what the daemon decides by itself."""
    origin: str
    """`unix`, the peer's address, or `internal`."""


SUPERVISOR = Actor(name="supervisor", origin="internal")
