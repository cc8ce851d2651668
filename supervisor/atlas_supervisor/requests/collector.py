"""Collects the counts of users' requests once a second, and keeps them by instance and second.

For the evidence of ramps and guards, with an instance by its name (`WorkerProcess.name`):

- `totals(instance)`: all counts since its first request, over its processes and restarts of the
  daemon. None for one that does not count: it has no kit, or has not served yet.
- `seconds(instance, since)`: what began in each second from `since` on (`time.monotonic()`), the
  last few minutes at most; the last ones are not sealed yet.
- `record(version, since, until)`: what a version has counted, whole minutes of Unix time.
"""

from __future__ import annotations

from typing import Protocol

from atlas_supervisor.model.requests import RequestSecond, RequestTotals


class RequestEvidence(Protocol):
    """What ramps and guards ask for; `RequestCollector` answers it."""

    def totals(self, instance: str) -> RequestTotals | None:
        """Return a copy of everything that the instance has counted; None if it does not count."""

    def seconds(self, instance: str, since: int) -> list[RequestSecond]:
        """Return the seconds from `since` on in which requests have begun, oldest first."""

    async def record(self, version: str, since: float, until: float) -> RequestTotals:
        """Return what a version has counted in the minutes that begin in `[since, until)`.

        Times are Unix time. Raises StoreError.
        """
