"""A deploy in words: its phase, its outcome, what to do next; for terminal and dashboard.

Nothing here imports the terminal: the daemon renders pages with these words.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, NamedTuple

from atlas_supervisor.cli.units import SECOND, duration, moment, percent

Record = dict[str, Any]
"""A JSON object of the API. Fields are read with `.get`, as an older daemon may lack some."""

SUCCESSES = frozenset({"switched", "awaiting_switch", "dry_run_passed"})
BUSY = frozenset({"ramp", "switch", "revert", "unstage"})  # another deploy would still be refused
GO_AHEAD = "Switch to it with `atlasctl switch`, or abort with `atlasctl abort`."
AFTERWARDS = frozenset({"guard", "drain"})  # they run after the deploy has its result

RECYCLED = "recycled"
PENDING = "Worker settings have changed; they are applied at the next deploy."
PENDING_HINT = "Apply them now with `atlasctl deploy`."


def mapping(value: object) -> Record:
    """Return a value of the API as an object; an empty one if it is something else."""
    return value if isinstance(value, dict) else {}


def objects(value: object) -> list[Record]:
    """Return the objects of a list of the API; none if it is not a list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def succeeded(record: Record) -> bool:
    """Return whether a deploy with a result did what its caller wanted.

    A deploy whose switch failed waits for a retry: that is not a success.
    """
    return record.get("result") in SUCCESSES and not switch_failed(record)


def settled(record: Record) -> bool:
    """Return whether a deploy has its result; guard, warm time and drain may still run."""
    phase = record.get("phase")
    return phase == "ended" or (record.get("result") is not None and phase not in BUSY)


def switch_failed(record: Record) -> bool:
    """Return whether the last step was a switch that failed."""
    steps = record.get("steps") or [{}]
    last = steps[-1]
    return bool(
        record.get("result") == "awaiting_switch"
        and last.get("name") == "switch"
        and not last.get("ok")
    )


def awaits_switch(record: Record) -> bool:
    """Return whether the deploy waits for `atlasctl switch`."""
    return record.get("result") == "awaiting_switch" and record.get("phase") != "ended"


def took(record: Record) -> str:
    """Return how long the steps up to the deploy's result took."""
    steps = record.get("steps") or []
    took = sum(s.get("duration_ms", 0) for s in steps if s.get("name") not in AFTERWARDS)
    return duration(took + ramp_milliseconds(record.get("ramp")))


def doing(record: Record) -> str:
    """Return the deploy's current phase in words."""
    phase = str(record.get("phase") or "starting")
    if phase == "ramp" and (ramp := mapping(record.get("ramp"))):
        return ramp_now(ramp)
    return {"unstage": "stopping staging", "revert": "reverting"}.get(
        phase, phase.replace("_", " ")
    )


def guarded(record: Record) -> str | None:
    """Return the guard's figures so far, in words; None if it is not watching requests."""
    return mapping(record.get("guard")).get("message") or None


def is_recycle(record: Record) -> bool:
    """Return whether the daemon began it, to replace a worker beyond a limit."""
    return record.get("cause") == RECYCLED


def ramp_now(ramp: Record) -> str:
    """Return the present state of the ramp in one line."""
    where = f"{percent(ramp.get('share'))} (step {ramp.get('step')} of {ramp.get('of')})"
    if ramp.get("paused"):
        return f"ramp: {where}, paused"
    due = moment(ramp.get("next_ts"))
    left = (due - datetime.now(UTC)).total_seconds() if due else 0.0
    if left > 0:
        following = percent(ramp.get("next_share"))
        return f"ramp: {where}, {following} in {duration(left * SECOND)} at the earliest"
    waits_for = ramp.get("waits_for")
    return f"ramp: {where}, waits for {waits_for}" if waits_for else f"ramp: {where}"


def ramp_milliseconds(ramp: object) -> float:
    """Return how long a ramp took, as far as its steps have ended."""
    steps = objects(mapping(ramp).get("steps"))
    times = [(moment(step.get("since_ts")), moment(step.get("until_ts"))) for step in steps]
    seconds = ((until - since).total_seconds() for since, until in times if since and until)
    return sum(seconds) * SECOND


def headline(record: Record) -> str:
    """Return the outcome of a deploy, or what it does, in one sentence."""
    result = record.get("result")
    version = record.get("version")
    if switch_failed(record):
        return "switch failed: ports and mode are unchanged"
    if result == "switched":
        what = "recycled" if is_recycle(record) else "switched to"
        return f"{what} {version} on port {record.get('active_port')} in {took(record)}"
    if result == "awaiting_switch":
        return f"{version} passed its gates and waits on port {record.get('staging_port')}"
    if result == "dry_run_passed":
        return f"dry run of {version} passed in {took(record)}; nothing was switched"
    if result is None:
        return f"in progress: {doing(record)}"
    return str(result).replace("_", " ")


def brief(step: Record) -> str | None:
    """Return a step's message, without the failed checks that are listed below it."""
    message = detail_of(step).get("message")
    if message is None or not failed_checks(step):
        return message
    return str(message).split(": ", 1)[0]


def reason(record: Record) -> str:
    """Return the reason; of failed smoke tests only the names, as each has its own lines."""
    reason = str(record["reason"])
    for step in objects(record.get("steps")):
        message = str(detail_of(step).get("message"))
        if (failed := failed_checks(step)) and reason.endswith(message):
            names = ", ".join(repr(str(check.get("name"))) for check in failed)
            return f"{reason.removesuffix(message)}{brief(step)}: {names}"
    return reason


def failed_checks(step: Record) -> list[Record]:
    """Return the smoke tests of a step that failed."""
    return [check for check in objects(detail_of(step).get("checks")) if not check.get("ok")]


def advice_of(record: Record) -> str | None:
    """Return the next steps for a deploy that waits; None if it does not."""
    if switch_failed(record):
        return (
            "The new version keeps running: retry with `atlasctl switch`, or give up with "
            "`atlasctl abort`."
        )
    if awaits_switch(record):
        return GO_AHEAD
    return None


def detail_of(step: Record) -> Record:
    """Return the findings of a step."""
    return mapping(step.get("detail"))


class FailedCheck(NamedTuple):
    """A smoke test that failed: what was wrong, what was expected, and what came."""

    problems: list[str]
    expected: str
    got: str
    headers: Record
    excerpt: str
    """Of a command its output, of an HTTP test the beginning of the body."""
    is_command: bool


def failed_check(check: Record) -> FailedCheck:
    """Return the parts of a failed smoke test."""
    problems = check.get("problems") or ([check["message"]] if check.get("message") else [])
    expected, got = check.get("expected"), in_words(check.get("got") or "")
    is_command, excerpt = check.get("kind") == "command", ""
    if is_command and got != "not started":
        got, excerpt = "", got
    elif got.startswith("status "):
        got, _, excerpt = got.partition(": ")
    return FailedCheck(
        problems=[str(problem) for problem in problems],
        expected="" if expected in (None, "") else in_words(expected),
        got=got,
        headers=mapping(check.get("headers")),
        excerpt=excerpt,
        is_command=is_command,
    )


def in_words(value: Any) -> str:
    """Return a value of the API for display: text unchanged, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
