"""Why deploys are disabled, as the status suggests to an operator."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from atlas_supervisor.deploy.status import failure
from atlas_supervisor.model.deploy import DeployRecord, Result, Step, StepName

NOW = datetime(2026, 1, 5, 9, 30, tzinfo=UTC)


def record(
    result: Result | None, failed: StepName | None, *, dry_run: bool = False
) -> DeployRecord:
    steps = [
        Step(name=name, ok=name is not failed, duration_ms=1.0)
        for name in StepName
        if failed is None or list(StepName).index(name) <= list(StepName).index(failed)
    ]
    return DeployRecord(
        deploy_id="d-42",
        result=result,
        dry_run=dry_run,
        release=None,
        version="2",
        active_port=8791,
        staging_port=8792,
        steps=steps,
        reason="so it is",
        phase="ended",
        started_ts=NOW,
        ended_ts=NOW,
    )


@pytest.mark.parametrize("gate", ["launch", "smoke", "health"])
def test_a_deploy_that_failed_a_gate_is_named_with_the_gate(gate: str) -> None:
    failed = record(Result.FAILED, StepName(gate))
    assert failure(failed) == f"deploy d-42 failed at {gate}"


def test_a_deploy_that_its_guard_reverted_is_named() -> None:
    reverted = record(Result.ROLLED_BACK, StepName.GUARD)
    assert failure(reverted) == "deploy d-42 was reverted by its guard"


def test_a_rollback_by_hand_during_the_guard_is_no_failure() -> None:
    reverted = record(Result.ROLLED_BACK, StepName.GUARD)
    by_hand = reverted.model_copy(update={"reason": "guard: rollback requested by uid:0"})
    assert failure(by_hand) is None


@pytest.mark.parametrize(
    "last",
    [
        None,
        record(None, None),
        record(Result.SWITCHED, None),
        record(Result.ABORTED, None),
        record(Result.ROLLED_BACK, None),
        record(Result.FAILED, StepName.PREFLIGHT),
        record(Result.FAILED, StepName.HEALTH, dry_run=True),
        record(Result.AWAITING_SWITCH, StepName.SWITCH),
    ],
)
def test_a_deploy_that_leaves_the_mode_as_it_is_is_not_blamed(last: DeployRecord | None) -> None:
    assert failure(last) is None
