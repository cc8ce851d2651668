"""Who makes a change; recorded with every change in the audit trail."""

from __future__ import annotations

from pydantic import BaseModel


class Actor(BaseModel, frozen=True):
    """An admitted caller, and the way it came in."""

    name: str
    """`uid:0`, `token`, or `supervisor` for the daemon's own decisions."""
    origin: str
    """`unix`, the peer's address, or `internal`."""


SUPERVISOR = Actor(name="supervisor", origin="internal")
