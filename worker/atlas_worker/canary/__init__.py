"""Feature canaries for applications: decides which implementation serves, reports the outcome.

`docs/canary-in-code.md` is the guide. Applications import these names, and this module as `canary`,
from `atlas_worker`. `calls` and `routing` are the API, `policy` the shares from the state file,
`ring` the writer of events, `process` the state of this process and the thread that refreshes it.
"""

from __future__ import annotations

from atlas_worker.canary.calls import (
    Call,
    call,
    is_canary_enabled,
    record_canary_call,
    use_canary_version,
)
from atlas_worker.canary.routing import route

__all__ = [
    "Call",
    "call",
    "is_canary_enabled",
    "record_canary_call",
    "route",
    "use_canary_version",
]
