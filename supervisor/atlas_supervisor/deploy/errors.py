"""What a request about deploys is refused with, and what the caller can do about it."""

from __future__ import annotations

from atlas_supervisor.deploy.machine import Phase
from atlas_supervisor.deploy.runner import DeployRun
from atlas_supervisor.errors import RefusedError
from atlas_supervisor.model.deploy import DeployRecord
from atlas_supervisor.model.release import Release


def mode_is_single() -> RefusedError:
    """Say that deploys are off."""
    return RefusedError(
        "mode_is_single",
        "deploys are off: the mode is single",
        status=409,
        hint="GET /deploy/status (atlasctl status) says why; once that is mended, "
        'POST /deploy/mode {"mode": "bluegreen"} (atlasctl mode bluegreen) takes deploys again',
    )


def single_by_settings() -> RefusedError:
    """Say that the settings have the last word on the mode."""
    return RefusedError(
        "single_by_settings",
        "DEPLOY_MODE=single in the settings always wins",
        status=409,
        hint="set DEPLOY_MODE=bluegreen in the env file and restart the daemon",
    )


def unknown_release(why: str) -> RefusedError:
    """Say that there is no such release."""
    return RefusedError(
        "unknown_release",
        why,
        status=404,
        hint="a release is a folder below RELEASES_DIR; without one the worker directory "
        "is deployed",
    )


def stopping() -> RefusedError:
    """Say that the daemon is on its way out."""
    return RefusedError(
        "stopping", "the supervisor is stopping", status=503, hint="try again later"
    )


def in_progress(run: DeployRun) -> RefusedError:
    """Say that another deploy holds the place."""
    return RefusedError(
        "deploy_in_progress",
        f"deploy {run.record.deploy_id} is in progress ({run.phase})",
        status=409,
        hint="wait for it, or POST /deploy/abort (atlasctl abort) gives it up",
    )


def not_durable(what: str, error: Exception) -> RefusedError:
    """Say that it was not done, because it could not be written down; `what` is its beginning."""
    return RefusedError(
        "not_durable",
        f"{what}: {error}",
        status=503,
        hint="see whether the disk of STATE_DIR is full or read-only",
    )


def switch_failed(run: DeployRun) -> RefusedError:
    """Say that the switch was tried and could not be done."""
    return RefusedError(
        "switch_failed",
        f"the switch could not be done: {run.switch_failure}",
        status=503,
        hint="ports and mode are as before; mend the cause, then POST /deploy/switch "
        "(atlasctl switch) tries again"
        if run.phase is Phase.AWAITING_SWITCH
        else "ports and mode are as before",
        extra=run.record.model_dump(mode="json"),
    )


def too_late(record: DeployRecord) -> RefusedError:
    """Say that the deploy came out in another way before it could be aborted."""
    return RefusedError(
        "too_late",
        f"the deploy could not be aborted any more: it is {record.result}",
        status=409,
        hint="POST /deploy/rollback (atlasctl rollback) goes back to the version before",
        extra=record.model_dump(mode="json"),
    )


def nothing_to(action: str, run: DeployRun | None) -> RefusedError:
    """Say that no deploy is there, or in a phase, to do this to."""
    what = f"the deploy is in {run.whereabouts}" if run else "no deploy is in progress"
    return RefusedError(
        f"nothing_to_{action}",
        f"there is nothing to {action}: {what}",
        status=409,
        hint="GET /deploy/status (atlasctl status) shows what is going on",
    )


def nothing_to_roll_back() -> RefusedError:
    """Say that the active version is the first one."""
    return RefusedError(
        "nothing_to_roll_back",
        "no version had the traffic before this one",
        status=409,
        hint="POST /deploy/bluegreen (atlasctl deploy) deploys another version",
    )


def previous_gone(release: Release, why: str) -> RefusedError:
    """Say that the version before is neither warm nor to be launched again."""
    return RefusedError(
        "previous_version_gone",
        f"version {release.version} can't be launched again: {why}",
        status=409,
        hint="with RELEASES_DIR every release keeps its own folder, and can be gone back to",
    )


def deploy_not_found() -> RefusedError:
    """Say that there is no such deploy."""
    return RefusedError(
        "deploy_not_found",
        "there is no deploy with this id",
        status=404,
        hint="GET /deploy/history lists them",
    )
