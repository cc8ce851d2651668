"""Fills the rows of the error catalogue that concern deploys with a deploy's own facts."""

from __future__ import annotations

from atlas_supervisor import errors
from atlas_supervisor.deploy.runner import DeployRun
from atlas_supervisor.errors import RefusedError
from atlas_supervisor.model.deploy import DeployRecord, Mode
from atlas_supervisor.model.ramp import Ramp
from atlas_supervisor.model.release import Release

single_by_settings = errors.SINGLE_BY_SETTINGS.error
stopping = errors.STOPPING.error
nothing_to_roll_back = errors.NOTHING_TO_ROLL_BACK.error
no_public_port = errors.NO_PUBLIC_PORT.error
nothing_to_hold = errors.NOTHING_TO_HOLD.error
nothing_to_release = errors.NOTHING_TO_RELEASE.error
already_held = errors.ALREADY_HELD.error
hold_failed = errors.HOLD_FAILED.error
deploy_not_found = errors.DEPLOY_NOT_FOUND.error

_NOTHING_TO = {
    "switch": errors.NOTHING_TO_SWITCH,
    "abort": errors.NOTHING_TO_ABORT,
    "split": errors.NOTHING_TO_SPLIT,
    "ramp": errors.NOTHING_TO_RAMP,
}


def mode_is_single(setting: Mode) -> RefusedError:
    """Return the error for a deploy while deploys are disabled, by the settings or otherwise."""
    by_settings = setting is Mode.SINGLE
    return (errors.MODE_IS_SINGLE_BY_SETTINGS if by_settings else errors.MODE_IS_SINGLE).error()


def unknown_release(problem: str) -> RefusedError:
    """Return the error for a release that does not exist."""
    return errors.UNKNOWN_RELEASE.error(problem=problem)


def releases_unreadable(problem: str) -> RefusedError:
    """Return the error for a list of releases that can't be made."""
    return errors.RELEASES_UNREADABLE.error(problem=problem)


def in_progress(run: DeployRun) -> RefusedError:
    """Return the error for a second deploy while `run` is in progress."""
    return errors.DEPLOY_IN_PROGRESS.error(deploy_id=run.record.deploy_id, phase=run.phase)


def not_durable(problem: str, error: Exception) -> RefusedError:
    """Return the error for a change that could not be saved; `problem` begins its message."""
    return errors.NOT_DURABLE.error(problem=problem, error=error)


def switch_failed(record: DeployRecord, problem: str | None) -> RefusedError:
    """Return the error for a switch that was tried and failed."""
    why = problem or record.reason or "the deploy went otherwise"
    return errors.SWITCH_FAILED.error(problem=why, extra=record.model_dump(mode="json"))


def too_late(record: DeployRecord) -> RefusedError:
    """Return the error for a deploy that had its result before it could be aborted."""
    extra = record.model_dump(mode="json")
    return errors.TOO_LATE.error(result=record.result, extra=extra)


def nothing_to(action: str, run: DeployRun | None) -> RefusedError:
    """Return the error for what no deploy is in a phase for: `switch`, `abort`, `split`, `ramp`."""
    state = f"the deploy is in {run.whereabouts}" if run else "no deploy is in progress"
    return _NOTHING_TO[action].error(state=state)


def ramp_not_possible(ramp: Ramp) -> RefusedError:
    """Return the error for a ramp that is paused once more, or resumed though it is not paused."""
    state = "paused already" if ramp.paused else "not paused"
    hint = "atlasctl ramp resume goes on with it" if ramp.paused else "it goes on by itself"
    return errors.RAMP_NOT_POSSIBLE.error(problem=f"the ramp is {state}", hint=hint)


def previous_gone(release: Release, problem: str) -> RefusedError:
    """Return the error for a previous version that is neither warm nor can be launched."""
    return errors.PREVIOUS_VERSION_GONE.error(version=release.version, problem=problem)


def fast_not_allowed(release: Release, why: str) -> RefusedError:
    """Return the error for a rollback whose version can't skip its gates."""
    return errors.FAST_NOT_ALLOWED.error(version=release.version, why=why)
