"""The waves of a rollout, as they are counted."""

from __future__ import annotations

import pytest

from atlas_supervisor.errors import RefusedError
from atlas_supervisor.fleet.waves import DEFAULT_WAVES, wave_ends


@pytest.mark.parametrize(
    ("waves", "hosts", "ends"),
    [
        (DEFAULT_WAVES, 1, (1,)),
        (DEFAULT_WAVES, 3, (1, 3)),  # a tenth is one host, which the first wave has
        (DEFAULT_WAVES, 15, (1, 2, 15)),
        (DEFAULT_WAVES, 1000, (1, 100, 1000)),
        ((1.0, 0.1, 1.0), 20, (1, 2, 20)),  # as JSON's numbers may be read
        ((0.07, 1), 100, (7, 100)),  # and not 8, as 0.07 * 100 is a little more than 7
        ((2, 0.1, 1), 5, (2, 5)),
        ((1, 2, 3), 3, (1, 2, 3)),
        ((1,), 7, (7,)),
    ],
)
def test_each_wave_counts_the_hosts_before_it_too(
    waves: tuple[float, ...], hosts: int, ends: tuple[int, ...]
) -> None:
    assert wave_ends(waves, hosts) == ends


@pytest.mark.parametrize(
    ("waves", "reason"),
    [
        ((), "the last one has to have all 3 hosts, and has none"),
        ((1, 2), "the last one has to have all 3 hosts, and has 2 hosts"),
        ((2, 2, 1), "wave 2 has 2 hosts, no more than the one before it"),
        ((0.5, 0.1, 1), "wave 2 is a share of 0.1, no more than one before it"),
        ((0.4, 0.4, 1), "wave 2 is a share of 0.4, no more than one before it"),
        ((4, 1), "wave 1 has 4 hosts, and the fleet has 3"),
        ((0, 1), "0 is neither a number of hosts nor a share between 0 and 1"),
        ((-1, 1), "-1 is neither a number of hosts nor a share between 0 and 1"),
        ((1.5, 1), "1.5 is neither a number of hosts nor a share between 0 and 1"),
        ((float("nan"), 1), "nan is neither a number of hosts nor a share between 0 and 1"),
        ((float("inf"), 1), "inf is neither a number of hosts nor a share between 0 and 1"),
    ],
)
def test_waves_that_do_not_lead_to_all_hosts_are_refused(
    waves: tuple[float, ...], reason: str
) -> None:
    with pytest.raises(RefusedError) as refused:
        wave_ends(waves, 3)

    assert (refused.value.code, refused.value.message) == ("invalid_waves", f"waves: {reason}")
