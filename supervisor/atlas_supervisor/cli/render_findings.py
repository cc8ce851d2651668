"""Renders findings: checks, probes, and the output of workers and commands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from atlas_supervisor.cli.hints import hint
from atlas_supervisor.cli.terminal import BAD, OK, Screen, safe
from atlas_supervisor.cli.units import duration
from atlas_supervisor.cli.words import Record, failed_check

_MOST_LINES = 40  # of quoted output; the last ones, where programs usually report the error
_MOST_CHARACTERS = 500  # of one such line


def check_lines(screen: Screen, check: Record) -> RenderableType:
    """Return one smoke test; if it failed, also what was expected and what came."""
    ok = bool(check.get("ok"))
    head = Table.grid(padding=(0, 1))
    head.add_row(
        screen.sign(OK if ok else BAD),
        safe(check.get("name")),
        safe(_asked(check) or check.get("kind"), "dim"),
        Text(duration(check.get("duration_ms", 0)), style="dim"),
    )
    if ok:
        return head
    return Group(head, *(indented(part, 2) for part in _of_failed_check(check)))


def _of_failed_check(check: Record) -> Iterator[RenderableType]:
    """Yield what was wrong, what was expected, and what came."""
    found = failed_check(check)
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for index, problem in enumerate(found.problems):
        grid.add_row("" if index else "wrong", safe(problem, "red"))
        if words := hint(problem):
            grid.add_row("", safe(words, "yellow"))
    if found.expected:
        grid.add_row("expected", safe(found.expected))
    if found.got:
        grid.add_row("got", safe(found.got))
    for name, value in found.headers.items():
        grid.add_row("", safe(f"{name}: {value}", "dim"))
    yield grid
    if found.excerpt.strip():
        what = "its last output" if found.is_command else "body starts with"
        yield quoted(what, found.excerpt)


def _asked(check: Record) -> str | None:
    """Return the request, which precedes the problems in the message."""
    if not check.get("problems"):
        return None
    return str(check.get("message")).partition(": ")[0]


def probe_lines(screen: Screen, probe: Record) -> RenderableType:
    """Return one probe, and the body of a failing answer."""
    line = Table.grid(padding=(0, 1))
    line.add_row(
        screen.sign(OK if probe.get("verdict") == "pass" else BAD),
        safe(probe.get("message") or probe.get("verdict")),
        Text(duration(probe.get("duration_ms", 0)), style="dim"),
    )
    if not probe.get("excerpt"):
        return line
    return Group(line, indented(quoted("body starts with", probe["excerpt"]), 2))


def hint_line(words: str) -> RenderableType:
    """Return an explanation, to stand below the line that it explains."""
    return indented(safe(words, "yellow"))


def quoted(what: str, text: Any) -> RenderableType:
    """Return output under a heading; of long output the end."""
    lines = text if isinstance(text, list) else str(text).splitlines()
    bar = Table.grid(padding=(0, 1))
    for line in lines[-_MOST_LINES:]:
        short = str(line).rstrip("\r\n")
        cut = len(short) > _MOST_CHARACTERS
        bar.add_row(Text("|", style="dim"), safe(short[:_MOST_CHARACTERS] + "…" * cut))
    heading = f"{what} ({_MOST_LINES} of {len(lines)} lines)" if lines[_MOST_LINES:] else what
    return Group(Text(heading, style="dim"), bar)


def indented(renderable: RenderableType, by: int = 4) -> Padding:
    """Return a renderable indented by so many columns."""
    return Padding(renderable, (0, 0, 0, by), expand=False)
