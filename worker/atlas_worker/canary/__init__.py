"""Feature canaries: decide which implementation serves a call, and tell how it went.

`docs/canary-in-code.md` is for an application's author. Applications import these names, and this
module as `canary`, from `atlas_worker`.
"""

from __future__ import annotations

from atlas_worker.canary.calls import (
    Call,
    call,
    is_canary_enabled,
    record_canary_call,
    route,
    use_canary_version,
)

__all__ = [
    "Call",
    "call",
    "is_canary_enabled",
    "record_canary_call",
    "route",
    "use_canary_version",
]
