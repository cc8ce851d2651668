"""The weight of each check, and the meaning of a score.

The score is 100 times a product with one factor for each check that warns or fails. A check that
passes or is skipped has the factor 1, so a skipped check never lowers the score; no factor is
above 1, so a failed one never raises it. Fractions are cut off: it is 100 only if all checks pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import floor, prod

from atlas_supervisor.model.health import CheckStatus, HealthStatus

DEGRADED_BELOW = 95
"""Less is `degraded`: one warning is enough, since a person should know of it."""
UNHEALTHY_BELOW = 50
"""Less is `unhealthy`, answered with 503: clients are not served as they should be.

All warnings together stay above it: warnings alone must not take a service out of rotation.
"""

_WARNING = 0.93


@dataclass(frozen=True)
class Weight:
    """The factors of one check: how much of the score is left if it warns, or fails."""

    fail: float
    warn: float = _WARNING


WEIGHTS: Mapping[str, Weight] = {
    # There is no answer, so no client is served. Unhealthy by itself.
    "port_active": Weight(fail=0.0),
    # Connections go to another version than the one that a restart would start. Unhealthy by
    # itself.
    "steering": Weight(fail=0.4),
    # A part of the application does not work. One is degraded, two are unhealthy.
    "scheduler": Weight(fail=0.6),
    "memory": Weight(fail=0.6),
    "db_integrity": Weight(fail=0.6),
    # A service of others, and the application goes on without it.
    "llm_latency": Weight(fail=0.75),
    # Clients are served; deploys can't start, or soon can't. Both together stay degraded.
    "database": Weight(fail=0.75),
    "disk_free": Weight(fail=0.7),
    # Clients are served; decisions about canaries lack some calls.
    "canaries": Weight(fail=0.9),
    # For information only.
    "uptime": Weight(fail=1.0, warn=1.0),
}


def score(found: Mapping[str, CheckStatus]) -> int:
    """Return 0 to 100 for what the checks found. Raises KeyError for one without a weight."""
    product = prod(_factor(name, status) for name, status in found.items())
    return floor(round(100 * product, 6))  # 0.6 * 0.7 * 100 is a little less than 42


def status_of(points: int) -> HealthStatus:
    """Return the word for a score."""
    if points < UNHEALTHY_BELOW:
        return HealthStatus.UNHEALTHY
    return HealthStatus.DEGRADED if points < DEGRADED_BELOW else HealthStatus.HEALTHY


def _factor(name: str, status: CheckStatus) -> float:
    weight = WEIGHTS[name]
    return {CheckStatus.WARN: weight.warn, CheckStatus.FAIL: weight.fail}.get(status, 1.0)
