"""Serves a feature by its canary or its stable implementation, as the policy decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec

from atlas_worker import canary
from atlas_worker.app.errors import RequestError

P = ParamSpec("P")


def serve(
    feature: str,
    stable: Callable[P, dict[str, Any]],
    new: Callable[P, dict[str, Any]],
    *args: P.args,
    **kwargs: P.kwargs,
) -> dict[str, Any]:
    """Return the answer of one arm, with its name in `arm`; raises what the arm raises.

    Both arms refuse the same input, so a `RequestError` is not a failure of the arm.
    """
    refused: RequestError | None = None
    answer: dict[str, Any] = {}
    with canary.call(feature) as call:
        try:
            answer = (new if call.is_canary else stable)(*args, **kwargs)
        except RequestError as error:
            refused = error
    if refused is not None:
        raise refused
    return {**answer, "arm": call.arm}
