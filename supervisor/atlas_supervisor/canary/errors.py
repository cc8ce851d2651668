"""Refusals of canary requests: code, message and hint."""

from __future__ import annotations

from atlas_supervisor.canary.stats.ramp import RampError
from atlas_supervisor.errors import RefusedError


def unknown_feature(name: str, known: list[str]) -> RefusedError:
    """Return the refusal of a feature that CANARY_FEATURES does not list."""
    listed = ", ".join(known) or "none"
    return RefusedError(
        "unknown_feature",
        f"there is no feature {name!r}",
        status=404,
        hint=f"CANARY_FEATURES lists them: {listed}",
    )


def ramp_not_possible(error: RampError) -> RefusedError:
    """Return the refusal of an action that the ramp's stage does not allow."""
    return RefusedError("ramp_not_possible", str(error), status=409, hint=error.hint)


def not_durable(error: Exception) -> RefusedError:
    """Return the refusal of a change that could not be written to the state file."""
    return RefusedError(
        "not_durable",
        f"the canary policy could not be written and is unchanged: {error}",
        status=503,
        hint="check whether the disk of STATE_DIR is full or read-only",
    )
