"""Example values for the OpenAPI document and docs/api.md. They tell one consistent story."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from atlas_supervisor.model.canary import (
    ArmReport,
    ArmView,
    BothArms,
    CanaryReport,
    CanaryStats,
    CanaryView,
    EvidenceView,
    FeatureReport,
    FeatureView,
    IntervalView,
    JudgementView,
    LatencyView,
    SimulatedRamp,
    SimulationView,
    StratumView,
)
from atlas_supervisor.model.deploy import (
    DeployEvent,
    DeployRecord,
    Mode,
    Result,
    Step,
    StepName,
    Transition,
)
from atlas_supervisor.model.drain import DrainCounts, DrainingView
from atlas_supervisor.model.health import Check, CheckStatus, Health, HealthStatus
from atlas_supervisor.model.judgement import Judgement, VersionFigures
from atlas_supervisor.model.ramp import RampStep, RampView
from atlas_supervisor.model.release import (
    EarlierVersion,
    EarlierVersions,
    LastDeploy,
    ReleaseView,
    VersionSource,
)
from atlas_supervisor.model.requests import (
    RecentRequests,
    RequestFigures,
    RequestHour,
    TrafficSwitch,
    VersionMinute,
)
from atlas_supervisor.model.slot import Role, SlotName, SlotState, SlotView
from atlas_supervisor.model.status import (
    DaemonView,
    HoldView,
    RecycleView,
    ReloadView,
    SplitView,
    Start,
    Status,
    Traffic,
)
from atlas_supervisor.model.verdict import Verdict

_START = datetime(2026, 1, 5, 9, 30, tzinfo=UTC)

PARAMETERS = {
    "action": "dry-run",
    "asset": "swagger-ui.css",
    "deploy_id": "20260105-093000-4f2a11",
    "feature": "vision",
    "file": "atlas.css",
    "source": "supervisor",
}
"""Values of path parameters."""

# Deploys.


def _step(name: StepName, duration_ms: float, *, ok: bool = True, **detail: object) -> Step:
    return Step(name=name, ok=ok, duration_ms=duration_ms, detail=detail)


_GATES = [
    _step(StepName.PREFLIGHT, 12.4, version="1.4.0"),
    _step(StepName.LAUNCH, 310.2, pid=4711),
    _step(StepName.SMOKE, 21.9, checks=[{"name": "home answers", "ok": True}]),
    _step(StepName.HEALTH, 1004.0, probes=3),
]
SWITCHED = DeployRecord(
    deploy_id=PARAMETERS["deploy_id"],
    result=Result.SWITCHED,
    dry_run=False,
    release="1.4.0",
    version="1.4.0",
    active_port=8792,
    staging_port=8791,
    steps=[*_GATES, _step(StepName.SWITCH, 18.3)],
    reason=None,
    phase="guard",
    started_ts=_START,
    ended_ts=None,
    requested="deploy requested by token",
)


def _not_switched(result: Result | None, steps: list[Step], **changes: object) -> DeployRecord:
    ports = {"active_port": 8791, "staging_port": 8792}
    update = {"result": result, "steps": steps, **ports, **changes}
    return SWITCHED.model_copy(update=update)


_ENDED = {"phase": "ended", "ended_ts": _START + timedelta(seconds=3)}
_SMOKE_FAULT = "home answers: expected status 200, got 500"
_DISK_FAULT = "deploy_state.json: no space left on device"

STARTED = _not_switched(None, [], version=None, phase="preflight")
FAILED = _not_switched(
    Result.FAILED,
    [*_GATES[:2], _step(StepName.SMOKE, 8.7, ok=False, message=_SMOKE_FAULT)],
    reason=f"smoke: {_SMOKE_FAULT}",
    **_ENDED,
)
ABORTED = _not_switched(Result.ABORTED, _GATES[:2], reason="aborted by uid:0", **_ENDED)
ROLLED_BACK = _not_switched(
    Result.ROLLED_BACK, SWITCHED.steps, reason="rolled back by uid:0", **_ENDED
)
SWITCH_FAILED = _not_switched(
    Result.AWAITING_SWITCH,
    [*_GATES, _step(StepName.SWITCH, 4.1, ok=False, message=_DISK_FAULT)],
    reason=_DISK_FAULT,
    phase="awaiting_switch",
)
REFUSED = {
    "deploy_aborted": ABORTED,
    "deploy_went_otherwise": FAILED,
    "release_did_not_pass": FAILED,
    "switch_failed": SWITCH_FAILED,
    "too_late": SWITCHED,
}
"""The record that goes with an error, by the error's code."""

_CAUSE: dict[str, Any] = {"event": "passed", "cause": "staging is ready", "duration_ms": 310.2}
TRANSITION = Transition(id=42, ts=_START, source="launch", target="smoke", **_CAUSE)
EVENT = DeployEvent.of(
    _not_switched(None, _GATES[:2], phase="smoke"),
    ts=_START,
    source="launch",
    step=_GATES[1],
    **_CAUSE,
)
RELEASE = ReleaseView(
    name="1.4.0",
    version="1.4.0",
    version_source=VersionSource.FILE,
    note=None,
    slots=[SlotName.GREEN],
    last_deploy=LastDeploy(deploy_id=SWITCHED.deploy_id, started_ts=_START, result=SWITCHED.result),
)
EARLIER = EarlierVersions(
    active_version="1.4.0",
    versions=[
        EarlierVersion(
            version="1.3.2",
            release="1.3.2",
            last_served_ts=_START,
            next=True,
            warm=True,
            fast=True,
            why_not_fast=None,
            gone=None,
            past_irreversible=[],
        )
    ],
)

