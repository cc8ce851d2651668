"""How a deploy's outcome is answered: by whoever started it, and by whoever steers it."""

from __future__ import annotations

from supervisor.api import examples
from supervisor.api.errors import ErrorDetail
from supervisor.api.examples import refused
from supervisor.api.routes import Answer, Reply
from supervisor.errors import RefusedError
from supervisor.model.deploy import DeployRecord, Result


class RefusedDeploy(DeployRecord):
    """A deploy that did not do what was asked: its whole record, and the error."""

    error: ErrorDetail


def accepted(record: DeployRecord) -> Reply:
    """Answer that the deploy has begun, and where to follow it."""
    return Reply(record, status=202, headers={"Location": f"/deploy/{record.deploy_id}"})


def answer(record: DeployRecord, *, asked: frozenset[Result]) -> Reply:
    """Answer with the record if what was `asked` was done, else refuse with it."""
    if record.result is None:
        return accepted(record)
    if record.result in asked:
        return Reply(record)
    reason = record.reason or "no reason is recorded"
    if record.result is Result.ABORTED:
        status, code, message = 409, "deploy_aborted", f"the deploy was aborted: {reason}"
    elif record.result is Result.ROLLED_BACK:
        status, code, message = 422, "release_did_not_pass", f"it was reverted: {reason}"
    elif record.result is Result.FAILED:
        status, code, message = 422, "release_did_not_pass", f"the release did not pass: {reason}"
    else:
        status, code = 409, "deploy_went_otherwise"
        message = f"the deploy came out as {record.result.value}: {reason}"
    raise RefusedError(
        code,
        message,
        status=status,
        hint=f"atlasctl show {record.deploy_id} tells what every step found",
        extra=record.model_dump(mode="json"),
    )


def _with_record(status: int, code: str, description: str, record: DeployRecord) -> Answer:
    error = ErrorDetail(
        code=code, message=f"{description}: {record.reason}", hint="atlasctl show tells more"
    )
    example = RefusedDeploy(**record.model_dump(), error=error)
    return Answer(
        status, f"`{code}`: {description}; the record, and `error`.", RefusedDeploy, example
    )


BUSY = refused(
    409,
    "deploy_in_progress",
    "a deploy is in progress",
    "wait for it, or give it up with POST /deploy/abort",
)
NOT_DURABLE = refused(
    503,
    "not_durable",
    "it could not be written down, so it was not done",
    "see whether the disk of STATE_DIR is full or read-only",
)
STOPPING = refused(503, "stopping", "the supervisor is stopping", "try again later")
SWITCH_FAILED = _with_record(
    503,
    "switch_failed",
    "the switch could not be done; ports and mode are as before, staging stays up for a retry",
    examples.SWITCH_FAILED,
)
MODE_IS_SINGLE = refused(
    409,
    "mode_is_single",
    "deploys are off",
    "reset it with POST /deploy/mode when you know why",
)
ABORTED = _with_record(409, "deploy_aborted", "the deploy was aborted", examples.ABORTED)
TOO_LATE = _with_record(
    409, "too_late", "the deploy could not be aborted any more", examples.SWITCHED
)
NOT_PASSED = _with_record(422, "release_did_not_pass", "the release did not pass", examples.FAILED)


def nothing_to(action: str) -> Answer:
    """Describe the refusal of an action that there is no deploy for."""
    return refused(
        409,
        f"nothing_to_{action}",
        f"there is nothing to {action}: no deploy is in progress",
        "GET /deploy/status shows what is going on",
    )
