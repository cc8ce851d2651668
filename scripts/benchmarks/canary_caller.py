"""A worker process that calls canaries at a steady rate, or watches for the moment they go off.

`canary_caller.py calls RATE SECONDS`, `canary_caller.py short RATE SECONDS` and `canary_caller.py
watch`; a line on standard output when it is ready, and one at its end. `ATLAS_STATE_DIR` says where
the daemon is.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress

from atlas_worker import canary, is_canary_enabled, record_canary_call

BURST_SECONDS = 0.01
CALLS_OF_SHORT = 5


def calls(rate: float, seconds: float) -> None:
    """Make so many calls a second, in small bursts, one in a hundred of them failing."""
    begun, made = time.monotonic(), 0
    print("ready", flush=True)
    while (passed := time.monotonic() - begun) < seconds:
        while made < passed * rate:
            made += 1
            try:
                with canary.call("vision"):
                    if made % 100 == 0:
                        raise ValueError
            except ValueError:
                pass
        time.sleep(BURST_SECONDS)
    print(made, flush=True)


def short(rate: float, seconds: float) -> None:
    """Start so many processes a second, which make five calls each and exit."""
    begun, made = time.monotonic(), 0
    print("ready", flush=True)
    while made < rate * seconds:
        if os.fork() == 0:
            for _ in range(CALLS_OF_SHORT):
                with canary.call("vision"):
                    pass
            os._exit(0)
        made += 1
        time.sleep(max(begun + made / rate - time.monotonic(), 0))
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
    with suppress(ChildProcessError):
        while os.wait():
            pass
    print(made * CALLS_OF_SHORT, flush=True)


def watch() -> None:
    """Print the time at which canaries are off, in nanoseconds of Unix time."""
    while not is_canary_enabled():
        time.sleep(0.001)
    print("ready", flush=True)
    while is_canary_enabled():
        time.sleep(0.0005)
    print(time.time_ns(), flush=True)


def fail(count: int) -> None:
    """Report this many failed canary calls."""
    for _ in range(count):
        record_canary_call("vision", True, False, 5.0)


if __name__ == "__main__":
    if sys.argv[1] == "calls":
        calls(float(sys.argv[2]), float(sys.argv[3]))
    elif sys.argv[1] == "short":
        short(float(sys.argv[2]), float(sys.argv[3]))
    elif sys.argv[1] == "watch":
        watch()
    else:
        fail(int(sys.argv[2]))
        sys.stdin.read()
