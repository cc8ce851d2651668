"""How a deploy is shown: its steps, what went wrong in them, and how it came out.

The same pieces serve `deploy`, which shows them as they happen, and `show`, which looks back.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from supervisor.cli.client import Record
from supervisor.cli.terminal import BAD, DURATION_WIDTH, NOTE, OK, STEP_WIDTH, Screen, safe, spaced
from supervisor.cli.units import duration

SUCCESSES = frozenset({"switched", "awaiting_switch", "dry_run_passed"})
BUSY = frozenset({"switch", "revert", "unstage"})  # a next deploy would be refused until it is over
GO_AHEAD = "Go ahead with `atlasctl switch`, or give it up with `atlasctl abort`."
AFTERWARDS = frozenset({"guard", "drain"})  # they go on after the deploy has its result

_SHOWN_APART = frozenset({"message", "checks", "output", "probes"})
_RESULT_STYLES = {"failed": "red", "rolled_back": "red", "aborted": "yellow"}
_CHECK_FIELDS = ("expected", "got")


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
    message = _detail(step).get("message")
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
        for probe in _objects(detail.get("probes")):
            yield _indented(_probe(screen, probe))
    for check in _objects(detail.get("checks")):
        if everything or not check.get("ok"):
            yield _indented(_check(screen, check))
    if output := detail.get("output"):
        yield _indented(_output(output))


def outcome(screen: Screen, record: Record, *, ok: bool) -> RenderableType:
    """Return how the deploy came out and why, with a tick if that is what was wanted."""
    grid = Table.grid(padding=(0, 1))
    text = safe(_headline(record), "bold")
    grid.add_row(screen.sign(OK if ok else BAD), text)
    if record.get("reason"):
        grid.add_row("", safe(record["reason"], "" if ok else "red"))
    if advice := _advice(record):
        grid.add_row("", safe(advice, "dim"))
    return grid


def suggestions(screen: Screen, status: Record) -> Iterator[RenderableType]:
    """Yield what the daemon suggests to an operator, and the action for it."""
    for suggestion in _objects(status.get("fallback_suggestions")):
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


def _advice(record: Record) -> str | None:
    if switch_failed(record):
        return (
            "The new version stays up: try again with `atlasctl switch`, or give up with "
            "`atlasctl abort`."
        )
    if awaits_switch(record):
        return GO_AHEAD
    return None


def _check(screen: Screen, check: Record) -> RenderableType:
    ok = bool(check.get("ok"))
    head = Table.grid(padding=(0, 1))
    head.add_row(
        screen.sign(OK if ok else BAD),
        safe(check.get("name")),
        safe(check.get("kind"), "dim"),
        Text(duration(check.get("duration_ms", 0)), style="dim"),
    )
    if ok:
        return head
    body = Table.grid(padding=(0, 2))
    if check.get("message"):
        body.add_row(safe("message", "dim"), safe(check["message"], "red"))
    for name in _CHECK_FIELDS:
        if check.get(name) not in (None, ""):
            body.add_row(safe(name, "dim"), safe(_words(check[name])))
    return Group(head, _indented(body, 2))


def _probe(screen: Screen, probe: Record) -> RenderableType:
    line = Table.grid(padding=(0, 1))
    line.add_row(
        screen.sign(OK if probe.get("verdict") == "pass" else BAD),
        safe(probe.get("message") or probe.get("verdict")),
        Text(duration(probe.get("duration_ms", 0)), style="dim"),
    )
    return line


def _output(output: Any) -> RenderableType:
    lines = output if isinstance(output, list) else str(output).splitlines()
    bar = Table.grid(padding=(0, 1))
    for line in lines:
        bar.add_row(Text("|", style="dim"), safe(str(line).rstrip("\r\n")))
    return Group(Text("last output of the worker", style="dim"), bar)


def _fields(detail: Record) -> Iterator[RenderableType]:
    further = {name: value for name, value in detail.items() if name not in _SHOWN_APART}
    if further:
        grid = Table.grid(padding=(0, 2))
        for name, value in further.items():
            grid.add_row(safe(name.replace("_", " "), "dim"), safe(_words(value)))
        yield _indented(grid)


def _words(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _detail(step: Record) -> Record:
    detail = step.get("detail")
    return detail if isinstance(detail, dict) else {}


def _objects(value: Any) -> list[Record]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _indented(renderable: RenderableType, by: int = 4) -> Padding:
    return Padding(renderable, (0, 0, 0, by), expand=False)
