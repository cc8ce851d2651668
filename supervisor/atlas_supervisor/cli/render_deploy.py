"""How a deploy is shown: its steps, what went wrong in them, and how it came out.

The same pieces serve `deploy`, which shows them as they happen, and `show`, which looks back.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from atlas_supervisor.cli.client import Record, objects
from atlas_supervisor.cli.hints import hint
from atlas_supervisor.cli.render_findings import (
    check_lines,
    hint_line,
    in_words,
    indented,
    probe_lines,
    quoted,
)
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
BUSY = frozenset({"switch", "revert", "unstage"})  # a next deploy would be refused until it is over
GO_AHEAD = "Go ahead with `atlasctl switch`, or give it up with `atlasctl abort`."
AFTERWARDS = frozenset({"guard", "drain"})  # they go on after the deploy has its result

_SHOWN_APART = frozenset({"message", "checks", "output", "probes", "failed_probe"})
_RESULT_STYLES = {"failed": "red", "rolled_back": "red", "aborted": "yellow"}


def succeeded(record: Record) -> bool:
    """Tell whether a deploy that has settled did what its caller wanted.

    A deploy whose switch could not be done waits for another try: that is no success.
    """
    return record.get("result") in SUCCESSES and not switch_failed(record)


def settled(record: Record) -> bool:
    """Tell whether a deploy has its result and lets go (guard, warm time and drain may go on)."""
    phase = record.get("phase")
    return phase == "ended" or (record.get("result") is not None and phase not in BUSY)


def switch_failed(record: Record) -> bool:
    """Tell whether the flip itself was tried last and could not be done."""
    steps = record.get("steps") or [{}]
    last = steps[-1]
    return bool(
        record.get("result") == "awaiting_switch"
        and last.get("name") == "switch"
        and not last.get("ok")
    )


def awaits_switch(record: Record) -> bool:
    """Tell whether the deploy waits for an operator's word."""
    return record.get("result") == "awaiting_switch" and record.get("phase") != "ended"


def took(record: Record) -> str:
    """Return how long the deploy took up to its result, from its steps."""
    steps = record.get("steps") or []
    return duration(sum(s.get("duration_ms", 0) for s in steps if s.get("name") not in AFTERWARDS))


def doing(record: Record) -> str:
    """Return what the deploy does at the moment, in words."""
    phase = str(record.get("phase") or "starting")
    return {"unstage": "stopping staging", "revert": "going back"}.get(
        phase, phase.replace("_", " ")
    )


def title(record: Record) -> Text:
    """Return the deploy's one-line name: its id, and what it deploys."""
    parts = [safe(record.get("deploy_id"), "bold")]
    if record.get("release"):
        parts.append(safe(f"release {record['release']}"))
    if record.get("dry_run"):
        parts.append(safe("dry run", "yellow"))
    return spaced(*parts)


def result_text(record: Record) -> Text:
    """Return a deploy's result in its colour, or the step that it is at."""
    result = record.get("result")
    if result is None:
        return safe(doing(record), "cyan")
    return safe(result, _RESULT_STYLES.get(str(result), "green"))


def step_line(screen: Screen, step: Record) -> RenderableType:
    """Return a step that has ended: its outcome, name, time, and what it says of itself."""
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
    """Yield what a person needs of a step: failed checks and the worker's last output.

    With `everything` also the checks that passed and the step's further fields.
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
    """Return how the deploy came out and why, with a tick if that is what was wanted."""
    grid = Table.grid(padding=(0, 1))
    text = safe(_headline(record), "bold")
    grid.add_row(screen.sign(OK if ok else BAD), text)
    if record.get("reason"):
        grid.add_row("", safe(_reason(record), "" if ok else "red"))
    if advice := _advice(record):
        grid.add_row("", safe(advice, "dim"))
    return grid


def suggestions(screen: Screen, status: Record) -> Iterator[RenderableType]:
    """Yield what the daemon suggests to an operator, and the action for it."""
    for suggestion in objects(status.get("fallback_suggestions")):
        yield note(screen, suggestion.get("message"), suggestion.get("action"))


def note(screen: Screen, message: object, action: object) -> RenderableType:
    """Return what an operator should know and, below it, what can be done."""
    grid = Table.grid(padding=(0, 1))
    grid.add_row(screen.sign(NOTE), safe(message))
    if action:
        grid.add_row("", safe(action, "dim"))
    return grid


def _headline(record: Record) -> str:
    result = record.get("result")
    version = record.get("version")
    if switch_failed(record):
        return "switch failed: everything is as it was"
    if result == "switched":
        return f"switched to {version} on port {record.get('active_port')} in {took(record)}"
    if result == "awaiting_switch":
        return f"{version} passed its gates and waits on port {record.get('staging_port')}"
    if result == "dry_run_passed":
        return f"dry run of {version} passed in {took(record)}; nothing was switched"
    if result is None:
        return f"in progress: {doing(record)}"
    return str(result).replace("_", " ")


def brief(step: Record) -> str | None:
    """Return what a step says of itself, without what the lines below it tell of its checks."""
    message = _detail(step).get("message")
    if message is None or not _failed_checks(step):
        return message
    return str(message).split(": ", 1)[0]


def _reason(record: Record) -> str:
    """Return why it came out so; of smoke tests the names alone, for each has its own lines."""
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
            "The new version stays up: try again with `atlasctl switch`, or give up with "
            "`atlasctl abort`."
        )
    if awaits_switch(record):
        return GO_AHEAD
    return None


def _fields(detail: Record) -> Iterator[RenderableType]:
    further = {
        name.replace("_", " "): in_words(value)
        for name, value in detail.items()
        if name not in _SHOWN_APART and value is not None
    }
    if further:
        yield indented(safe(", ".join(" ".join(pair) for pair in further.items()), "dim"))


def _detail(step: Record) -> Record:
    detail = step.get("detail")
    return detail if isinstance(detail, dict) else {}
