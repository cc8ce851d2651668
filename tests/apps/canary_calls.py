"""Calls three features as an application does: a faster canary, a failing one, and an equal one.

`canary_calls.py N` makes N calls of each, below the `ATLAS_STATE_DIR` of a daemon.
"""

from __future__ import annotations

import random
import sys

from atlas_worker import record_canary_call, use_canary_version

FAILING = {"vision": 0.004, "web": 0.3, "optimizer": 0.004}
"""Share of a canary's calls that fail; of the stable arm's, one in 250 does."""
SLOWER = {"vision": 0.9, "web": 1.0, "optimizer": 1.0}


def main() -> None:
    chance = random.Random(7)  # noqa: S311 - each run has the same calls
    for _ in range(int(sys.argv[1])):
        for feature, failing in FAILING.items():
            is_canary = use_canary_version(feature)
            ok = chance.random() >= (failing if is_canary else 0.004)
            latency = chance.lognormvariate(3, 0.4) * (SLOWER[feature] if is_canary else 1)
            record_canary_call(feature, is_canary, ok, latency)


if __name__ == "__main__":
    main()
