"""Fills the rows of the error catalogue that concern canaries."""

from __future__ import annotations

from atlas_supervisor import errors
from atlas_supervisor.canary.stats.ramp import RampError
from atlas_supervisor.errors import RefusedError

_LONGEST_NAME = 100


def unknown_feature(name: str, known: list[str]) -> RefusedError:
    """Return the error for a feature that the settings don't name."""
    listed = ", ".join(known) or "none"
    return errors.UNKNOWN_FEATURE.error(name=name[:_LONGEST_NAME], known=listed)


def ramp(error: RampError) -> RefusedError:
    """Return the error for an action that a ramp can't do now."""
    return errors.RAMP_NOT_POSSIBLE.error(problem=str(error), hint=error.hint)


def not_durable(error: Exception) -> RefusedError:
    """Return the error for a canary policy that could not be saved."""
    problem = "the canary policy could not be saved and is unchanged"
    return errors.NOT_DURABLE.error(problem=problem, error=error)