# Canaries.


def _arm(calls: int, errors: int, latency_ms: tuple[float, float, float, float]) -> ArmView:
    quantiles = dict(zip(("avg", "p50", "p95", "p99"), latency_ms, strict=True))
    return ArmView(
        calls=calls,
        errors=errors,
        error_rate=errors / calls,
        latency_ms=LatencyView(**quantiles),
        assigned=calls + 7,
        unreported=0,
    )


def _reported(arm: ArmView, low: float, high: float) -> ArmReport:
    interval = IntervalView(estimate=arm.error_rate, low=low, high=high)
    quantiles = arm.latency_ms.model_dump(exclude={"avg"})
    around = {
        name: IntervalView(estimate=ms, low=round(ms * 0.94, 1), high=round(ms * 1.09, 1))
        for name, ms in quantiles.items()
    }
    return ArmReport(**dict(arm), error_rate_interval=interval, latency_intervals=around)


_CANARY = _arm(412, 5, (81.2, 74.1, 140.3, 201.7))
_STABLE = _arm(3690, 41, (92.0, 83.5, 161.0, 240.2))
_BOTH = BothArms(canary=_CANARY, stable=_STABLE)
_JUDGEMENT = JudgementView(
    verdict="inconclusive",
    kind="waiting",
    reason="vision: canary error rate 1.2 %, stable 1.1 %, over 412 canary calls; "
    "not enough data, about 900 more canary calls are needed",
    numbers={"canary_calls": 412, "stable_calls": 3690},
    needs=900,
)
_COMPARED = {
    "canary": _reported(_CANARY, 0.0052, 0.0281),
    "stable": _reported(_STABLE, 0.0082, 0.015),
    "difference": IntervalView(estimate=0.001, low=-0.007, high=0.017),
}

FEATURE = FeatureView(
    feature="vision",
    share=0.1,
    percentage=0.2,
    stage="ramping",
    step=1,
    steps=[0.02, 0.1, 0.5, 1.0],
    since_ts=_START,
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
    problems={},
    late_calls=0,
    overflown_calls=0,
    features=[FEATURE],
)
SIMULATION = SimulationView(
    keys=300,
    error_rate=0.0,
    margin=0.02,
    ramps=[
        SimulatedRamp(shares=[0.05, 0.25], canary_keys=75, promoted=0.0),
        SimulatedRamp(shares=[0.05, 0.25, 0.5], canary_keys=150, promoted=0.315),
        SimulatedRamp(shares=[0.05, 0.25, 0.5, 0.75], canary_keys=225, promoted=1.0),
        SimulatedRamp(shares=[0.05, 0.25, 0.5, 0.75, 0.9], canary_keys=270, promoted=1.0),
    ],
)
STATS = CanaryStats(**dict(_BOTH), features={"vision": _BOTH})
REPORT = CanaryReport(
    hours=24,
    since_ts=_START - timedelta(hours=24),
    until_ts=_START,
    features=[
        FeatureReport(
            feature="vision",
            **_COMPARED,
            strata=[
                StratumView(
                    epoch=17,
                    since_ts=_START,
                    share=0.1,
                    cause="step time elapsed, no evidence against the canary",
                    **_COMPARED,
                )
            ],
            evidence=[EvidenceView(ts=_START, rollback=1.7, promotion=6.2, rollback_needed=300)],
            judgement=_JUDGEMENT,
            verdict=_JUDGEMENT.verdict,
            reason=_JUDGEMENT.reason,
            warnings=[],
        )
    ],
)

# Health and status.


def _check(
    status: CheckStatus, message: str, value: float | None = None, unit: str | None = None
) -> Check:
    return Check(status=status, value=value, unit=unit, message=message)


