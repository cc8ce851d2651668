"""Renders a deploy: its steps, their findings, and its outcome.

Used by `deploy` as things happen, and by `show` afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from atlas_supervisor.cli.client import Record, mapping, objects
from atlas_supervisor.cli.hints import hint
from atlas_supervisor.cli.render_findings import (
    check_lines,
    hint_line,
    in_words,
    indented,
    probe_lines,
    quoted,
)
from atlas_supervisor.cli.render_ramp import ramp_milliseconds, ramp_now
from atlas_supervisor.cli.terminal import (
    BAD,
    DURATION_WIDTH,
    NOTE,
    OK,
    STEP_WIDTH,
    Screen,
    safe,
    spaced,
)
from atlas_supervisor.cli.units import duration

SUCCESSES = frozenset({"switched", "awaiting_switch", "dry_run_passed"})
BUSY = frozenset({"ramp", "switch", "revert", "unstage"})  # another deploy would still be refused
GO_AHEAD = "Switch to it with `atlasctl switch`, or abort with `atlasctl abort`."
AFTERWARDS = frozenset({"guard", "drain"})  # they run after the deploy has its result

RECYCLED = "recycled"

_SHOWN_APART = frozenset({"message", "checks", "output", "probes", "failed_probe", "comparison"})
_UNITS = {"_us": 0.001, "_ms": 1.0, "_seconds": 1000.0}
_RESULT_STYLES = {"failed": "red", "rolled_back": "red", "aborted": "yellow"}


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


def title(record: Record) -> Text:
    """Return the deploy's title: its id, and what it deploys."""
    parts = [safe(record.get("deploy_id"), "bold")]
    if record.get("release"):
        parts.append(safe(f"release {record['release']}"))
    if record.get("dry_run"):
        parts.append(safe("dry run", "yellow"))
    if is_recycle(record):
        parts.append(safe(RECYCLED, "dim"))
    return spaced(*parts)


def is_recycle(record: Record) -> bool:
    """Return whether the daemon began it, to replace a worker beyond a limit."""
    return record.get("cause") == RECYCLED


def result_text(record: Record) -> Text:
    """Return a deploy's result in its colour, or its current phase."""
    result = record.get("result")
    text = safe(result, _RESULT_STYLES.get(str(result), "green"))
    if result is None:
        text = safe(doing(record), "cyan")
    return spaced(text, safe(RECYCLED, "dim")) if is_recycle(record) else text


def step_line(screen: Screen, step: Record) -> RenderableType:
    """Return a step that has ended: sign, name, duration and message."""
    line = Table.grid(padding=(0, 1))
    line.add_column()
    line.add_column(width=STEP_WIDTH)
    line.add_column(width=DURATION_WIDTH, justify="right")
    line.add_column(overflow="fold")
    message = brief(step)
    line.add_row(
        screen.sign(OK if step.get("ok") else BAD),
        safe(step.get("name")),
        Text(duration(step.get("duration_ms", 0)), style="dim"),
        safe("" if message is None else f" {message}", "" if step.get("ok") else "red"),
    )
    return line


def findings(screen: Screen, step: Record, *, everything: bool = False) -> Iterator[RenderableType]:
    """Yield a step's findings: failed checks and probes, and the worker's last output.

    With `everything`, also what passed, and the step's other fields.
    """
    detail = _detail(step)
    if everything:
        yield from _fields(detail)
    if not step.get("ok") and (words := hint(brief(step))):
        yield hint_line(words)
    for probe in [*objects(detail.get("probes")), *objects([detail.get("failed_probe")])]:
        if everything or (probe.get("verdict") != "pass" and probe.get("excerpt")):
            yield indented(probe_lines(screen, probe))
    for check in objects(detail.get("checks")):
        if everything or not check.get("ok"):
            yield indented(check_lines(screen, check))
    if detail.get("output") == []:
        yield indented(safe("the worker printed nothing", "dim"))
    elif output := detail.get("output"):
        yield indented(quoted("last output of the worker", output))


def outcome(screen: Screen, record: Record, *, ok: bool) -> RenderableType:
    """Return the deploy's result and its reason, with a tick if `ok`."""
    grid = Table.grid(padding=(0, 1))
    text = safe(_headline(record), "bold")
    grid.add_row(screen.sign(OK if ok else BAD), text)
    if record.get("reason"):
        grid.add_row("", safe(_reason(record), "" if ok else "red"))
    if advice := _advice(record):
        grid.add_row("", safe(advice, "dim"))
    return grid


def suggestions(screen: Screen, status: Record) -> Iterator[RenderableType]:
    """Yield the daemon's suggestions, each with its action."""
    for suggestion in objects(status.get("fallback_suggestions")):
        yield note(screen, suggestion.get("message"), suggestion.get("action"))


def note(screen: Screen, message: object, action: object) -> RenderableType:
    """Return a message and, below it, what to do."""
    grid = Table.grid(padding=(0, 1))
    grid.add_row(screen.sign(NOTE), safe(message))
    if action:
        grid.add_row("", safe(action, "dim"))
    return grid


def _headline(record: Record) -> str:
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
    message = _detail(step).get("message")
    if message is None or not _failed_checks(step):
        return message
    return str(message).split(": ", 1)[0]


def _reason(record: Record) -> str:
    """Return the reason; of failed smoke tests only the names, as each has its own lines."""
    reason = str(record["reason"])
    for step in objects(record.get("steps")):
        message = str(_detail(step).get("message"))
        if (failed := _failed_checks(step)) and reason.endswith(message):
            names = ", ".join(repr(str(check.get("name"))) for check in failed)
            return f"{reason.removesuffix(message)}{brief(step)}: {names}"
    return reason


def _failed_checks(step: Record) -> list[Record]:
    return [check for check in objects(_detail(step).get("checks")) if not check.get("ok")]


def _advice(record: Record) -> str | None:
    if switch_failed(record):
        return (
            "The new version keeps running: retry with `atlasctl switch`, or give up with "
            "`atlasctl abort`."
        )
    if awaits_switch(record):
        return GO_AHEAD
    return None


def _fields(detail: Record) -> Iterator[RenderableType]:
    further = [
        _field(name, value)
        for name, value in detail.items()
        if name not in _SHOWN_APART and value is not None
    ]
    if further:
        yield indented(safe(", ".join(further), "dim"))


def _field(name: str, value: Any) -> str:
    """Return a field of a step's detail in words: `pid 77`, `waited 12 ms`."""
    for unit, milliseconds in _UNITS.items():
        if name.endswith(unit) and isinstance(value, int | float):
            return f"{name.removesuffix(unit).replace('_', ' ')} {duration(value * milliseconds)}"
    return f"{name.replace('_', ' ')} {in_words(value)}"


def _detail(step: Record) -> Record:
    detail = step.get("detail")
    return detail if isinstance(detail, dict) else {}
