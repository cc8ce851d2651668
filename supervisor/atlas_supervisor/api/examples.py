"""Examples for the document, in one place so that they tell one story.

Examples of canaries for the document; they go with those of `examples`.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from atlas_supervisor.api.responses import ErrorAnswer, ErrorDetail
from atlas_supervisor.api.routes import ResponseSpec
from atlas_supervisor.model.canary import (
    ArmReport,
    ArmView,
    BothArms,
    CanaryReport,
    CanaryStats,
    CanaryView,
    FeatureReport,
    FeatureView,
    IntervalView,
    JudgementView,
    LatencyView,
    StratumView,
)
from atlas_supervisor.model.deploy import DeployRecord, Mode, Result
from atlas_supervisor.model.drain import DrainCounts, DrainingView
from atlas_supervisor.model.event import DeployEvent, Transition
from atlas_supervisor.model.health import Check, CheckStatus, Health, HealthStatus
from atlas_supervisor.model.slot import Role, SlotName, SlotState, SlotView
from atlas_supervisor.model.status import Status, Traffic
from atlas_supervisor.model.step import Step, StepName

_SINCE = datetime(2026, 1, 5, 9, 30, tzinfo=UTC)
_CANARY = ArmView(
    calls=412,
    errors=5,
    error_rate=5 / 412,
    latency_ms=LatencyView(avg=81.2, p50=74.1, p95=140.3, p99=201.7),
    assigned=415,
    unreported=0,
)
_STABLE = ArmView(
    calls=3690,
    errors=41,
    error_rate=41 / 3690,
    latency_ms=LatencyView(avg=92.0, p50=83.5, p95=161.0, p99=240.2),
    assigned=3701,
    unreported=0,
)
_BOTH = BothArms(canary=_CANARY, stable=_STABLE)
_JUDGEMENT = JudgementView(
    verdict="inconclusive",
    kind="waiting",
    reason="vision: nothing speaks against the canary so far, and not enough for it",
    numbers={"canary_calls": 412, "stable_calls": 3690},
    needs=900,
)
_DIFFERENCE = IntervalView(estimate=0.001, low=-0.007, high=0.017)

FEATURE = FeatureView(
    feature="vision",
    share=0.1,
    percentage=0.2,
    stage="ramping",
    step=1,
    steps=[0.02, 0.1, 0.5, 1.0],
    since_ts=_SINCE,
    epoch=17,
    ramp=16,
    reason="ramp started by uid:0",
    waits_for="120 s more on this step, then the share is 50.0 %",
    judgement=_JUDGEMENT,
    pending_calls=7,
    warnings=[],
)
VIEW = CanaryView(
    enabled=True,
    canary_disabled_fallback=False,
    fallback=None,
    dropped_events=0,
    late_calls=0,
    overflown_calls=0,
    features=[FEATURE],
)
STATS = CanaryStats(**_BOTH.model_dump(), features={"vision": _BOTH})
_ARMS = {
    "canary": ArmReport(
        **_CANARY.model_dump(),
        error_rate_interval=IntervalView(estimate=5 / 412, low=0.0052, high=0.0281),
    ),
    "stable": ArmReport(
        **_STABLE.model_dump(),
        error_rate_interval=IntervalView(estimate=41 / 3690, low=0.0082, high=0.015),
    ),
}
REPORT = CanaryReport(
    hours=24,
    since_ts=_SINCE,
    until_ts=_SINCE,
    features=[
        FeatureReport(
            feature="vision",
            canary=_ARMS["canary"],
            stable=_ARMS["stable"],
            difference=_DIFFERENCE,
            strata=[
                StratumView(
                    epoch=17,
                    since_ts=_SINCE,
                    share=0.1,
                    cause="the step's time is over and nothing speaks against it",
                    canary=_ARMS["canary"],
                    stable=_ARMS["stable"],
                    difference=_DIFFERENCE,
                )
            ],
            judgement=_JUDGEMENT,
            verdict=_JUDGEMENT.verdict,
            reason=_JUDGEMENT.reason,
            warnings=[],
        )
    ],
)


_START = datetime(2026, 1, 5, 9, 30, tzinfo=UTC)
_GATES = [
    Step(name=StepName.PREFLIGHT, ok=True, duration_ms=12.4, detail={"version": "1.4.0"}),
    Step(name=StepName.LAUNCH, ok=True, duration_ms=310.2, detail={"pid": 4711}),
    Step(
        name=StepName.SMOKE,
        ok=True,
        duration_ms=21.9,
        detail={"checks": [{"name": "home answers", "ok": True}]},
    ),
    Step(name=StepName.HEALTH, ok=True, duration_ms=1004.0, detail={"probes": 3}),
]

SWITCHED = DeployRecord(
    deploy_id="d-20260105-093000-4f2a",
    result=Result.SWITCHED,
    dry_run=False,
    release="1.4.0",
    version="1.4.0",
    active_port=8792,
    staging_port=8791,
    steps=[*_GATES, Step(name=StepName.SWITCH, ok=True, duration_ms=18.3)],
    reason=None,
    phase="guard",
    started_ts=_START,
    ended_ts=None,
)
TRANSITION = Transition(
    id=42,
    ts=_START,
    source="launch",
    event="passed",
    target="smoke",
    cause="staging is ready",
    duration_ms=310.2,
)
EVENT = DeployEvent.of(
    SWITCHED.model_copy(update={"phase": "smoke", "result": None, "steps": _GATES[:2]}),
    ts=_START,
    source="launch",
    event="passed",
    cause="staging is ready",
    duration_ms=310.2,
    step=_GATES[1],
)
_STOPPED = {"active_port": 8791, "staging_port": 8792, "phase": "ended"}
_ENDED = {"ended_ts": _START + timedelta(seconds=3)}

BEGUN = SWITCHED.model_copy(
    update={**_STOPPED, "result": None, "version": None, "steps": [], "phase": "preflight"}
)
FAILED = SWITCHED.model_copy(
    update={
        **_STOPPED,
        **_ENDED,
        "result": Result.FAILED,
        "steps": [
            *_GATES[:2],
            Step(
                name=StepName.SMOKE,
                ok=False,
                duration_ms=8.7,
                detail={"message": "home answers: expected status 200, got 500"},
            ),
        ],
        "reason": "smoke: home answers: expected status 200, got 500",
    }
)
ABORTED = SWITCHED.model_copy(
    update={
        **_STOPPED,
        **_ENDED,
        "result": Result.ABORTED,
        "steps": _GATES[:2],
        "reason": "aborted by uid:0",
    }
)
ROLLED_BACK = SWITCHED.model_copy(
    update={
        **_STOPPED,
        **_ENDED,
        "result": Result.ROLLED_BACK,
        "reason": "rolled back by uid:0",
    }
)
SWITCH_FAILED = SWITCHED.model_copy(
    update={
        **_STOPPED,
        "result": Result.AWAITING_SWITCH,
        "steps": [
            *_GATES,
            Step(
                name=StepName.SWITCH,
                ok=False,
                duration_ms=4.1,
                detail={"message": "deploy_state.json: no space left on device"},
            ),
        ],
        "reason": "deploy_state.json: no space left on device",
        "phase": "awaiting_switch",
    }
)


def _slot(slot: SlotName, *, port: int, role: Role, state: SlotState, version: str) -> SlotView:
    return SlotView(
        slot=slot,
        port=port,
        role=role,
        state=state,
        pid=4711 if role is Role.ACTIVE else 4242,
        version=version,
        started_ts=_START,
        restarts=0,
    )


def _check(
    status: CheckStatus, message: str, value: float | None = None, unit: str | None = None
) -> Check:
    return Check(status=status, value=value, unit=unit, message=message)


_PASS, _SKIPPED = CheckStatus.PASS, CheckStatus.SKIPPED
HEALTH = Health(
    score=92,
    status=HealthStatus.DEGRADED,
    checks={
        "llm_latency": _check(CheckStatus.WARN, "slow to its first word; 12 calls", 11800, "ms"),
        "scheduler": _check(_PASS, "takes jobs, 1 running", 0.2, "s"),
        "memory": _check(_PASS, "write OK", 1.4, "ms"),
        "db_integrity": _check(_PASS, "intact, checked 3 s ago", 3.1, "s"),
        "port_active": _check(_PASS, "green answers on its own port and the public one", 2.9, "ms"),
        "uptime": _check(_PASS, "since the daemon was started", 86400.5, "s"),
        "database": _check(_PASS, "it took a write and gave it back", 3.2, "ms"),
        "disk_free": _check(_PASS, "free in STATE_DIR", 18211, "MiB"),
        "steering": _check(_PASS, "new connections go to green, as the state file says"),
    },
    slot=SlotName.GREEN,
    version="1.4.0",
    age_seconds=1.2,
)
_GONE = _check(_SKIPPED, "there is no instance to ask")
_TOLD = ("llm_latency", "scheduler", "memory", "db_integrity")
_NOBODY = _check(CheckStatus.FAIL, "green is backoff; the last time, it was ended by SIGKILL")
UNHEALTHY = HEALTH.model_copy(
    update={
        "score": 0,
        "status": HealthStatus.UNHEALTHY,
        "checks": {**HEALTH.checks, **dict.fromkeys(_TOLD, _GONE), "port_active": _NOBODY},
        "version": None,
        "age_seconds": None,
    }
)

STATUS = Status(
    mode=Mode.BLUEGREEN,
    active_port=8792,
    staging_port=8791,
    public_port=8790,
    health_score=HEALTH.score,
    version="1.4.0",
    channel="stable",
    last_deploy=SWITCHED,
    canary_stats=STATS,
    fallback_suggestions=[],
    slots=[
        _slot(SlotName.BLUE, port=8791, role=Role.STAGING, state=SlotState.WARM, version="1.3.2"),
        _slot(
            SlotName.GREEN, port=8792, role=Role.ACTIVE, state=SlotState.RUNNING, version="1.4.0"
        ),
    ],
    draining=[
        DrainingView(
            slot=SlotName.GREEN,
            instance="green-5f0c2d9a1b7e4836",
            pid=4177,
            version="1.3.1",
            since_ts=_START,
            deadline_ts=_START + timedelta(seconds=30),
            left=DrainCounts(requests=1, websockets=12, event_streams=3, idle=0),
            connections=16,
        )
    ],
    traffic=Traffic(plane="kernel", weights={"blue": 0.0, "green": 1.0}),
    deploy_in_progress=False,
)


def refused(status: int, code: str, message: str, hint: str) -> ResponseSpec:
    """Return the description of a plain refusal."""
    error = ErrorAnswer(error=ErrorDetail(code=code, message=message, hint=hint))
    return ResponseSpec(status, f"`{code}`: {message}.", ErrorAnswer, error)
