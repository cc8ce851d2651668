"""How numbers are said to a person."""

from __future__ import annotations

import math


def percent(rate: float) -> str:
    """Return a rate as "4.8 %"; small ones keep a digit that says something."""
    if 0 < rate < 0.001:
        return f"{rate * 100:.1g} %" if rate >= 1e-6 else "under 0.0001 %"
    return f"{rate * 100:.1f} %"


def odds(e_value: float) -> str:
    """Return an e-value as "over 400 to 1", rounded down to one digit."""
    if e_value >= 1e6:
        return "over a million to 1"
    step = 10 ** math.floor(math.log10(max(e_value, 1)))
    return f"over {math.floor(e_value / step) * step:,} to 1"
