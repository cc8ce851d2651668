"""The reasons of a judgement, for a person who knows no statistics.

How numbers are said to a person.
"""

from __future__ import annotations

import math

from atlas_supervisor.canary.stats.counts import Arm
from atlas_supervisor.canary.stats.sample_ratio import SampleRatios
from atlas_supervisor.canary.stats.strata import Strata


def percent(rate: float) -> str:
    """Return a rate as "4.8 %"; a small one keeps a digit that says something."""
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
    # A hair is added, for 1/alpha may be a float just below the whole number that it stands for.
    whole = math.floor(max(e_value, 1) * (1 + 1e-9))
    step = 10 ** max(0, len(str(whole)) - 2)
    return f"over {whole // step * step:,} to 1"


def compared(totals: Strata) -> str:
    """Return both error rates and over how many calls."""
    canary = totals.canary
    own = "nothing yet" if canary.rate is None else f"{percent(canary.rate)} of calls"
    stable = "none known" if totals.stable_rate is None else percent(totals.stable_rate)
    return f"the canary fails {own}, stable {stable}, over {amount(canary.calls)} canary calls"


def fails_more(feature: str, totals: Strata, alpha: float) -> str:
    """Return why a canary is rolled back that fails more often."""
    return f"{feature}: {compared(totals)}; odds against chance are {odds(1 / alpha)}"


def is_slower(feature: str, milliseconds: float, seen: tuple[Arm, Arm], alpha: float) -> str:
    """Return why a canary is rolled back that is slow more often, by the clearest threshold."""
    canary, stable = seen
    return (
        f"{feature}: {percent(canary.rate or 0)} of canary calls take over "
        f"{milliseconds:.3g} ms, {percent(stable.rate or 0)} of stable ones, over "
        f"{amount(canary.calls)} canary calls; odds against chance are {odds(1 / alpha)}"
    )


def is_no_worse(feature: str, totals: Strata, margin: float, alpha: float) -> str:
    """Return why a canary is promoted, with the margin beside it."""
    return (
        f"{feature}: {compared(totals)}; that its rate is higher by {points(margin)} or more is "
        f"ruled out at odds of {odds(1 / alpha)}"
    )


def wrong_ratio(ratios: SampleRatios) -> str:
    """Return why the arms can't be compared while they do not get or report their shares."""
    assigned, unreported = ratios
    if not assigned.fits:
        return (
            f"the canary was given {percent(assigned.observed or 0)} of the calls and not "
            f"{percent(assigned.expected or 0)}: something chooses who gets it, so the arms can't "
            "be compared"
        )
    fewer = "canary" if (unreported.observed or 0) > (unreported.expected or 0) else "stable"
    return (
        f"the {fewer} arm reports fewer of its decisions than the other one, so the arms can't be "
        "compared: whoever asks use_canary_version is to call record_canary_call however it ends"
    )


def waits(feature: str, totals: Strata, needs: int | None) -> str:
    """Return what an undecided canary waits for."""
    if not totals.canary.calls:
        return f"{feature}: there are no canary calls to judge by yet; it holds"
    more = (
        "how many more calls it takes can't be told yet"
        if needs is None
        else f"about {amount(needs)} more canary calls are needed"
    )
    return f"{feature}: {compared(totals)}; not enough to tell, {more}"


def points(margin: float) -> str:
    """Return a difference of rates as "2 percentage points"."""
    return f"{margin * 100:.3g} percentage point{'' if margin == 0.01 else 's'}"
