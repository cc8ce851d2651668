"""Examples of canaries for the document; they go with those of `examples`."""

from __future__ import annotations

from datetime import UTC, datetime

from supervisor.model.canary import (
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
