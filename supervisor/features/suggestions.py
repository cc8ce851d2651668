"""What an operator should do about canaries as they are, if anything."""

from __future__ import annotations

from collections.abc import Iterator

from supervisor.canary.ramp import Stage
from supervisor.model.canary import CanaryView
from supervisor.model.status import Suggestion


def suggestions(view: CanaryView) -> Iterator[Suggestion]:
    """Yield what is wrong and what would mend it; nothing when all is well."""
    if view.fallback is not None:
        yield Suggestion(
            code="canary_fallback",
            message=f"All canaries are off: {view.fallback.reason}.",
            action="Look at `atlasctl canary report`; once the cause is mended, reset it: "
            "`atlasctl canary reset`.",
        )
    for feature in view.features:
        if feature.stage == Stage.ROLLED_BACK:
            yield Suggestion(
                code="canary_rolled_back",
                message=f"The canary of {feature.feature} gets no calls: {feature.reason}.",
                action="Once it is mended: `atlasctl canary ramp "
                f"{feature.feature} start`, or `atlasctl canary reset {feature.feature}`.",
            )
        for warning in feature.warnings:
            yield Suggestion(
                code="canary_not_trusted",
                message=f"{feature.feature}: {warning}.",
                action="docs/canary.md tells what is compared, and what spoils it.",
            )
    if view.dropped_events:
        yield Suggestion(
            code="canary_events_dropped",
            message=f"Worker processes had no room for {view.dropped_events} events of canary "
            "calls: they are missing from all numbers.",
            action="The daemon was away for long, or its disk takes no writes: see its log.",
        )
