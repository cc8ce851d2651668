"""What a request about canaries is refused with, and what the caller can do about it."""

from __future__ import annotations

from atlas_supervisor.canary.stats.ramp import RampError
from atlas_supervisor.errors import RefusedError


def unknown_feature(name: str, known: list[str]) -> RefusedError:
    """Say that there is no such feature."""
    listed = ", ".join(known) or "none"
    return RefusedError(
        "unknown_feature",
        f"there is no feature {name!r}",
        status=404,
        hint=f"CANARY_FEATURES lists them: {listed}",
    )


def ramp(error: RampError) -> RefusedError:
    """Say that a ramp can't do this now."""
    return RefusedError("ramp_not_possible", str(error), status=409, hint=error.hint)


def not_durable(error: Exception) -> RefusedError:
    """Say that it was not done, because it could not be written down."""
    return RefusedError(
        "not_durable",
        f"the canaries' policy could not be written down, so it is as before: {error}",
        status=503,
        hint="see whether the disk of STATE_DIR is full or read-only",
    )
