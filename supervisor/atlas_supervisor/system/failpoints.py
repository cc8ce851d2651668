"""Failpoints: the places where a test kills the daemon, before and after every durable step.

A function that makes something durable, or has an effect outside of this process, is a *seam*. It
has two failpoints for each of its variants: `before-NAME`, and `after-NAME` however it ends. They
exist only if `ATLAS_FAILPOINT` was set when the program was imported; else `seam` returns the
function itself, so that a passing costs nothing.

- `ATLAS_FAILPOINT=after-steer:2`: the daemon kills itself with SIGKILL at the second passing.
- `ATLAS_FAILPOINT=trace`: each passing is a line on standard error.
- Any other word: the start is refused, and the names are printed.

`./scripts/soak --all-failpoints` kills the daemon at every passing of a scenario.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, TypeVar, cast

FAILPOINT = "ATLAS_FAILPOINT"
TRACE = "trace"
NAMES: list[str] = []
"""Every failpoint of the modules that were imported."""

_wanted, _, _passing = os.environ.get(FAILPOINT, "").partition(":")
_left = int(_passing) if _passing.isdigit() else 1

F = TypeVar("F", bound=Callable[..., Any])


def seam(
    name: str,
    variants: Iterable[str] = (),
    variant_of: Callable[..., str] | None = None,
    *,
    returns: bool = True,
) -> Callable[[F], F]:
    """Declare a function as a seam; `variant_of` its arguments is one of the `variants`.

    One that returns only if it failed has no failpoint after it.
    """
    names = [f"{name}-{variant}" for variant in variants] or [name]
    moments = ("before", "after") if returns else ("before",)
    NAMES.extend(f"{moment}-{each}" for each in names for moment in moments)

    def declared(function: F) -> F:
        return cast("F", _armed(function, name, variant_of)) if _wanted else function

    return declared


def names_if_unknown() -> list[str]:
    """Return all names if `ATLAS_FAILPOINT` has none of them; to be called after all imports."""
    return [] if _wanted in {"", TRACE, *NAMES} else sorted(NAMES)


def remaining() -> dict[str, str]:
    """Return the variable for a program that this process executes: passings are counted on."""
    if _wanted in {"", TRACE}:
        return {}
    return {FAILPOINT: f"{_wanted}:{_left}"}


def _armed(
    function: Callable[..., Any], name: str, variant_of: Callable[..., str] | None
) -> Callable[..., Any]:
    def name_of(arguments: tuple[Any, ...]) -> str:
        return f"{name}-{variant_of(*arguments)}" if variant_of else name

    @wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        at = name_of(arguments)
        _pass(f"before-{at}")
        try:
            return function(*arguments, **named)
        finally:
            _pass(f"after-{at}")

    @wraps(function)
    async def call_async(*arguments: Any, **named: Any) -> Any:
        at = name_of(arguments)
        _pass(f"before-{at}")
        try:
            return await function(*arguments, **named)
        finally:
            _pass(f"after-{at}")

    return call_async if asyncio.iscoroutinefunction(function) else call


def _pass(name: str) -> None:
    global _left  # noqa: PLW0603  # counts over the whole process
    if _wanted == TRACE:
        os.write(2, f"failpoint {name}\n".encode())
    elif name == _wanted:
        _left -= 1
        if _left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
