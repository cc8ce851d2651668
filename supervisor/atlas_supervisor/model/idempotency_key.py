"""The `Idempotency-Key` of a request: asked for again under the same key, nothing is done twice."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class IdempotencyKey:
    """A key, and what was asked for under it."""

    value: str
    fingerprint: str
    """Stands for the request; another request under the same key is refused."""
    repeated: bool = False
    """Set by the daemon once it finds that this was done before: the answer is of that."""
