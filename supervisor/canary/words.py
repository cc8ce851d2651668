"""How numbers are said to a person."""

from __future__ import annotations

import math


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
