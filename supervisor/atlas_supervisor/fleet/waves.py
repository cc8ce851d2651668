"""The waves of a rollout: how many hosts have the release at the end of each.

A wave is a whole number of hosts, or a share of all hosts in (0, 1), rounded up; each counts the
hosts of the waves before it too. The last wave is all hosts: a last 1 means 100 %. Waves grow; a
share that comes to no more hosts than the wave before it, in a small fleet, is no wave of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Final

from atlas_supervisor.errors import INVALID_WAVES, RefusedError

DEFAULT_WAVES: Final[tuple[float, ...]] = (1, 0.1, 1)


def wave_ends(waves: Sequence[float], hosts: int) -> tuple[int, ...]:
    """Return how many of the hosts are through at the end of each wave. Raises RefusedError."""
    ends: list[int] = []
    for number, wave in enumerate(waves, 1):
        has_all = number == len(waves) and wave == 1
        if any(wave <= earlier for earlier in waves[: number - 1] if wave < 1 and earlier < 1):
            raise _refused(f"wave {number} is a share of {wave:g}, no more than one before it")
        end = hosts if has_all else _end(number, wave, hosts)
        before = ends[-1] if ends else 0
        if end > before:
            ends.append(end)
        elif wave >= 1 and not has_all:
            raise _refused(f"wave {number} has {_hosts(end)}, no more than the one before it")
    if not ends or ends[-1] != hosts:
        last = _hosts(ends[-1]) if ends else "none"
        raise _refused(f"the last one has to have all {_hosts(hosts)}, and has {last}")
    return tuple(ends)


def _end(number: int, wave: float, hosts: int) -> int:
    """Return how many hosts a wave has, those of earlier waves included."""
    if 0 < wave < 1:
        return math.ceil(Fraction(str(wave)) * hosts)
    if not float(wave).is_integer() or wave < 1:
        raise _refused(f"{wave} is neither a number of hosts nor a share between 0 and 1")
    if wave > hosts:
        raise _refused(f"wave {number} has {_hosts(int(wave))}, and the fleet has {hosts}")
    return int(wave)


def _hosts(count: int) -> str:
    return "1 host" if count == 1 else f"{count} hosts"


def _refused(problem: str) -> RefusedError:
    return INVALID_WAVES.error(problem=problem, extra={"field": "waves"})