_PASS, _SKIPPED = CheckStatus.PASS, CheckStatus.SKIPPED
HEALTH = Health(
    score=93,
    status=HealthStatus.DEGRADED,
    checks={
        "llm_latency": _check(CheckStatus.WARN, "slow first token; 12 calls", 11800, "ms"),
        "scheduler": _check(_PASS, "takes jobs, 1 running", 0.2, "s"),
        "memory": _check(_PASS, "write OK", 1.4, "ms"),
        "db_integrity": _check(_PASS, "intact, checked 3 s ago", 3.1, "s"),
        "port_active": _check(_PASS, "green answers on its own port and the public one", 2.9, "ms"),
        "uptime": _check(_PASS, "since the start of the daemon", 86400.5, "s"),
        "database": _check(_PASS, "write and read-back OK", 3.2, "ms"),
        "disk_free": _check(_PASS, "free in STATE_DIR", 18211, "MiB"),
        "steering": _check(_PASS, "new connections go to green, as in the state file"),
        "canaries": _check(_PASS, "all rings are read, and counts are written"),
    },
    slot=SlotName.GREEN,
    version="1.4.0",
    age_seconds=1.2,
)
_NOT_REPORTED = _check(_SKIPPED, "there is no worker to ask")
_REPORTED_BY_WORKER = ("llm_latency", "scheduler", "memory", "db_integrity")
_NO_WORKER = _check(CheckStatus.FAIL, "green is in backoff: its worker was ended by SIGKILL")
UNHEALTHY = HEALTH.model_copy(
    update={
        "score": 0,
        "status": HealthStatus.UNHEALTHY,
        "checks": {
            **HEALTH.checks,
            **dict.fromkeys(_REPORTED_BY_WORKER, _NOT_REPORTED),
            "port_active": _NO_WORKER,
        },
        "version": None,
        "age_seconds": None,
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
        memory_mb=84.5,
        cpu_percent=12.4 if role is Role.ACTIVE else 0.0,
        requests=RequestFigures(
            per_second=41.5, error_share=0.0004, p50_ms=8.2, p95_ms=31.0, p99_ms=77.4
        )
        if role is Role.ACTIVE
        else None,
    )


SPLIT = SplitView(
    deploy_id=SWITCHED.deploy_id,
    version="1.4.0",
    active_version="1.3.2",
    staging_slot=SlotName.GREEN,
    staging_weight=0.1,
    weights={"blue": 0.9, "green": 0.1},
    sticky="connection",
    testers=["10.1.0.0/16", "192.0.2.7/32"],
)

_MINUTE = VersionMinute(
    ts=_START,
    seconds=60,
    version="1.3.2",
    requests=2490,
    failed=1,
    error_share=0.0004,
    p50_ms=8.2,
    p95_ms=31.0,
    p99_ms=77.4,
)
REQUEST_HOUR = RequestHour(
    since_ts=_START - timedelta(minutes=59),
    until_ts=_START + timedelta(seconds=90),
    minutes=[
        _MINUTE,
        _MINUTE.model_copy(
            update={
                "ts": _START + timedelta(minutes=1),
                "seconds": 30,
                "version": "1.4.0",
                "requests": 1257,
                "failed": 0,
                "error_share": 0.0,
            }
        ),
    ],
    versions={"1.3.2": 0, "1.4.0": 1},
    switches=[
        TrafficSwitch(
            ts=_START + timedelta(seconds=60),
            deploy_id=PARAMETERS["deploy_id"],
            version="1.4.0",
            taken_back=False,
            recycled=False,
        )
    ],
    uncounted=[],
)

RAMP = RampView(
    deploy_id=SWITCHED.deploy_id,
    version="1.4.0",
    phase="ramp",
    shares=(0.05, 0.25, 1),
    steps=(
        RampStep(
            share=0.05,
            since_ts=_START + timedelta(seconds=2),
            until_ts=_START + timedelta(seconds=62),
            new=VersionFigures(requests=150, failed=0, p50_ms=4.1, p95_ms=11.8),
            old=VersionFigures(requests=2850, failed=3, p50_ms=4.2, p95_ms=12.1),
        ),
        RampStep(
            share=0.25,
            since_ts=_START + timedelta(seconds=62),
            new=VersionFigures(requests=31, failed=0, p50_ms=4.0, p95_ms=11.5),
            old=VersionFigures(requests=94, failed=0, p50_ms=4.2, p95_ms=12.0),
        ),
    ),
    paused=True,
    waited_seconds=2.5,
    looked_ts=_START + timedelta(seconds=64.5),
    requests_needed=19,
    waits_for="an operator: it is paused",
    judgement=Judgement(
        verdict=Verdict.INCONCLUSIVE,
        against=1.2,
        why="0 of 181 requests failed, and 3 of 2,944 of the old version",
        new=VersionFigures(requests=181, failed=0, p50_ms=4.1, p95_ms=11.8),
        old=VersionFigures(requests=2944, failed=3, p50_ms=4.2, p95_ms=12.1),
    ),
)

HOLD = HoldView(
    hold_id="5f0c2d9a",
    since=_START,
    until=_START + timedelta(seconds=30),
    by="uid:0",
    waiting=12,
)

DAEMON = DaemonView(
    version="1.2.0",
    pid=1311,
    started_ts=_START - timedelta(days=3),
    start=Start.FRESH,
    settings_pending=False,
)

RELOAD = ReloadView(version="1.2.1", before=DAEMON, changed=["GUARD_SECONDS", "LOG_LEVEL"])

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
            memory_mb=91.3,
            cpu_percent=0.8,
        )
    ],
    requests=RecentRequests(seconds=300, requests=12_450, failed=3),
    traffic=Traffic(plane="kernel", weights={"blue": 0.0, "green": 1.0}),
    daemon=DAEMON,
    recycle=RecycleView(
        max_rss_mb=800,
        max_age_seconds=None,
        due_ts=None,
        due=None,
        waits=None,
        failure=None,
        attempts=0,
    ),
    deploy_in_progress=False,
)
