"""Verdicts and numbers as sentences, for readers who know no statistics."""

from __future__ import annotations

import math

from atlas_supervisor.canary.stats.counts import Strata
from atlas_supervisor.canary.stats.forecast import Outlook, Shortage
from atlas_supervisor.canary.stats.latency_evidence import CUTS, Placement
from atlas_supervisor.canary.stats.round_evidence import RoundEvidence
from atlas_supervisor.canary.stats.sample_ratio import SampleRatios
from atlas_worker.contract import bucket_milliseconds

SLOW_LEVELS = tuple(CUTS.index(quantile) + 1 for quantile in (0.5, 0.9, 0.95, 0.99))
"""The levels from which on a call may be said to be slow."""


def percent(rate: float) -> str:
    """Return a rate as "4.8 %"; a small one keeps its first significant digit."""
    if rate == 0 or rate >= 0.001:
        return f"{rate * 100:.1f} %"
    return f"{rate * 100:.1g} %" if rate >= 1e-6 else "under 0.0001 %"


def amount(count: int) -> str:
    """Return a number of calls as "12,345"."""
    return f"{count:,}"


def odds(e_value: float) -> str:
    """Return an e-value as "over 400 to 1", rounded down to two digits."""
    if e_value >= 1e6:
        return "over a million to 1"
    # 1/alpha as a float may lie just below the whole number that it stands for.
    whole = math.floor(max(e_value, 1) * (1 + 1e-9))
    step = 10 ** max(0, len(str(whole)) - 2)
    return f"over {whole // step * step:,} to 1"


def points(margin: float) -> str:
    """Return a difference of rates as "2 percentage points"."""
    return f"{margin * 100:.3g} percentage point{'' if margin == 0.01 else 's'}"


def error_rates(totals: Strata) -> str:
    """Return both error rates, with the number of canary calls."""
    canary, stable = (
        "unknown" if rate is None else percent(rate)
        for rate in (totals.canary.rate, totals.stable_rate)
    )
    calls = amount(totals.canary.calls)
    return f"canary error rate {canary}, stable {stable}, over {calls} canary calls"


def fails_more(feature: str, totals: Strata, alpha: float) -> str:
    """Return the reason to roll back a canary that fails more often."""
    return f"{feature}: {error_rates(totals)}; odds against chance are {odds(1 / alpha)}"


def is_slower(feature: str, found: RoundEvidence, placement: Placement, alpha: float) -> str:
    """Return the reason to roll back a slower canary, by the quantile where it shows most."""
    seen = found.seen

    def excess(level: int) -> float:
        """Return the canary's slow calls beyond those expected, in standard deviations."""
        slow = 1 - CUTS[level - 1]
        return (sum(seen.canary[level:]) - slow * sum(seen.canary)) / math.sqrt(slow * (1 - slow))

    level = max(SLOW_LEVELS, key=excess)
    canary, stable = (
        f"{percent(sum(calls[level:]) / max(sum(calls), 1))} of {name} calls"
        for name, calls in (("canary", seen.canary), ("stable", seen.stable))
    )
    over, stable_over = (
        f"over {bucket_milliseconds(cuts[level - 1]):.3g} ms"
        for cuts in (placement.canary_cuts, placement.cuts)
    )
    return (
        f"{feature}: {canary} take {over} and {stable} {stable_over}, over "
        f"{amount(sum(seen.canary))} canary calls; odds against chance are {odds(1 / alpha)}"
    )


def is_no_worse(feature: str, totals: Strata, margin: float, alpha: float) -> str:
    """Return the reason to promote a canary, with the margin."""
    return (
        f"{feature}: {error_rates(totals)}; a rate higher by {points(margin)} or more is ruled out "
        f"at odds of {odds(1 / alpha)}"
    )


def sample_ratio_mismatch(ratios: SampleRatios) -> str:
    """Return why the arms can't be compared."""
    assigned, unreported = ratios
    if not assigned.fits:
        return (
            f"sample ratio mismatch: the canary got {percent(assigned.observed or 0)} of the calls "
            f"instead of {percent(assigned.expected or 0)}, so calls are not assigned at random "
            "and the arms can't be compared"
        )
    fewer = "canary" if (unreported.observed or 0) > (unreported.expected or 0) else "stable"
    return (
        f"sample ratio mismatch: the {fewer} arm reports fewer of its decisions than the other "
        "arm, so the arms can't be compared; every use_canary_version needs its "
        "record_canary_call, however the call ends"
    )


def inconclusive(feature: str, totals: Strata, outlook: Outlook, anew_seconds: float | None) -> str:
    """Return the reason to hold for want of evidence, and what it takes as far as it is known."""
    if totals.canary.calls:
        seen = f"{error_rates(totals)}; not enough data"
    else:
        seen = "no canary calls yet, share unchanged"
    more = []
    if anew_seconds is not None:
        more.append(all_keys_counted(anew_seconds))
    if outlook.needs is not None:
        more.append(f"about {needed(outlook)} are needed")
    if outlook.shortage is not None:
        more.append(too_few_keys(outlook.shortage))
    if not more and totals.canary.calls:
        more.append("too early to forecast how many more calls are needed")
    return f"{feature}: {', '.join([seen, *more[:1]])}{''.join([f'; {each}' for each in more[1:]])}"


def needed(outlook: Outlook) -> str:
    """Return the number of calls that are still needed."""
    calls = f"{amount(outlook.needs or 0)} more"
    if not outlook.keyed:
        return f"{calls} canary calls"
    if outlook.new_keys is None:
        return f"{calls} first canary calls of a key"
    return f"{calls} first canary calls, those of about {amount(outlook.new_keys)} new keys,"


def all_keys_counted(anew_seconds: float) -> str:
    """Return why no calls are counted at present, and until when."""
    hours = max(1, math.ceil(anew_seconds / 3600))
    return (
        f"every key that calls has counted; keys count anew at the next step, or within {hours} h"
    )


def too_few_keys(shortage: Shortage) -> str:
    """Return that the keys that call can't bring a verdict, and what would."""
    few = (
        f"{amount(shortage.calling)} keys are too few for a verdict at {percent(shortage.at_share)}"
    )
    if shortage.more is None:
        return f"{few}, however long they call"
    share = f" or a share of {percent(shortage.share)}" if shortage.share is not None else ""
    return f"{few}: it takes about {amount(shortage.more)} more keys{share}"
