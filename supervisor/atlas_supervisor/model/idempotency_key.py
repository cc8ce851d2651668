"""The `Idempotency-Key` of a request: a repeated request is not executed twice."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class IdempotencyKey:
    """A key, and the request that it stands for."""

    value: str
    fingerprint: str
    """Digest of the request; another request under the same key is refused."""
    repeated: bool = False
    """Set by the daemon if the request was executed before: the answer is the earlier one's."""
